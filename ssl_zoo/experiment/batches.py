"""Whether every pass through a network has enough images."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_zoo.config import ConfigError
from ssl_zoo.data.sampler import Sampler
from ssl_zoo.system import distributed


def check_batches(
    method: nn.Module, num_samples: int | None, batch_size: int, drop_last: bool, accumulate: int
) -> None:
    """Raises ConfigError where the smallest (micro-)batch has fewer images than something needs.

    That is the last of an epoch; those of a stream, without `num_samples`, are of one size. One
    image has nothing to be compared with: BatchNorm stops or normalizes it by itself, and losses
    are not finite or zero.
    """
    who, needed = max(_needs(method, distributed.world()), key=lambda need: need[1])

    def fewest(size: int, drop_last: bool = drop_last, parts: int = accumulate) -> int:
        """Images on a rank; 0 where no epoch can be made of batches of this size."""
        try:
            world = distributed.world()
            sampler = Sampler(num_samples or size, size, 0, drop_last, world=world)
        except ValueError:
            return 0
        before = size * (sampler.steps_per_epoch - 1)
        share = (sampler.samples_per_epoch - before) // world
        return share // min(parts, share)

    found = fewest(batch_size)
    if found >= needed:
        return
    farthest = num_samples or needed * accumulate * distributed.world() + 1
    near = (b for d in range(1, farthest) for b in (batch_size - d, batch_size + d) if b > 0)
    ways = [f"data.batch_size={b}" for b in near if fewest(b) >= needed][:1]
    if fewest(batch_size, drop_last=True) >= needed:
        ways.append("data.drop_last=true")
    if fewest(batch_size, parts=1) >= needed:
        ways.append("train.accumulate=1")
    raise ConfigError(
        "data.batch_size",
        f"{who} needs {needed} images at a time",
        found=f"{batch_size}, which makes a (micro-)batch of {found}"
        + (f" out of {num_samples} images" if num_samples else ""),
        expected=" or ".join(ways) or "more images",
    )


def _needs(method: nn.Module, world: int) -> Iterator[tuple[str, int]]:
    """(what, how many images on each rank) of all that looks at several images."""
    yield type(method).__name__, 1
    for module in method.modules():
        of_all = getattr(module, "least_images", 1)
        if isinstance(module, nn.SyncBatchNorm):
            of_all = 2
        elif isinstance(module, _BatchNorm):
            groups = getattr(module, "groups", 1)
            yield f"BatchNorm in {groups} groups" if groups > 1 else "BatchNorm", 2 * groups
        yield type(module).__name__, -(-of_all // world)
