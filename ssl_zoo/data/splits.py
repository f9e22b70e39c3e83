"""What training and evaluations use of a data set: views of its images, in batches."""

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
from ssl_zoo.data.loader import Workers, load
from ssl_zoo.data.sampler import Sampler
from ssl_zoo.data.source import ImageSet
from ssl_zoo.system import distributed


@constrained
class Splits:
    """The splits of a data set, each loaded at first use, and their images without randomness.

    Args:
        default_clean: in place of a `clean` that is not given.
        clean: operations without randomness; the first view is used.
        workers: processes that fetch images, one thread each; 0: the training process itself;
            auto: see `automatic_workers`.
    """

    def __init__(
        self,
        seed: int = 0,
        default_clean: Part[Views] | None = None,
        *,
        dataset: Part[DATASETS],
        clean: Part[Views] | None = None,
        workers: OfMachine[Workers] = "auto",
    ):
        self.seed, self.workers = seed, workers
        self.blocks = {"dataset": dataset, "clean": clean or default_clean}  # as they were given
        self.clean: Views = self.blocks["clean"]()
        self._loaded: dict[str, ImageSet] = {}

    @staticmethod
    def validate(*, clean: Part | None, **_) -> None:
        for label, op in clean.kwargs["ops"].items() if clean else ():
            if op.target.random:
                found, expected = op.target.__name__, "Resize, CenterCrop, Grayscale, Normalize"
                key, problem = join("clean.ops", label), "evaluation takes no random operation"
                raise ConfigError(key, problem, found=found, expected=expected)

    def split(self, name: str) -> ImageSet:
        """'pretrain', 'train' or 'test'; ValueError where `clean` leaves images of varying size."""
        if name not in self._loaded:
            dataset = self.blocks["dataset"](split=name)
            self.clean.check_sizes(dataset.varies)
            # Pre-training often uses the training images: they are held once.
            self._loaded[name] = self._loaded.setdefault(dataset.split, dataset)
        return self._loaded[name]

    def identity(self) -> dict[str, Any]:
        """Which images these are, wherever they lie: plain values."""
        train, test = self.split("train"), self.split("test")
        return {
            **{name: part.spelled_out(machine=False) for name, part in self.blocks.items()},
            "train_images": len(train),
            "test_images": len(test),
            "classes": train.num_classes,
        }

    def chosen(self, split: str, limit: int | None = None) -> Tensor:
        """Positions of `limit` images, evenly spaced as files are often sorted by class, or all."""
        size = len(self.split(split))
        count = min(limit or size, size)
        return torch.arange(count) * size // count

    def clean_batches(
        self,
        split: str,
        device: torch.device | str,
        batch_size: int = 512,
        limit: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(images [n, C, H, W] after the clean operations, labels [n]) of `chosen`, in order.

        A `share` of (r, n) is the r-th of n runs of whole batches; the first runs get one more.
        """
        batches = self.chosen(split, limit).split(batch_size)
        number, shares = share
        mine = torch.arange(len(batches)).tensor_split(shares)[number]
        for batch in self.load_clean(split, device, (batches[i] for i in mine)):
            yield batch.views[0], batch.label

    def load_clean(
        self, split: str, device: torch.device | str, batches: Iterable[Tensor]
    ) -> Iterator[Batch]:
        """Images of a split by positions, each of `batches` [n], after the clean operations."""
        samples = (Samples(self.seed, 0, index) for index in batches)
        return load(self.split(split), self.clean, samples, device, self.workers)


@constrained
class Data:
    """A data set, its views and its batches, each a function of (seed, step).

    Args:
        run_seed: of the run; evaluations start from it, whatever `seed` is.
        boxes: batches say where their views lie in the images.
        views_needed: how many views are made where `views.count` is null.
        dataset, clean, workers: of `Splits`.
        views: random views for training.
        batch_size, drop_last: of `Sampler`.
        seed: of the order of the samples and of their views, and of nothing else: weights and what
            methods and evaluations draw stay the run's. null: the run's seed.

    Attributes:
        splits: the same data set for evaluations.
        labels: [num_samples] int64, of the pre-training split; -1 where unknown.
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
        workers: OfMachine[Workers] = "auto",
        seed: NonNegativeInt | None = None,
    ):
        self.seed, self.boxes = run_seed if seed is None else seed, boxes
        self.batch_size, self.workers = batch_size, workers
        self.views: Views = views(views_needed=views_needed)
        self.splits = Splits(run_seed, dataset=dataset, clean=clean, workers=workers)
        self.dataset: ImageSet = self.splits.split("pretrain")
        self.views.check_sizes(self.dataset.varies)
        self.num_samples = len(self.dataset)
        self.num_classes = self.dataset.num_classes
        self.labels = self.dataset.labels
        ranks = distributed.rank(), distributed.world()
        self.sampler = Sampler(self.num_samples, batch_size, self.seed, drop_last, *ranks)
        self.steps_per_epoch = self.sampler.steps_per_epoch

    def batches(self, start: int, stop: int, device: torch.device | str) -> Iterator[Batch]:
        """This rank's share of steps start..stop-1, counted from the run's beginning."""
        samples = (Samples(self.seed, *step) for step in self.sampler.steps(start, stop))
        return load(self.dataset, self.views, samples, device, self.workers, self.boxes)

    def indices(self, step: int) -> Tensor:
        """Which samples are this rank's share of a step, [n] int64."""
        return next(self.sampler.steps(step, step + 1))[1]

    def clean_share(self, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """(clean images [n, C, H, W], positions [n]) of this rank's run of the training set."""
        index = torch.arange(self.num_samples).tensor_split(distributed.world())[distributed.rank()]
        batches = index.split(512) if len(index) else ()  # a run may be empty
        for batch in self.splits.load_clean("pretrain", device, batches):
            yield batch.views[0], batch.index


def view_grid(data: Data, path: str | Path, samples: int = 8) -> None:
    """Writes a PNG of the first epoch's first samples: a row each, the original, then its views."""
    index = data.sampler.permutation(0)[:samples]
    images = data.dataset.fetch(index)
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
