"""From a data set to batches on the training device."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ssl_zoo.config import NonNegativeInt
from ssl_zoo.core import Batch
from ssl_zoo.data.image import Samples, Views
from ssl_zoo.data.image.decode import BadImage
from ssl_zoo.data.source import Source
from ssl_zoo.data.workers import Workers
from ssl_zoo.system import rng
from ssl_zoo.system.hardware import cores


class Loaded(NamedTuple):
    """What a worker gives back; numbers as lists, since each tensor costs a file descriptor."""

    samples: Samples  # whose images these are, without records
    labels: list[int]  # their classes
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
        kept, labels = ([x[row] for row in rows] for x in (self.asked, self.labels))
        images, boxes = ([x[rows] for x in part] for part in (self.images, self.boxes))
        samples = self.samples._replace(index=kept)
        return Loaded(samples, labels, kept, images, boxes, self.unreadable)


class Batches:
    """A source's images as whole batches, brought to one size: what a worker does.

    Args:
        successors: (epoch, position) -> who takes the place of an image that cannot be read, the
            first of them that can be. In a stream there is nobody.
    """

    def __init__(
        self,
        dataset: Source,
        views: Views,
        successors: Callable[[int, int], Iterable[int]] | None,
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
        if samples.records is not None:
            return self._load(samples, samples.index, {})
        while True:
            index, tried = self._substituted(samples)
            try:
                return self._load(samples._replace(index=index), samples.index, tried)
            except BadImage:
                if not self._search(samples._replace(index=index)):
                    raise

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

    def _search(self, samples: Samples) -> bool:
        """Finds the unreadable ones, one by one; whether there are any."""
        for i in samples.index:
            one = torch.tensor([i])
            try:
                if self.dataset.scaled:
                    self.dataset.shapes(one)
                self._fetch(samples._replace(index=one), one)
            except BadImage as error:
                self.unreadable[i] = str(error)
        return any(i in self.unreadable for i in samples.index)

    def _fetch(self, samples: Samples, at: Any) -> Tensor | list[Tensor]:
        """Whole images; what is drawn for one is a function of its seed, epoch and position."""
        if not self.dataset.draws:
            return self.dataset.fetch(at)
        keys = rng.hashed(samples.seed, samples.epoch, samples.index, "image")
        return self.dataset.fetch(at, keys)

    def _load(self, there: Samples, asked: list[int], unreadable: dict[int, str]) -> Loaded:
        dataset, views, index = self.dataset, self.views, torch.tensor(there.index)
        samples = there._replace(index=index)
        at = index if there.records is None else there.records
        numbers, shrink = range(views.count), None
        if dataset.scaled:
            shapes = dataset.shapes(at)  # [n, 3]
            shrink = views.shrink_factors(shapes, samples)
            images = dataset.fetch(at, shrink)
        else:
            images = self._fetch(samples, at)
            if dataset.varies:
                shapes = torch.tensor([image.shape for image in images])
            else:
                shapes = torch.tensor(images.shape[1:]).expand(len(index), 3)
        boxes = [views.boxes(v, shapes, samples) for v in numbers] if self.boxes else []
        if dataset.varies:  # a file is decoded once for all its views
            images = [views.bring_to_one_size(v, images, samples, shapes, shrink) for v in numbers]
        else:
            images = [images]
        labels = dataset.labels_of(at).tolist()
        return Loaded(there._replace(records=None), labels, asked, images, boxes, unreadable)


def automatic_workers(in_ram: bool, device: torch.device) -> int:
    """How many processes fetch images: on a GPU this process's share of the cores but one, 1-16."""
    if in_ram:
        return 0
    if device.type == "cpu":  # a step takes many times as long as decoding its images
        return 1
    share = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(share - 1, 1), 16)


WorkerCount = NonNegativeInt | Literal["auto"]


def read_batches(
    reader: Batches,
    samples: Iterable[Samples],
    device: torch.device | str,
    workers: Workers,
    count: WorkerCount,
) -> Iterator[Loaded]:
    """Images of each of `samples`, by so many processes; 0: in this one, when they are needed."""
    device = torch.device(device)
    if count == "auto":
        count = automatic_workers(reader.dataset.in_ram, device)
    listed = (of._replace(index=of.index.tolist()) for of in samples)
    if count == 0:
        return map(reader.close_to(device), listed)
    loaded = workers.map(reader, listed, count)
    return _pinned(loaded) if device.type == "cuda" else loaded


def _pinned(batches: Iterator[Loaded]) -> Iterator[Loaded]:
    """The same in memory that a GPU copies from without a wait; a thread does it, one ahead."""

    def pin() -> Loaded | None:
        if (loaded := next(batches, None)) is None:
            return None
        images, boxes = ([x.pin_memory() for x in part] for part in (loaded.images, loaded.boxes))
        return loaded._replace(images=images, boxes=boxes)

    here = torch.cuda.current_device()  # a thread starts on the first GPU, which is another rank's
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(here,)) as thread:
        following = thread.submit(pin)
        while (loaded := following.result()) is not None:
            following = thread.submit(pin)
            yield loaded


def on_device(
    loaded: Iterable[Loaded], reader: Batches, device: torch.device | str
) -> Iterator[Batch]:
    """Batches; a GPU makes each while the one before is in use."""
    device = torch.device(device)
    return one_ahead(_made(loaded, reader, device), device)


def _made(loaded: Iterable[Loaded], reader: Batches, device: torch.device) -> Iterator[Batch]:
    for samples, labels, _, images, boxes, _ in loaded:
        index = torch.tensor(samples.index)
        images = [x.to(device, non_blocking=True) for x in images]
        yield Batch(
            reader.views.make(images, reader.dataset.varies, samples._replace(index=index)),
            index.to(device, non_blocking=True),
            torch.tensor(labels).to(device, non_blocking=True),
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
