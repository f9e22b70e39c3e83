"""Which samples make which step: of a set a pure function of seed and step, of a stream what comes.

A rank's share of a batch is a contiguous block, as a BatchNorm group's of one process is.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.data.image import Samples
from ssl_zoo.data.source import Stream
from ssl_zoo.system import rng


class Sampler:
    """Shuffled batches of a set, addressed by step, so that a resume is a slice.

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
        _check_divisible(batch_size, world)
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

    def samples(self, start: int, stop: int, position: None) -> Iterator[tuple[Samples, None]]:
        """As of a stream; a step of a set needs no position."""
        for epoch, index in self.steps(start, stop):
            yield Samples(self.seed, epoch, index), None

    def index(self, step: int) -> Tensor:
        """Of this rank's samples of a step, [n] int64."""
        return next(self.steps(step, step + 1))[1]

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """(index [n], what fetches them) of the first epoch's first samples."""
        index = self.permutation(0)[:count]
        return index, index

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


class InOrder:
    """Batches of a stream as it comes. A sample's number is its place in all that was read so far,
    and stands where a set's sample has its position: nothing that is drawn for a sample depends on
    ranks, workers or the step at which a run was resumed.

    Args:
        batch_size: global, over all processes.

    Raises:
        ValueError: the batch is not divisible by `world`.
    """

    steps_per_epoch = None

    def __init__(self, stream: Stream, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        _check_divisible(batch_size, world)
        self.stream, self.batch_size, self.seed = stream, batch_size, seed
        share = batch_size // world
        self.mine = slice(rank * share, (rank + 1) * share)

    def samples(
        self, start: int, stop: int, position: tuple[int, Any] | None = None
    ) -> Iterator[tuple[Samples, tuple[int, Any]]]:
        """(this rank's samples, (step, where it begins in the stream) of the step after them) of
        steps start..stop-1.

        Args:
            position: of step `start`, as it was given with the samples before; none for step 0.

        Raises:
            ValueError: it is of another step, or the stream has come to an end.
        """
        step, place = position if start and position else (0, None)
        if step != start:
            raise ValueError(f"a stream is read forward: it stands at step {step}, not at {start}")
        coming = self.stream.read(self.seed, place)
        for step in range(start, stop):
            batch = list(islice(coming, self.batch_size))
            if len(batch) < self.batch_size:
                name, read = type(self.stream).__name__, step * self.batch_size + len(batch)
                raise ValueError(f"{name} ended after {read} images; a stream has no end")
            records = [record for record, _ in batch[self.mine]]
            yield Samples(self.seed, 0, self.index(step), records), (step + 1, batch[-1][1])

    def index(self, step: int) -> Tensor:
        """Of this rank's samples of a step, [n] int64."""
        return torch.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.mine]

    def first(self, count: int) -> tuple[Tensor, list]:
        """(index [n], what fetches them) of the first samples."""
        records = [record for record, _ in islice(self.stream.read(self.seed), count)]
        return torch.arange(len(records)), records


def _check_divisible(batch_size: int, world: int) -> None:
    if batch_size % world:
        raise ValueError(f"batch_size {batch_size} is not divisible by {world} processes")
