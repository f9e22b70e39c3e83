"""What training and evaluations use of a data set: views of its images, in batches."""

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.utils import save_image

from ssl_zoo.config import (
    DATASETS,
    ConfigError,
    NonNegativeInt,
    OfMachine,
    Part,
    PositiveInt,
    join,
)
from ssl_zoo.config.construct import constrained
from ssl_zoo.core import Batch
from ssl_zoo.data.image import Samples, Views
from ssl_zoo.data.loader import Batches, Loaded, WorkerCount, on_device, read_batches
from ssl_zoo.data.sampler import InOrder, Sampler
from ssl_zoo.data.source import ImageSet, Source
from ssl_zoo.data.workers import Workers
from ssl_zoo.system import distributed

NAMED = 5  # of the files in an error


@constrained
class Splits:
    """The splits of a data set, each loaded at first use, and their images without randomness.

    Args:
        default_clean: in place of a `clean` that is not given.
        pool: processes that others use as well; None: some of its own.
        clean: operations without randomness; the first view is used.
        workers: processes that fetch images, one thread each; 0: the training process itself;
            auto: see `automatic_workers`.
        max_bad: how many images of a split may be unreadable, a number or a share below 1. Those
            are left out of an evaluation.

    Attributes:
        unreadable: split -> name -> why, of the images met so far that could not be read.
    """

    def __init__(
        self,
        seed: int = 0,
        default_clean: Part[Views] | None = None,
        pool: Workers | None = None,
        *,
        dataset: Part[DATASETS],
        clean: Part[Views] | None = None,
        workers: OfMachine[WorkerCount] = "auto",
        max_bad: OfMachine[int | float] = 0,
    ):
        self.seed, self.workers, self.max_bad = seed, workers, max_bad
        self.pool = pool or Workers()
        self.blocks = {"dataset": dataset, "clean": clean or default_clean}  # as they were given
        self.clean: Views = self.blocks["clean"]()
        self.unreadable: dict[str, dict[str, str]] = {}
        self._loaded: dict[str, Source] = {}
        self._readers: dict[int, Batches] = {}  # by the sets' ids

    @staticmethod
    def validate(*, clean: Part | None, max_bad: int | float = 0, **_) -> None:
        if max_bad < 0 or (isinstance(max_bad, float) and not max_bad < 1):
            expected = "a number of images, or a share of them below 1.0"
            raise ConfigError("max_bad", "out of range", found=repr(max_bad), expected=expected)
        for label, op in clean.kwargs["ops"].items() if clean else ():
            if op.target.random:
                found, expected = op.target.__name__, "Resize, CenterCrop, Grayscale, Normalize"
                key, problem = join("clean.ops", label), "evaluation takes no random operation"
                raise ConfigError(key, problem, found=found, expected=expected)

    def split(self, name: str) -> ImageSet:
        """'pretrain', which may be a stream, 'train' or 'test'.

        ValueError where `clean` leaves images of varying size, or those that judge are a stream.
        """
        if name not in self._loaded:
            dataset = self.blocks["dataset"](split=name)
            self.clean.check_sizes(dataset.varies)
            # Pre-training often uses the training images: they are held once.
            dataset = _held(self._loaded, dataset, _registered(self.blocks["dataset"]))
            self._loaded[name] = dataset
            if dataset.sized and id(dataset) not in self._readers:
                reader = Batches(dataset, self.clean, Next(len(dataset)))
                self._readers[id(dataset)] = reader
                self.pool.add(reader)
        if not self._loaded[name].sized and name != "pretrain":
            stream = f"{type(self._loaded[name]).__name__} is a stream"
            raise ValueError(f"{stream}, and an evaluation needs a set: name one, data.dataset")
        return self._loaded[name]

    def found(self) -> list[str]:
        """What was found of the splits that have been loaded, a line each, see `ImageSet.found`."""
        loaded = {id(dataset): dataset for dataset in self._loaded.values()}
        return [dataset.found for dataset in loaded.values() if dataset.found]

    def identity(self) -> dict[str, Any]:
        """Which images these are, wherever they lie: plain values."""
        sets = {name: self.split(name) for name in ("train", "test")}
        # What lies in RAM is what its block says, but of Python's; below a root may be any files.
        said = _registered(self.blocks["dataset"])
        from_files = {n: dataset for n, dataset in sets.items() if not (said and dataset.in_ram)}
        return {
            **self.declared(),
            "train_images": len(sets["train"]),
            "test_images": len(sets["test"]),
            "classes": sets["train"].num_classes,
            **{f"{name}_digest": dataset.identity for name, dataset in from_files.items()},
        }

    def declared(self) -> dict[str, Any]:
        """What is known of that before any data are read."""
        return {name: part.spelled_out(machine=False) for name, part in self.blocks.items()}

    def chosen(self, split: str, limit: int | Tensor | None = None) -> Tensor:
        """Positions of `limit` images, evenly spaced as files are often sorted by class, or all.

        A tensor is the positions themselves.
        """
        if isinstance(limit, Tensor):
            return limit
        size = len(self.split(split))
        count = min(limit or size, size)
        return torch.arange(count) * size // count

    def clean_batches(
        self,
        split: str,
        device: torch.device | str,
        batch_size: int = 512,
        limit: int | Tensor | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images [n, C, H, W] after the clean operations, labels [n], positions [n]) of `chosen`,
        in order, without those that cannot be read.

        A `share` of (r, n) is the r-th of n runs of whole batches; the first runs get one more.
        """
        batches = self.chosen(split, limit).split(batch_size)
        number, shares = share
        mine = torch.arange(len(batches)).tensor_split(shares)[number]
        loaded = map(
            Loaded.only_asked, self._fetch_clean(split, device, (batches[i] for i in mine))
        )
        for batch in self._on_device(split, device, (of for of in loaded if of.asked)):
            yield batch.views[0], batch.label, batch.index

    def clean_with_substitutes(
        self, split: str, device: torch.device | str, batches: Iterable[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(clean images, positions [n]) of each of `batches` [n]; the next image's in place of one
        that cannot be read, so that methods that keep something of each image have it.
        """
        loaded = self._fetch_clean(split, device, batches)
        # Nothing of a clean view depends on its position.
        named = (of._replace(samples=of.samples._replace(index=of.asked)) for of in loaded)
        for batch in self._on_device(split, device, named):
            yield batch.views[0], batch.index

    def _fetch_clean(
        self, split: str, device: torch.device | str, batches: Iterable[Tensor]
    ) -> Iterator[Loaded]:
        reader = self._readers[id(self.split(split))]
        samples = (Samples(self.seed, 0, index) for index in batches)
        return self.noted(reader, read_batches(reader, samples, device, self.pool, self.workers))

    def _on_device(
        self, split: str, device: torch.device | str, loaded: Iterable[Loaded]
    ) -> Iterator[Batch]:
        return on_device(loaded, self._readers[id(self.split(split))], device)

    def noted(self, reader: Batches, loaded: Iterable[Loaded]) -> Iterator[Loaded]:
        """The same; notes what cannot be read. ValueError if that is more than `max_bad`."""
        for batch in loaded:
            if batch.unreadable:
                self._note(reader.dataset, batch.unreadable)
            yield batch

    def _note(self, dataset: ImageSet, unreadable: dict[int, str]) -> None:
        names = dataset.names(torch.tensor(list(unreadable)))
        met = self.unreadable.setdefault(dataset.split, {})
        met |= zip(names, unreadable.values(), strict=True)
        is_share = isinstance(self.max_bad, float)
        most = int(self.max_bad * len(dataset)) if is_share else self.max_bad
        if len(met) <= most:
            return
        check = "`ssl-zoo data check CONFIG` finds all such files"
        if most == 0:
            raise ValueError(f"{next(iter(met.values()))}; data.max_bad skips some; {check}")
        allowed = f"{most} ({self.max_bad:g} of {len(dataset)})" if is_share else most
        problem = f"{len(met)} images of {dataset.split} cannot be read, data.max_bad allows"
        more = [f"... {len(met) - NAMED} more"] if len(met) > NAMED else []
        lines = [f"{problem} {allowed}; {check}", *list(met.values())[:NAMED], *more]
        raise ValueError("\n  ".join(lines))


def _held(loaded: dict[str, Source], dataset: Source, registered: bool) -> Source:
    """What is loaded already of the same images, or `dataset`."""
    if registered:  # its splits' own names say which are the same
        return loaded.setdefault(dataset.split, dataset)
    for held in loaded.values():
        same_name = held.split == dataset.split
        if held is dataset or (same_name and held.identity == dataset.identity):
            return held
    return dataset


def _registered(part: Part) -> bool:
    return part.target in DATASETS.module_dict.values()


class Next:
    """Of n images in a circle those after one, in whatever epoch."""

    def __init__(self, count: int):
        self.count = count

    def __call__(self, epoch: int, position: int) -> Iterator[int]:
        return (i % self.count for i in range(position + 1, position + self.count))


@constrained
class Data:
    """A source of images, its views and its batches; of a set each a function of (seed, step).

    Args:
        run_seed: of the run; evaluations start from it, whatever `seed` is.
        boxes: batches say where their views lie in the images.
        views_needed: how many views are made where `views.count` is null.
        dataset, clean, workers: of `Splits`.
        max_bad: of `Splits`; the place of an unreadable image in a batch is given to another, see
            `Sampler.successors`; of a stream none may be. A rank counts what it has met; a
            checkpoint has what all have met.
        views: random views for training.
        batch_size, drop_last: of `Sampler`; no batch of a stream is a last one.
        seed: of the order of the samples and of their views, and of nothing else: weights and what
            methods and evaluations draw stay the run's. null: the run's seed.

    Attributes:
        splits: the same data set for evaluations.
        reader: what reads the batches' images.
        num_samples, steps_per_epoch: None of a stream, which has no epochs.
        labels: [num_samples] int64, of the pre-training split, -1 where unknown; None of a stream,
            whose batches alone have them.
        position: where a stream is read on after the last batch that was given, (step, place) in
            plain values; a checkpoint keeps it. None: at its beginning, and of a set.
    """

    validate = staticmethod(Splits.validate)

    def __init__(
        self,
        run_seed: int,
        boxes: bool = False,
        views_needed: int = 1,
        *,
        dataset: Part[DATASETS],
        views: Part[Views],
        clean: Part[Views],
        batch_size: PositiveInt,
        drop_last: bool = True,
        workers: OfMachine[WorkerCount] = "auto",
        max_bad: OfMachine[int | float] = 0,
        seed: NonNegativeInt | None = None,
    ):
        self.seed = run_seed if seed is None else seed
        self.batch_size, self.workers = batch_size, workers
        self.views: Views = views(views_needed=views_needed)
        self.splits = Splits(
            run_seed, dataset=dataset, clean=clean, workers=workers, max_bad=max_bad
        )
        self.dataset: Source = self.splits.split("pretrain")
        self.views.check_sizes(self.dataset.varies)
        self.num_classes = self.dataset.num_classes
        self.position: tuple[int, Any] | None = None
        cut, ranks = (batch_size, self.seed), (distributed.rank(), distributed.world())
        self.num_samples = self.labels = successors = None
        if self.dataset.sized:
            self.num_samples = len(self.dataset)
            self.labels = self.dataset.labels_of(torch.arange(self.num_samples))
            self.sampler = Sampler(self.num_samples, *cut, drop_last, *ranks)
            successors = self.sampler.successors
        else:
            self.sampler = InOrder(self.dataset, *cut, *ranks)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.reader = Batches(self.dataset, self.views, successors, boxes)
        self.splits.pool.add(self.reader)

    def batches(self, start: int, stop: int, device: torch.device | str) -> Iterator[Batch]:
        """This rank's share of steps start..stop-1, counted from the run's beginning.

        Of a stream `start` is where it stands, or 0; else ValueError.
        """
        ahead: deque = deque()  # positions after batches that are under way

        def samples() -> Iterator[Samples]:
            for each, position in self.sampler.samples(start, stop, self.position):
                ahead.append(position)
                yield each

        loaded = read_batches(self.reader, samples(), device, self.splits.pool, self.workers)
        for batch in on_device(self.splits.noted(self.reader, loaded), self.reader, device):
            self.position = ahead.popleft()
            yield batch

    def indices(self, step: int) -> Tensor:
        """Which samples are this rank's share of a step, [n] int64."""
        return self.sampler.index(step)

    def clean_share(self, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """(clean images [n, C, H, W], positions [n]) of this rank's run of the training set.

        Of a set alone.
        """
        index = torch.arange(self.num_samples).tensor_split(distributed.world())[distributed.rank()]
        batches = index.split(512) if len(index) else ()  # a run may be empty
        return self.splits.clean_with_substitutes("pretrain", device, batches)


def view_grid(data: Data, path: str | Path, samples: int = 8) -> None:
    """Writes a PNG of the first samples: a row each, the original, then its views."""
    index, at = data.sampler.first(samples)
    images = data.dataset.fetch(at)
    views = data.views(images, data.seed, 0, index)
    columns = [[image[None].float() / 255 for image in images]]
    columns += [list(data.views.denormalize(v, view).split(1)) for v, view in enumerate(views)]
    side = max(96, max(max(view.shape[2:]) for view in views))
    cells = [
        # Nearest neighbor when enlarging: the pixels are what one wants to see.
        F.resize(cell, [side, side], interpolation=InterpolationMode.NEAREST_EXACT)
        if max(cell.shape[2:]) < side
        else F.resize(cell, [side, side], antialias=True)
        for row in zip(*columns, strict=True)
        for cell in row
    ]
    save_image(torch.cat(cells), path, nrow=len(columns), padding=4, pad_value=1.0)
