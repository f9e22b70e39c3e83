"""From a data set to batches on the training device."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.utils import save_image

from ssl_zoo.config import DATASETS, ConfigError, Part, join
from ssl_zoo.core import Batch
from ssl_zoo.data.datasets import ImageSet
from ssl_zoo.data.image.transforms import Views
from ssl_zoo.data.sampler import Sampler
from ssl_zoo.system import distributed
from ssl_zoo.system.hardware import cores


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
    boxes: list[Tensor]  # for each view [n, 4], if asked for


class Fetch:
    """A worker's part: fetches images and, where they vary in size, brings them to one.

    A map-style data set for torch's DataLoader whose items are whole batches.
    """

    def __init__(
        self, dataset: ImageSet, views: Views, numbers: range, seed: int, boxes: bool = False
    ):
        self.dataset, self.views, self.numbers = dataset, views, numbers
        self.seed, self.boxes = seed, boxes

    def __getitem__(self, job: Job) -> Loaded:
        index = job.index
        of = {"seed": self.seed, "epoch": job.epoch, "index": index}
        if self.dataset.varies:
            images, shapes = self._views(**of)
        else:
            images, shapes = [self.dataset.fetch(index)], None
        boxes = []
        if self.boxes:
            if shapes is None:
                shapes = torch.tensor(images[0].shape[1:]).expand(len(index), 3)
            boxes = [self.views.boxes(view, shapes, **of) for view in self.numbers]
        return Loaded(job.epoch, index, self.dataset.labels[index], images, boxes)

    def _views(self, index: Tensor, **of) -> tuple[list[Tensor], Tensor]:
        """Each view's images [n, C, h, w], every file decoded once for all; the files' shapes."""
        of["index"] = index
        if self.dataset.scaled:
            shapes = self.dataset.shapes(index)
            shrink = self.views.shrink(self.numbers, shapes, **of)
            images = self.dataset.fetch(index, shrink)
        else:
            images, shrink = self.dataset.fetch(index), None
            shapes = torch.tensor([image.shape for image in images])  # [n, 3]
        begin = partial(self.views.begin, images=images, shapes=shapes, shrink=shrink, **of)
        return [begin(view) for view in self.numbers], shapes


def automatic_workers(in_ram: bool, device: torch.device) -> int:
    """How many processes should fetch images.

    None where they are in RAM. On a GPU this process's share of the cores (torchrun says how many
    training processes the machine has) but one, from 1 to 16. Where the CPU also trains, one: a
    step takes many times as long as decoding its images.
    """
    if in_ram:
        return 0
    if device.type == "cpu":
        return 1
    share = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(share - 1, 1), 16)


Item = TypeVar("Item", bound=tuple)


def ahead(items: Iterator[Item], device: torch.device) -> Iterator[Item]:
    """The same items, each made while the one before is in use: on a GPU, on a stream of its own.

    Without it a batch's copy and views would wait in the queue behind the training step before.

    Args:
        items: tuples of tensors and lists of tensors, made when asked for.
    """
    if device.type != "cuda":
        yield from items
        return
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))  # images held there may be on their way

    def make() -> Item | None:
        with torch.cuda.stream(side):
            return next(items, None)

    following = make()
    while following is not None:
        item, user = following, torch.cuda.current_stream(device)
        user.wait_stream(side)  # before more is queued there: waits for `item` and for no more
        for part in item:
            for tensor in [part] if isinstance(part, Tensor) else part:
                tensor.record_stream(user)  # else its memory might be reused under the user
        following = make()
        yield item


class Data:
    """A data set, its views and its batches.

    Nothing here uses torch's global random numbers, and every batch is a function of (seed, step),
    so a resumed run continues with the batches it would have had.

    Args:
        boxes: batches say where their views lie in the images.
        views: random views for training.
        clean: operations without randomness, for evaluation; its first view is used.
        batch_size: global, over all processes.
        drop_last: leave out an epoch's last, smaller batch.
        workers: processes that fetch (and decode) images; 0: the training process itself; auto: by
            the data set and the cores, see `automatic_workers`. Each has one thread.

    Attributes:
        labels: [num_samples] int64, of the pre-training split; -1 where unknown.

    Raises:
        ValueError: the batch does not fit the data set or the number of processes, or images vary
            in size and the views do not bring them to one.
    """

    def __init__(
        self,
        seed: int,
        boxes: bool = False,
        *,
        dataset: Part[DATASETS],
        views: Part[Views],
        clean: Part[Views],
        batch_size: int,
        drop_last: bool = True,
        workers: int | Literal["auto"] = "auto",
    ):
        self.validate(batch_size=batch_size, workers=workers, clean=clean)
        self.seed, self.boxes = seed, boxes
        self.batch_size, self.workers = batch_size, workers
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
    def validate(*, batch_size: int, clean: Part, workers: int | str = 0, **_) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, found {batch_size}")
        if workers != "auto" and workers < 0:
            raise ValueError(
                f"workers is a number of processes, at least 0, or auto; found {workers}"
            )
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
        device = torch.device(device)
        yield from ahead(self._batches(jobs, device), device)

    def _batches(self, jobs: Iterable[Job], device: torch.device) -> Iterator[Batch]:
        numbers = range(self.views.count)
        for loaded in self._load(self.dataset, self.views, numbers, jobs, device, self.boxes):
            yield Batch(
                self._finish(self.views, numbers, loaded, device),
                loaded.index.to(device, non_blocking=True),
                loaded.label.to(device, non_blocking=True),
                [box.to(device, non_blocking=True) for box in loaded.boxes],
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
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(images [n, C, H, W] after the clean operations, labels [n]) of a split, in order.

        Args:
            split: 'train' or 'test'.
            limit: that many samples, evenly spaced (files are often sorted by class); None: all.
            share: (r, n) gives the r-th of n runs of whole batches; the first runs get one more.
        """
        dataset = self.split(split)
        count = len(dataset) if limit is None else min(limit, len(dataset))
        index = torch.arange(count) * len(dataset) // count  # [count]
        batches = index.split(batch_size)
        number, shares = share
        mine = torch.arange(len(batches)).tensor_split(shares)[number]
        jobs = (Job(0, batches[i]) for i in mine)
        device = torch.device(device)
        for batch in ahead(self._clean_batches(dataset, jobs, device), device):
            yield batch.views[0], batch.label

    def clean_share(
        self, device: torch.device | str, batch_size: int = 512
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(images [n, C, H, W] after the clean operations, positions [n]) of this rank's share.

        Of the pre-training images, in order; a rank's share is a run of them, perhaps empty.
        """
        index = torch.arange(self.num_samples).tensor_split(distributed.world())
        jobs = (Job(0, part) for part in index[distributed.rank()].split(batch_size) if len(part))
        device = torch.device(device)
        for batch in ahead(self._clean_batches(self.dataset, jobs, device), device):
            yield batch.views[0], batch.index

    def _clean_batches(
        self, dataset: ImageSet, jobs: Iterable[Job], device: torch.device
    ) -> Iterator[Batch]:
        for loaded in self._load(dataset, self.clean, range(1), jobs, device):
            yield Batch(
                self._finish(self.clean, range(1), loaded, device),
                loaded.index.to(device, non_blocking=True),
                loaded.label.to(device, non_blocking=True),
            )

    def _load(
        self,
        dataset: ImageSet,
        views: Views,
        numbers: range,
        jobs: Iterable[Job],
        device: torch.device,
        boxes: bool = False,
    ) -> Iterator[Loaded]:
        workers = self.workers
        if workers == "auto":
            workers = automatic_workers(dataset.in_ram, device)
        if workers == 0:
            near = dataset.near(device)
            return map(Fetch(near, views, numbers, self.seed, boxes).__getitem__, jobs)
        # The generator is the loader's own: it draws a seed for its workers from somewhere.
        return iter(
            DataLoader(
                Fetch(dataset, views, numbers, self.seed, boxes),
                batch_size=None,
                sampler=jobs,
                num_workers=workers,
                generator=torch.Generator(),
                pin_memory=device.type == "cuda",
            )
        )

    def _finish(
        self, views: Views, numbers: range, loaded: Loaded, device: torch.device
    ) -> list[Tensor]:
        """Each view, float32 [n, C, h, w], on the device."""
        images = [x.to(device, non_blocking=True) for x in loaded.images]
        varied = self.dataset.varies
        return views.complete(numbers, images, varied, self.seed, loaded.epoch, loaded.index)


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
