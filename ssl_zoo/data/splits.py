"""What evaluations use of a data set: its splits, and their images without randomness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.config import DATASETS, ConfigError, OfMachine, Part, join
from ssl_zoo.config.constraints import constrained
from ssl_zoo.data.image import Samples, Views
from ssl_zoo.data.loader import Workers, load
from ssl_zoo.data.source import ImageSet


@constrained
class Splits:
    """The splits of a data set, each loaded at first use.

    Args:
        default_clean: in place of a `clean` that is not given.
        dataset: called with the name of a split.
        clean: operations without randomness; the first view is used.
        workers: as of `Data`.

    Attributes:
        blocks: `dataset` and `clean` as they were given, to make others of.
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
        self.blocks = {"dataset": dataset, "clean": clean or default_clean}
        self.clean: Views = self.blocks["clean"]()
        self._loaded: dict[str, ImageSet] = {}

    @staticmethod
    def validate(*, clean: Part | None, **_) -> None:
        for label, op in clean.kwargs["ops"].items() if clean else ():
            if op.target.random:
                raise ConfigError(
                    join("clean.ops", label),
                    "evaluation takes no random operation",
                    found=op.target.__name__,
                    expected="Resize, CenterCrop or Normalize",
                )

    def split(self, name: str) -> ImageSet:
        """'pretrain', 'train' or 'test'.

        Raises:
            ValueError: images vary in size and the clean operations do not bring them to one.
        """
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
        """(images [n, C, H, W] after the clean operations, labels [n]) of a split, in order.

        Args:
            limit: see `chosen`.
            share: (r, n) gives the r-th of n runs of whole batches; the first runs get one more.
        """
        dataset = self.split(split)
        batches = self.chosen(split, limit).split(batch_size)
        number, shares = share
        mine = torch.arange(len(batches)).tensor_split(shares)[number]
        samples = (Samples(self.seed, 0, batches[i]) for i in mine)
        for batch in load(dataset, self.clean, samples, device, self.workers):
            yield batch.views[0], batch.label
