"""Which samples make which step: a pure function of seed and step."""

from collections.abc import Iterator

from torch import Tensor

from ssl_zoo.system import rng


class Sampler:
    """Shuffled batches, addressed by step, so that a resume is a slice.

    A rank's share of a batch is a contiguous block, as a BatchNorm group's of one process is.

    Args:
        batch_size: global, over all processes.
        drop_last: leave out an epoch's last, smaller batch; else cut it to a multiple of `world`.

    Raises:
        ValueError: the batch is not divisible by `world`, or is larger than the data set.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        drop_last: bool = True,
        rank: int = 0,
        world: int = 1,
    ):
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} is not divisible by {world} processes")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world = rank, world
        full, rest = divmod(num_samples, batch_size)
        kept = 0 if drop_last else rest - rest % world
        self.steps_per_epoch = full + (kept > 0)
        self.samples_per_epoch = full * batch_size + kept
        if self.steps_per_epoch == 0:
            hint = " (drop_last: false keeps the smaller batch)" if drop_last else ""
            raise ValueError(
                f"batch_size {batch_size} leaves no step in an epoch of {num_samples} samples{hint}"
            )

    def permutation(self, epoch: int) -> Tensor:
        """The order of the samples in an epoch, [num_samples] int64."""
        return rng.permutation(self.num_samples, self.seed, "order", epoch)

    def steps(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """(epoch, this rank's indices [n] int64) of steps start..stop-1, counted over epochs."""
        current, order = -1, None
        for step in range(start, stop):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != current:
                current, order = epoch, self.permutation(epoch)
            first = position * self.batch_size
            share = (min(first + self.batch_size, self.samples_per_epoch) - first) // self.world
            first += self.rank * share
            yield epoch, order[first : first + share]

    def successors(self, epoch: int, sample: int) -> list[int]:
        """Who may take the place of a sample that cannot be read: those at its place in the batches
        after, around the epoch.

        So no sample is twice in a batch, whichever others are missing, and neither ranks nor
        workers need to agree on anything.
        """
        order = self.permutation(epoch)[: self.samples_per_epoch]
        place = int((order == sample).nonzero())
        alike = order[place % self.batch_size :: self.batch_size].tolist()
        batch = place // self.batch_size
        return alike[batch + 1 :] + alike[:batch]
