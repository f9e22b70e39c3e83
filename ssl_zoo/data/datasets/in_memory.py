"""Data sets that fit in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from ssl_zoo.config import DATASETS
from ssl_zoo.data.datasets import idx
from ssl_zoo.data.source import ImageSet, Split, check_split, roots
from ssl_zoo.system import rng


class InMemory(ImageSet):
    """A split held in RAM as bytes.

    Args:
        images: [n, C, H, W] uint8.
        labels: [n] integers, -1 where unknown.
        limit: keep the first `limit` images.
    """

    in_ram = True

    def __init__(self, images, labels, num_classes: int, split: str, limit: int | None = None):
        if limit is not None and limit < 1:
            raise ValueError(f"limit is a number of images, at least 1, or null; found {limit}")
        self.images = torch.as_tensor(images)[:limit].contiguous()  # [n, C, H, W]
        self.labels = torch.as_tensor(labels, dtype=torch.int64)[:limit]  # [n]
        self.num_classes, self.split = num_classes, split
        self._near: dict[torch.device, ImageSet] = {}
        self._pinned = False

    def fetch(self, index: Tensor) -> Tensor:
        index = index.to(self.images.device, non_blocking=True)
        images = self.images.index_select(0, index)
        return images.pin_memory() if self._pinned else images

    def near(self, device: torch.device) -> ImageSet:
        """On a GPU a copy held there, if it takes at most an eighth of the memory that is free.

        A small network then never waits for the host to gather and send its batch. Else batches
        are gathered into pinned memory, from which they travel while the host goes on.
        """
        if device.type != "cuda":
            return self
        if device not in self._near:
            held = copy.copy(self)
            if self.images.nbytes <= torch.cuda.mem_get_info(device)[0] // 8:
                held.images = self.images.to(device, non_blocking=True)
            else:
                held._pinned = True
            self._near[device] = held
        return self._near[device]


def _from_torchvision(name: str, root: str | None, build: Callable[[Path], object]):
    """Opens a torchvision data set in the first folder that has it, files verified by torchvision.

    Raises:
        FileNotFoundError: none of the folders has it.
    """
    tried = []
    for folder in roots(root):
        try:
            return build(folder)
        except RuntimeError as error:
            tried.append(f"  {folder}: {error}")
    raise FileNotFoundError(
        "\n".join([f"{name} was not found in", *tried])
        + f"\nget it with `ssl-zoo data get {name.lower()}`, "
        "or name its folder in data.dataset.root"
    )


@DATASETS.register_module()
class FashionMNIST(InMemory):
    """Fashion-MNIST: 60,000 + 10,000 gray images of 28x28 in 10 classes (arXiv:1708.07747).

    Args:
        root: folder of the four idx files, gzipped or not, or one above it.
            None: $SSL_ZOO_DATA, ./data, then where Debian's package puts them.
    """

    def __init__(self, split: Split, *, root: str | None = None, limit: int | None = None):
        split = check_split(split)
        folders = roots(root) if root is not None else [*roots(None), idx.SYSTEM]
        files = idx.find(folders)
        if files is None:
            raise FileNotFoundError(
                "the four idx files of FashionMNIST were not found in "
                + ", ".join(map(str, folders))
                + "; get them with `ssl-zoo data get fashion_mnist`, "
                "or name their folder in data.dataset.root"
            )
        kind = "train" if split == "train" else "t10k"
        images, labels = (idx.read(files[f"{kind}-{part}"]) for part in idx.PARTS)
        if len(images) != len(labels) or images.dim() != 3 or labels.dim() != 1:
            raise ValueError(
                f"{files[f'{kind}-{idx.PARTS[0]}']}: expected [n, height, width] images and as "
                f"many labels, found {list(images.shape)} and {list(labels.shape)}"
            )
        super().__init__(images[:, None], labels, 10, split, limit)


class _CIFAR(InMemory):
    source: type

    def __init__(self, split: Split, *, root: str | None = None, limit: int | None = None):
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
    """STL-10 (Coates et al. 2011): 96x96, 5,000 + 8,000 in 10 classes and 100,000 unlabelled.

    Args:
        unlabeled: pre-train on the labelled and the unlabelled images (2.9 GB of RAM), not on the
            labelled alone.
    """

    def __init__(
        self,
        split: Split,
        *,
        root: str | None = None,
        unlabeled: bool = True,
        limit: int | None = None,
    ):
        resolved = check_split(split)
        if split == "pretrain" and unlabeled:
            resolved = "train+unlabeled"
        data = _from_torchvision(
            "STL10", root, lambda folder: torchvision.datasets.STL10(folder, split=resolved)
        )
        super().__init__(data.data, data.labels, 10, resolved, limit)


@DATASETS.register_module()
class Digits(InMemory):
    """scikit-learn's bundled digits: 1,437 + 360 gray images of 8x8 in 10 classes; no download."""

    def __init__(self, split: Split, *, limit: int | None = None):
        split = check_split(split)
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("Digits is part of scikit-learn: pip install scikit-learn") from error
        pixels, labels = load_digits(return_X_y=True)  # [1797, 64] of 0..16, [1797]
        images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        order = rng.permutation(len(labels), "digits").numpy()
        kept = order[:1437] if split == "train" else order[1437:]
        super().__init__(images[kept], labels[kept], 10, split, limit)


@DATASETS.register_module()
class Photographs(InMemory):
    """Overlapping patches of the two colour photographs that scikit-learn bundles; no download.

    Real colours to see a method of colour learn from, offline. Not a benchmark: two pictures
    (a palace, a flower) of 427 x 640, cut into 8,910 + 2,500 patches at size 32, and a class is
    which picture, and which of its horizontal bands, a patch's centre lies in.

    The photographs are divided into vertical strips as wide as two patches, the first for training,
    the second for testing, and so on. No patch crosses a strip's border, so the splits share no
    pixel; but they do share the scene, and strips are neighbours.

    Args:
        size: height and width of a patch in pixels.
        bands: of each photograph, from top to bottom: there are twice as many classes.
    """

    def __init__(self, split: Split, *, size: int = 32, bands: int = 6, limit: int | None = None):
        split = check_split(split)
        try:
            from sklearn.datasets import load_sample_images
        except ImportError as error:
            raise ImportError(
                "Photographs is part of scikit-learn: pip install scikit-learn"
            ) from error
        first, stride = (0, 4) if split == "train" else (1, 8)
        images, labels = [], []
        for number, pixels in enumerate(load_sample_images().images):
            photo = torch.tensor(pixels).permute(2, 0, 1)  # [3, H, W]
            height, width = photo.shape[1:]
            if not 1 <= size <= min(height, width // 4) or not 1 <= bands <= height:
                raise ValueError(
                    f"size is 1 to {min(height, width // 4)} and bands 1 to {height}, "
                    f"found {size} and {bands}"
                )
            strips = photo.unfold(2, 2 * size, 2 * size)[:, :, first::2]  # [3, H, S, 2 * size]
            patches = strips.unfold(1, size, stride).unfold(3, size, stride)
            patches = patches.permute(1, 2, 3, 0, 4, 5)  # [rows, S, columns, 3, size, size]
            centre = torch.arange(len(patches)) * stride + size // 2
            band = (centre * bands // height)[:, None, None].expand(patches.shape[:3])
            images.append(patches.flatten(0, 2))
            labels.append(number * bands + band.flatten())
        order = rng.permutation(sum(map(len, labels)), "photographs")  # for `limit`
        images, labels = torch.cat(images)[order], torch.cat(labels)[order]
        super().__init__(images, labels, 2 * bands, split, limit)


@DATASETS.register_module()
class Synthetic(InMemory):
    """Noisy coloured blocks, a pattern for each class; for tests and trials, made on the spot.

    Args:
        num_samples: images of each split.
        size: height and width in pixels.
    """

    def __init__(
        self,
        split: Split,
        *,
        num_samples: int = 512,
        size: int = 32,
        channels: int = 3,
        num_classes: int = 10,
    ):
        split = check_split(split)
        if min(num_samples, size, channels, num_classes) < 1:
            raise ValueError("num_samples, size, channels and num_classes are at least 1")
        position = torch.arange(size)
        block = position * 4 // size  # [size], the block of a pixel, in 0..3
        kind, channel = torch.arange(num_classes)[:, None, None, None], torch.arange(channels)
        pattern = rng.uniform("pattern", kind, channel[:, None, None], block[:, None], block)
        labels = torch.arange(num_samples) % num_classes  # [n]
        sample = torch.arange(num_samples)[:, None, None, None]
        noise = rng.uniform(split, sample, channel[:, None, None], position[:, None], position)
        light = 0.5 + 0.5 * rng.uniform(split, "light", sample)  # [n, 1, 1, 1]
        images = (0.7 * light * pattern[labels] + 0.3 * noise) * 255  # [n, C, size, size]
        super().__init__(images.to(torch.uint8), labels, num_classes, split)
