"""Labeled training images as batches of random views, for classifiers that an evaluation trains."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ssl_zoo.config import Part
from ssl_zoo.core import Batch
from ssl_zoo.data import Sampler, Splits, Views
from ssl_zoo.data.image import GeometricTransform, Samples
from ssl_zoo.data.image.geometry import HorizontalFlip, RandomResizedCrop
from ssl_zoo.data.loader import Batches, on_device, read_batches
from ssl_zoo.system import distributed


class LabeledViews:
    """Some images of the training split, through one random view each, as a `Trainer` takes them.

    Order and views are functions of the run's seed, the epoch and the image.

    Args:
        images: their positions in the split, [n] int64.
        batch_size: over all processes; all the images, where they are fewer.
        drop_last: of `Sampler`.

    Attributes:
        position: None, as of any data with epochs.

    Raises:
        ValueError: too few images, a batch that processes cannot share, views of several sizes.
    """

    position = None

    def __init__(
        self, splits: Splits, views: Views, images: Tensor, batch_size: int, drop_last: bool
    ):
        self.splits, self.images = splits, images
        dataset, world = splits.split("train"), distributed.world()
        views.check_sizes(dataset.varies)
        if len(images) < world:
            raise ValueError(f"{len(images)} labeled images for {world} processes")
        self.batch_size = min(batch_size, len(images) - len(images) % world)
        ranks = distributed.rank(), world
        self.sampler = Sampler(len(images), self.batch_size, splits.seed, drop_last, *ranks)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.source = Batches(dataset, views, Successors(self.sampler, images))
        splits.pool.add(self.source)

    def batches(self, start: int, stop: int, device: torch.device | str) -> Iterator[Batch]:
        """This rank's share of steps start..stop-1, counted from the training's beginning."""
        splits, seed = self.splits, self.splits.seed
        samples = (
            Samples(seed, epoch, self.images[numbers])
            for epoch, numbers in self.sampler.steps(start, stop)
        )
        loaded = read_batches(self.source, samples, device, splits.pool, splits.workers)
        return on_device(splits.noted(self.source, loaded), self.source, device)

    def indices(self, step: int) -> Tensor:
        """Positions of this rank's share of a step, [n] int64."""
        return self.images[next(self.sampler.steps(step, step + 1))[1]]

    def clean_share(self, device: torch.device | str) -> Iterable[tuple[Tensor, Tensor]]:
        """None: what an evaluation trains does not look at all images before an epoch."""
        return ()


class Successors:
    """A sampler's `successors`, of images that stand at these positions [n]."""

    def __init__(self, sampler: Sampler, images: Tensor):
        self.sampler, self.images = sampler, images

    def __call__(self, epoch: int, position: int) -> list[int]:
        number = int((self.images == position).nonzero())
        return self.images[self.sampler.successors(epoch, number)].tolist()


def crops_and_flips(splits: Splits) -> Views:
    """Random crops of the clean images' size, and flips; else what the clean view does: colors."""
    ops = {"crop": Part(RandomResizedCrop, size=clean_size(splits)), "flip": Part(HorizontalFlip)}
    for label, op in splits.clean.ops_of(0):
        if not isinstance(op, GeometricTransform):
            ops[label] = Part.of(op)
    return Views(ops=ops)


def clean_size(splits: Splits) -> tuple[int, int]:
    """(height, width) of the images as evaluations see them."""
    dataset = splits.split("train")
    shape = [3, 1, 1]  # of images that vary it does not matter: some operation makes them of one
    if not dataset.varies:
        shape = list(dataset.fetch(torch.zeros(1, dtype=torch.int64))[0].shape)
    shapes = torch.tensor([shape])
    for _, op in splits.clean.ops_of(0):
        shapes = op.output_shapes(shapes)
    height, width = shapes[0, 1:].tolist()
    return height, width
