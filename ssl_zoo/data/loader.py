"""From a data set to batches on the training device."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssl_zoo.config import NonNegativeInt
from ssl_zoo.core import Batch
from ssl_zoo.data.image import Samples, Views
from ssl_zoo.data.image.decode import BadImage
from ssl_zoo.data.source import ImageSet
from ssl_zoo.data.workers import Workers
from ssl_zoo.system.hardware import cores


class Loaded(NamedTuple):
    """What a worker gives back; positions as lists, since each tensor costs a file descriptor."""

    samples: Samples  # whose images these are
    asked: list[int]  # for which; another position where one cannot be read
    images: list[Tensor]  # for each view uint8 [n, C, h, w]; one for all views if sizes are fixed
    boxes: list[Tensor]  # for each view [n, 4], if asked for
    unreadable: dict[int, str]  # why, by position, of all that were tried

    def only_asked(self) -> "Loaded":
        """Without those that stand in for others; there may be none left."""
        if not self.unreadable:
            return self
        pairs = zip(self.samples.index, self.asked, strict=True)
        rows = [row for row, (index, asked) in enumerate(pairs) if index == asked]
        kept = [self.asked[row] for row in rows]
        images, boxes = ([x[rows] for x in part] for part in (self.images, self.boxes))
        return self._replace(
            samples=self.samples._replace(index=kept), asked=kept, images=images, boxes=boxes
        )


class Batches:
    """A data set's images as whole batches, brought to one size: what a worker does.

    Args:
        successors: (epoch, position) -> who takes the place of an image that cannot be read, the
            first of them that can be.
    """

    def __init__(
        self,
        dataset: ImageSet,
        views: Views,
        successors: Callable[[int, int], Iterable[int]],
        boxes: bool = False,
    ):
        self.dataset, self.views, self.successors, self.boxes = dataset, views, successors, boxes
        self.unreadable: dict[int, str] = {}  # known in this process so far

    def close_to(self, device: torch.device) -> "Batches":
        near = copy.copy(self)
        near.dataset = self.dataset.held_close_to(device)
        return near

    def __call__(self, samples: Samples) -> Loaded:
        """Which images are there is a function of the files alone, not of what was known before.

        Raises:
            BadImage: so many cannot be read that none is left for a place.
        """
        while True:
            index, tried = self._substituted(samples)
            there = samples._replace(index=index)
            try:
                images, boxes = self._load(there._replace(index=torch.tensor(index)))
            except BadImage:
                if not self._search(index):
                    raise
            else:
                return Loaded(there, samples.index, images, boxes, tried)

    def _substituted(self, samples: Samples) -> tuple[list[int], dict[int, str]]:
        """Positions of which none is known as unreadable; why, of those that are."""
        index, tried = [], {}
        for asked in samples.index:
            position, others = asked, None
            while (why := self.unreadable.get(position)) is not None:
                tried[position] = why
                others = others or iter(self.successors(samples.epoch, asked))
                position = next(others, None)
                if position is None:
                    raise BadImage(f"{why}; no other image can take its place")
            index.append(position)
        return index, tried

    def _search(self, index: list[int]) -> bool:
        """Finds the unreadable ones, one by one; whether there are any."""
        for i in index:
            one = torch.tensor([i])
            try:
                if self.dataset.scaled:
                    self.dataset.shapes(one)
                self.dataset.fetch(one)
            except BadImage as error:
                self.unreadable[i] = str(error)
        return any(i in self.unreadable for i in index)

    def _load(self, samples: Samples) -> tuple[list[Tensor], list[Tensor]]:
        """Images and boxes, as in `Loaded`."""
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
        return images, boxes


def automatic_workers(in_ram: bool, device: torch.device) -> int:
    """How many processes fetch images: on a GPU this process's share of the cores but one, 1-16."""
    if in_ram:
        return 0
    if device.type == "cpu":  # a step takes many times as long as decoding its images
        return 1
    share = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(share - 1, 1), 16)


WorkerCount = NonNegativeInt | Literal["auto"]


def fetch(
    source: Batches,
    samples: Iterable[Samples],
    device: torch.device | str,
    workers: Workers,
    count: WorkerCount,
) -> Iterator[Loaded]:
    """Images of each of `samples`, by so many processes; 0: in this one, when they are needed."""
    device = torch.device(device)
    if count == "auto":
        count = automatic_workers(source.dataset.in_ram, device)
    listed = (of._replace(index=of.index.tolist()) for of in samples)
    if count == 0:
        return map(source.close_to(device), listed)
    loaded = workers.map(source, listed, count)
    return _pinned(loaded) if device.type == "cuda" else loaded


def _pinned(batches: Iterator[Loaded]) -> Iterator[Loaded]:
    """The same in memory that a GPU copies from without a wait; a thread does it, one ahead."""

    def pin() -> Loaded | None:
        if (loaded := next(batches, None)) is None:
            return None
        images, boxes = ([x.pin_memory() for x in part] for part in (loaded.images, loaded.boxes))
        return loaded._replace(images=images, boxes=boxes)

    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(pin)
        while (loaded := following.result()) is not None:
            following = thread.submit(pin)
            yield loaded


def on_device(
    loaded: Iterable[Loaded], source: Batches, device: torch.device | str
) -> Iterator[Batch]:
    """Batches; a GPU makes each while the one before is in use."""
    device = torch.device(device)
    return one_ahead(_made(loaded, source, device), device)


def _made(loaded: Iterable[Loaded], source: Batches, device: torch.device) -> Iterator[Batch]:
    for samples, _, images, boxes, _ in loaded:
        index = torch.tensor(samples.index)
        images = [x.to(device, non_blocking=True) for x in images]
        yield Batch(
            source.views.make(images, source.dataset.varies, samples._replace(index=index)),
            index.to(device, non_blocking=True),
            source.dataset.labels[index].to(device, non_blocking=True),
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
