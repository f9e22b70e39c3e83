"""Data sets that torchvision reads and verifies."""

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

from ssl_zoo.config import DATASETS, OfMachine, PositiveInt
from ssl_zoo.data.source import InMemory, Split, check_split, roots


def _from_torchvision(name: str, root: str | None, build: Callable[[Path], object]):
    """A torchvision data set from the first folder that has it, files verified by torchvision."""
    tried = []
    for folder in roots(root):
        try:
            return build(folder)
        except RuntimeError as error:
            tried.append(f"  {folder}: {error}")
    get = f"get it with `ssl-zoo data get {name.lower()}`, or name its folder in data.dataset.root"
    raise FileNotFoundError("\n".join([f"{name} was not found in", *tried, get]))


class _CIFAR(InMemory):
    source: type

    def __init__(
        self, split: Split, *, root: OfMachine[str | None] = None, limit: PositiveInt | None = None
    ):
        split = check_split(split)
        data = _from_torchvision(
            type(self).__name__, root, lambda folder: self.source(folder, train=split == "train")
        )
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # [n, 3, 32, 32]
        super().__init__(images, data.targets, len(data.classes), split, limit)


@DATASETS.register_module()
class CIFAR10(_CIFAR):
    """CIFAR-10: 50,000 + 10,000 images of 32x32 in 10 classes (Krizhevsky 2009)."""

    source = torchvision.datasets.CIFAR10


@DATASETS.register_module()
class CIFAR100(_CIFAR):
    """CIFAR-100: 50,000 + 10,000 images of 32x32 in 100 classes (Krizhevsky 2009)."""

    source = torchvision.datasets.CIFAR100


@DATASETS.register_module()
class STL10(InMemory):
    """STL-10 (Coates et al. 2011): 96x96, 5,000 + 8,000 in 10 classes and 100,000 unlabeled."""

    def __init__(
        self,
        split: Split,
        *,
        root: OfMachine[str | None] = None,
        unlabeled: bool = True,
        limit: PositiveInt | None = None,
    ):
        resolved = check_split(split)
        if split == "pretrain" and unlabeled:  # 2.9 GB of RAM
            resolved = "train+unlabeled"
        data = _from_torchvision(
            "STL10", root, lambda folder: torchvision.datasets.STL10(folder, split=resolved)
        )
        super().__init__(data.data, data.labels, 10, resolved, limit)
