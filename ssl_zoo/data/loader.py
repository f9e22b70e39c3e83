"""From a data set to batches on the training device."""

import os
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_zoo.config import NonNegativeInt
from ssl_zoo.core import Batch
from ssl_zoo.data.image import Samples, Views
from ssl_zoo.data.source import ImageSet
from ssl_zoo.system.hardware import cores


class Loaded(NamedTuple):
    """What a worker gives back."""

    samples: Samples
    label: Tensor  # [n]
    images: list[Tensor]  # for each view uint8 [n, C, h, w]; one for all views if sizes are fixed
    boxes: list[Tensor]  # for each view [n, 4], if asked for


class Batches:
    """A data set for torch's DataLoader whose items are whole batches, brought to one size."""

    def __init__(self, dataset: ImageSet, views: Views, boxes: bool = False):
        self.dataset, self.views, self.boxes = dataset, views, boxes

    def __getitem__(self, samples: Samples) -> Loaded:
        dataset, views, index = self.dataset, self.views, samples.index
        numbers, shrink = range(views.count), None
        if dataset.scaled:
            shapes = dataset.shapes(index)  # [n, 3]
            shrink = views.shrink_factors(shapes, samples)
            images = dataset.fetch(index, shrink)
        else:
            images = dataset.fetch(index)
            if dataset.varies:
                shapes = torch.tensor([image.shape for image in images])
            else:
                shapes = torch.tensor(images.shape[1:]).expand(len(index), 3)
        boxes = [views.boxes(v, shapes, samples) for v in numbers] if self.boxes else []
        if dataset.varies:  # a file is decoded once for all its views
            images = [views.bring_to_one_size(v, images, samples, shapes, shrink) for v in numbers]
        else:
            images = [images]
        return Loaded(samples, dataset.labels[index], images, boxes)


def automatic_workers(in_ram: bool, device: torch.device) -> int:
    """How many processes fetch images: on a GPU this process's share of the cores but one, 1-16."""
    if in_ram:
        return 0
    if device.type == "cpu":  # a step takes many times as long as decoding its images
        return 1
    share = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(share - 1, 1), 16)


Workers = NonNegativeInt | Literal["auto"]


def load(
    dataset: ImageSet,
    views: Views,
    batches: Iterable[Samples],
    device: torch.device | str,
    workers: Workers,
    boxes: bool = False,
) -> Iterator[Batch]:
    """Batches on the device; with `boxes` they say where their views lie in the images."""
    device = torch.device(device)
    if workers == "auto":
        workers = automatic_workers(dataset.in_ram, device)
    if workers == 0:
        held = dataset.held_close_to(device)
        loaded = map(Batches(held, views, boxes).__getitem__, batches)
    else:
        # The generator is the loader's own: it draws a seed for its workers from somewhere.
        loaded = DataLoader(
            Batches(dataset, views, boxes),
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            generator=torch.Generator(),
            pin_memory=device.type == "cuda",
        )
    yield from one_ahead(_on_device(loaded, dataset.varies, views, device), device)


def _on_device(
    loaded: Iterable[Loaded], varied: bool, views: Views, device: torch.device
) -> Iterator[Batch]:
    for samples, label, images, boxes in loaded:
        images = [x.to(device, non_blocking=True) for x in images]
        yield Batch(
            views.make(images, varied, samples),
            samples.index.to(device, non_blocking=True),
            label.to(device, non_blocking=True),
            [box.to(device, non_blocking=True) for box in boxes],
        )


def one_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches; a GPU makes each while the one before is in use, on a stream of its own."""
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))  # images held there may be on their way

    def make() -> Batch | None:
        with torch.cuda.stream(side):
            return next(batches, None)

    following = make()
    while following is not None:
        batch, user = following, torch.cuda.current_stream(device)
        user.wait_stream(side)  # before more is queued there: waits for `batch` and for no more
        for part in batch:
            for tensor in [part] if isinstance(part, Tensor) else part:
                tensor.record_stream(user)  # else its memory might be reused under the user
        following = make()
        yield batch
