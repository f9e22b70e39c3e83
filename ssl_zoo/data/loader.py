"""From a data set to batches on the training device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.utils import save_image

from ssl_zoo import distributed
from ssl_zoo.data.datasets import ImageSet
from ssl_zoo.data.sampler import Sampler
from ssl_zoo.data.transforms import Views
from ssl_zoo.method import Batch
from ssl_zoo.registry import DATASETS, ConfigError, Part, join


class Job(NamedTuple):
    """What a worker is asked for: samples `index` [n] as they look in `epoch`."""

    epoch: int
    index: Tensor


class Loaded(NamedTuple):
    """What it gives back."""

    epoch: int
    index: Tensor  # [n]
    label: Tensor  # [n]
    images: list[Tensor]  # for each view uint8 [n, C, h, w]; one for all views if sizes are fixed


class Fetch:
    """A worker's part: fetches images and, where they vary in size, brings them to one.

    A map-style data set for torch's DataLoader whose items are whole batches.
    """

    def __init__(self, dataset: ImageSet, views: Views, numbers: range, seed: int):
        self.dataset, self.views, self.numbers, self.seed = dataset, views, numbers, seed

    def __getitem__(self, job: Job) -> Loaded:
        epoch, index = job
        images = self.dataset.fetch(index)
        if self.dataset.varies:
            begin = partial(self.views.begin, seed=self.seed, epoch=epoch, index=index)
            images = [begin(view, images) for view in self.numbers]
        else:
            images = [images]
        return Loaded(epoch, index, self.dataset.labels[index], images)


class Data:
    """A data set, its views and its batches.

    Nothing here uses torch's global random numbers, and every batch is a function of (seed, step),
    so a resumed run continues with the batches it would have had.

    Args:
        views: random views for training.
        clean: operations without randomness, for evaluation; its first view is used.
        batch_size: global, over all processes.
        drop_last: leave out an epoch's last, smaller batch.
        workers: processes that fetch (and decode) images; 0: the training process itself, best for
            sets that live in RAM.

    Attributes:
        labels: [num_samples] int64, of the pre-training split; -1 where unknown.

    Raises:
        ValueError: the batch does not fit the data set or the number of processes, or images vary
            in size and the views do not bring them to one.
    """

    def __init__(
        self,
        seed: int,
        *,
        dataset: Part[DATASETS],
        views: Part[Views],
        clean: Part[Views],
        batch_size: int,
        drop_last: bool = True,
        workers: int = 0,
    ):
        self.validate(batch_size=batch_size, workers=workers, clean=clean)
        self.seed, self.batch_size, self.workers = seed, batch_size, workers
        self.views, self.clean = views(), clean()
        self._build = dataset
        self.dataset: ImageSet = dataset(split="pretrain")
        self._splits = {self.dataset.split: self.dataset}
        if self.dataset.varies:
            for view in range(self.views.count):
                self.views.lead(view)
            self.clean.lead(0)
        self.num_samples = len(self.dataset)
        self.num_classes = self.dataset.num_classes
        self.labels = self.dataset.labels
        self.sampler = Sampler(
            self.num_samples, batch_size, seed, drop_last, distributed.rank(), distributed.world()
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch

    @staticmethod
    def validate(*, batch_size: int, clean: Part, workers: int = 0, **_) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, found {batch_size}")
        if workers < 0:
            raise ValueError(f"workers is a number of processes, at least 0, found {workers}")
        for label, op in clean.kwargs.get("ops", {}).items():
            if op.target.random:
                raise ConfigError(
                    join("clean.ops", label),
                    "evaluation takes no random operation",
                    found=op.target.__name__,
                    expected="Resize, CenterCrop or Normalize",
                )

    def split(self, name: str) -> ImageSet:
        """'pretrain', 'train' or 'test', loaded at first use."""
        if name == "pretrain":
            return self.dataset
        if name not in self._splits:
            self._splits[name] = self._build(split=name)
        return self._splits[name]

    def batches(self, start: int, stop: int, device: torch.device | str) -> Iterator[Batch]:
        """This rank's share of steps start..stop-1, counted from the run's beginning.

        The epoch of a step is step // steps_per_epoch.
        """
        jobs = (Job(epoch, index) for epoch, index in self.sampler.steps(start, stop))
        numbers = range(self.views.count)
        device = torch.device(device)
        for loaded in self._load(Fetch(self.dataset, self.views, numbers, self.seed), jobs, device):
            yield Batch(
                self._finish(self.views, numbers, loaded, device),
                loaded.index.to(device, non_blocking=True),
                loaded.label.to(device, non_blocking=True),
            )

    def indices(self, step: int) -> Tensor:
        """Which samples are this rank's share of a step, [n] int64."""
        return next(self.sampler.steps(step, step + 1))[1]

    def clean_batches(
        self,
        split: str,
        device: torch.device | str,
        batch_size: int = 512,
        limit: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(images [n, C, H, W] after the clean operations, labels [n]) of a split, in order.

        Args:
            split: 'train' or 'test'.
            limit: that many samples, evenly spaced (files are often sorted by class); None: all.
        """
        dataset = self.split(split)
        count = len(dataset) if limit is None else min(limit, len(dataset))
        index = torch.arange(count) * len(dataset) // count  # [count]
        jobs = (Job(0, part) for part in index.split(batch_size))
        device = torch.device(device)
        for loaded in self._load(Fetch(dataset, self.clean, range(1), self.seed), jobs, device):
            (images,) = self._finish(self.clean, range(1), loaded, device)
            yield images, loaded.label.to(device, non_blocking=True)

    def _load(self, fetch: Fetch, jobs: Iterable[Job], device: torch.device) -> Iterator[Loaded]:
        if self.workers == 0:
            return map(fetch.__getitem__, jobs)
        # The generator is the loader's own: it draws a seed for its workers from somewhere.
        return iter(
            DataLoader(
                fetch,
                batch_size=None,
                sampler=jobs,
                num_workers=self.workers,
                generator=torch.Generator(),
                pin_memory=device.type == "cuda",
            )
        )

    def _finish(
        self, views: Views, numbers: range, loaded: Loaded, device: torch.device
    ) -> list[Tensor]:
        """Each view, float32 [n, C, h, w], on the device."""
        images = [x.to(device, non_blocking=True) for x in loaded.images]
        if len(images) == 1:
            images *= len(numbers)
        done = [views.lead(view) if self.dataset.varies else 0 for view in numbers]
        return [
            views.finish(view, images[view], self.seed, loaded.epoch, loaded.index, done[view])
            for view in numbers
        ]


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
