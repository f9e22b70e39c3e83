"""What training uses of a data set: its views, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.utils import save_image

from ssl_zoo.config import DATASETS, OfMachine, Part, PositiveInt
from ssl_zoo.config.constraints import constrained
from ssl_zoo.core import Batch
from ssl_zoo.data.image import Samples, Views
from ssl_zoo.data.loader import Workers, load
from ssl_zoo.data.sampler import Sampler
from ssl_zoo.data.source import ImageSet
from ssl_zoo.data.splits import Splits
from ssl_zoo.system import distributed


@constrained
class Data:
    """A data set, its views and its batches.

    Nothing here uses torch's global random numbers, and every batch is a function of (seed, step),
    so a resumed run continues with the batches it would have had.

    Args:
        boxes: batches say where their views lie in the images.
        views_needed: how many views are made where `views.count` is null.
        views: random views for training.
        clean: operations without randomness, for evaluation; its first view is used.
        batch_size: global, over all processes.
        drop_last: leave out an epoch's last, smaller batch.
        workers: processes that fetch (and decode) images; 0: the training process itself; auto: by
            the data set and the cores, see `automatic_workers`. Each has one thread.

    Attributes:
        splits: the same data set for evaluations.
        labels: [num_samples] int64, of the pre-training split; -1 where unknown.

    Raises:
        ValueError: the batch does not fit the data set or the number of processes, or images vary
            in size and the views do not bring them to one.
    """

    validate = staticmethod(Splits.validate)

    def __init__(
        self,
        seed: int,
        boxes: bool = False,
        views_needed: int = 1,
        *,
        dataset: Part[DATASETS],
        views: Part[Views],
        clean: Part[Views],
        batch_size: PositiveInt,
        drop_last: bool = True,
        workers: OfMachine[Workers] = "auto",
    ):
        self.seed, self.boxes = seed, boxes
        self.batch_size, self.workers = batch_size, workers
        self.views: Views = views(views_needed=views_needed)
        self.splits = Splits(seed, dataset=dataset, clean=clean, workers=workers)
        self.dataset: ImageSet = self.splits.split("pretrain")
        self.views.check_sizes(self.dataset.varies)
        self.num_samples = len(self.dataset)
        self.num_classes = self.dataset.num_classes
        self.labels = self.dataset.labels
        self.sampler = Sampler(
            self.num_samples, batch_size, seed, drop_last, distributed.rank(), distributed.world()
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch

    def batches(self, start: int, stop: int, device: torch.device | str) -> Iterator[Batch]:
        """This rank's share of steps start..stop-1, counted from the run's beginning.

        The epoch of a step is step // steps_per_epoch.
        """
        samples = (Samples(self.seed, *step) for step in self.sampler.steps(start, stop))
        return load(self.dataset, self.views, samples, device, self.workers, self.boxes)

    def indices(self, step: int) -> Tensor:
        """Which samples are this rank's share of a step, [n] int64."""
        return next(self.sampler.steps(step, step + 1))[1]

    def clean_share(
        self, device: torch.device | str, batch_size: int = 512
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(images [n, C, H, W] after the clean operations, positions [n]) of this rank's share.

        Of the pre-training images, in order; a rank's share is a run of them, perhaps empty.
        """
        index = torch.arange(self.num_samples).tensor_split(distributed.world())
        parts = index[distributed.rank()].split(batch_size)
        samples = (Samples(self.seed, 0, part) for part in parts if len(part))
        for batch in load(self.dataset, self.splits.clean, samples, device, self.workers):
            yield batch.views[0], batch.index

    def split(self, name: str) -> ImageSet:
        return self.splits.split(name)

    def clean_batches(self, *args, **kwargs) -> Iterator[tuple[Tensor, Tensor]]:
        return self.splits.clean_batches(*args, **kwargs)


def view_grid(data: Data, path: str | Path, samples: int = 8) -> None:
    """Writes a PNG of the first epoch's first samples: a row each, the original, then its views."""
    index = data.sampler.permutation(0)[:samples]
    images = data.dataset.fetch(index)
    views = data.views(images, data.seed, 0, index)
    columns = [[image[None].float() / 255 for image in images]]
    columns += [list(data.views.denormalize(v, view).split(1)) for v, view in enumerate(views)]
    side = max(96, max(max(view.shape[2:]) for view in views))
    cells = [
        # Nearest neighbour when enlarging: the pixels are what one wants to see.
        F.resize(cell, [side, side], interpolation=InterpolationMode.NEAREST_EXACT)
        if max(cell.shape[2:]) < side
        else F.resize(cell, [side, side], antialias=True)
        for row in zip(*columns, strict=True)
        for cell in row
    ]
    save_image(torch.cat(cells), path, nrow=len(columns), padding=4, pad_value=1.0)
