"""Pictures and their targets, in batches to train on and one by one to be judged by."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.config import Part
from ssl_zoo.data import Sampler, Splits, Transform
from ssl_zoo.data.files import counted
from ssl_zoo.data.image import GeometricTransform, Samples
from ssl_zoo.data.loader import automatic_workers
from ssl_zoo.system import distributed, rng
from ssl_zoo.transfer.augment import Augment
from ssl_zoo.transfer.source import AnnotatedSet, Target, learnable


class PictureBatch(NamedTuple):
    """One step's pictures; what a `Trainer` asks of a batch.

    Attributes:
        images: N of float [3, H, W], each of its own size, with the backbone's colors.
        targets: N dicts of `learnable`, or maps [H, W] int64.
        index: [N] int64, positions in the data set.
    """

    images: list[Tensor]
    targets: list[Target | Tensor]
    index: Tensor

    def split(self, parts: int) -> list[PictureBatch]:
        """At most `parts` micro-batches, none empty."""
        rows = self.index.tensor_split(min(parts, len(self.index)))
        ends = torch.tensor([len(part) for part in rows]).cumsum(0).tolist()
        cuts = [slice(end - len(part), end) for part, end in zip(rows, ends, strict=True)]
        return [PictureBatch(self.images[of], self.targets[of], self.index[of]) for of in cuts]


class Reader:
    """What a process that reads pictures does: a step's, with their targets, as they look in an
    epoch. Without `augment` they are as they are, and so are their targets.

    It gives NumPy's arrays: each of torch's would cost a file descriptor on its way.
    """

    def __init__(self, dataset: AnnotatedSet, augment: Augment | None = None):
        self.dataset, self.augment = dataset, augment
        points = dataset.task == "keypoints"
        self.mirrored = dataset.mirrored_keypoints() if points else None

    def __call__(self, samples: Samples) -> list[tuple[np.ndarray, Any]]:
        return [self._read(samples, i) for i in samples.index]

    def _read(self, samples: Samples, i: int) -> tuple[np.ndarray, Any]:
        image, target = self.dataset[i]
        if self.augment is not None:
            key = rng.hashed(samples.seed, samples.epoch, i, "picture")
            target = target if isinstance(target, Tensor) else learnable(target)
            image, target = self.augment(image, target, key, self.mirrored)
            if not isinstance(target, Tensor):  # a detector draws a size by it
                target["drawn"] = rng.uniform(key, "size").item()
        image = np.ascontiguousarray(image.numpy())
        if isinstance(target, Tensor):
            return image, target.numpy().astype(np.uint8)
        arrays = {n: x.numpy() if isinstance(x, Tensor) else x for n, x in target.items()}
        return image, arrays


def in_torch(read: tuple[np.ndarray, Any]) -> tuple[Tensor, Target | Tensor]:
    """What a `Reader` gave: uint8 [3, H, W], and a target."""
    image, target = read
    if isinstance(target, np.ndarray):
        return torch.from_numpy(image), torch.from_numpy(target).long()
    arrays = target.items()
    known = {n: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for n, x in arrays}
    return torch.from_numpy(image), known


class Colors:
    """What the clean view does to colors: uint8 [3, H, W] -> float32 [3, H, W] on a device.

    Geometry is left out: detectors bring pictures to their own sizes.
    """

    def __init__(self, splits: Splits):
        labeled = splits.clean.ops_of(0)
        kept = {n: op for n, op in labeled if not isinstance(op, GeometricTransform)}
        self.ops: list[Transform] = list(kept.values())
        blocks: dict[str, Part] = splits.blocks["clean"].kwargs["ops"]
        self.spelled = {name: blocks[name].spelled_out() for name in kept}

    def __call__(self, image: Tensor, device: torch.device) -> Tensor:
        made = image.to(device, non_blocking=True).float().div_(255)[None]
        for op in self.ops:
            made = op(made, torch.zeros(1, dtype=torch.int64))
        return made[0]


class AnnotatedBatches:
    """Pictures that have something to be learned, as a `Trainer` takes them.

    Order and views are functions of the seed, the epoch and the picture; one process holds what it
    has asked a few steps ahead.

    Args:
        batch_size: over all processes.

    Attributes:
        kept: positions in the set of the pictures, [n] int64.

    Raises:
        ValueError: no picture, or a batch that is too large or that processes cannot share.
    """

    position = None

    def __init__(
        self, splits: Splits, dataset: AnnotatedSet, augment: Augment, batch_size: int, seed: int
    ):
        self.splits, self.batch_size = splits, batch_size
        self.colors = Colors(splits)
        self.kept = dataset.objects.nonzero()[:, 0]
        if not len(self.kept):
            raise ValueError(f"{dataset.found}: no picture has an object to learn from")
        if len(self.kept) < batch_size:
            found = f"{counted(len(self.kept), 'picture')} with an object"
            raise ValueError(f"{dataset.found}: {found}, fewer than batch_size {batch_size}")
        ranks = distributed.rank(), distributed.world()
        self.sampler = Sampler(len(self.kept), batch_size, seed, True, *ranks)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.reader = Reader(dataset, augment)
        splits.pool.add(self.reader)

    def batches(self, start: int, stop: int, device: torch.device) -> Iterator[PictureBatch]:
        """This rank's share of steps start..stop-1, counted from the training's beginning."""
        ahead: deque[Tensor] = deque()  # positions of batches that are under way

        def samples() -> Iterator[Samples]:
            for epoch, numbers in self.sampler.steps(start, stop):
                ahead.append(self.kept[numbers])
                yield Samples(self.sampler.seed, epoch, ahead[-1].tolist())

        for pictures in read(self.reader, samples(), device, self.splits):
            made = [in_torch(picture) for picture in pictures]
            images = [self.colors(image, device) for image, _ in made]
            targets = [on_device(target, device) for _, target in made]
            yield PictureBatch(images, targets, ahead.popleft())

    def indices(self, step: int) -> Tensor:
        """Positions of this rank's share of a step, [n] int64."""
        return self.kept[self.sampler.index(step)]

    def clean_share(self, device: torch.device) -> Iterable[tuple[Tensor, Tensor]]:
        """None: what is trained does not look at all pictures before an epoch."""
        return ()


def read(
    reader: Callable, samples: Iterable[Samples], device: torch.device, splits: Splits
) -> Iterator[list]:
    """What the reader makes of each, by the run's processes; or by this one, where it has none."""
    count = splits.workers
    if count == "auto":
        count = automatic_workers(False, device)
    return splits.pool.map(reader, samples, count) if count else map(reader, samples)


def on_device(target: Target | Tensor, device: torch.device) -> Target | Tensor:
    if isinstance(target, Tensor):
        return target.to(device, non_blocking=True)
    items = target.items()
    return {n: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for n, x in items}
