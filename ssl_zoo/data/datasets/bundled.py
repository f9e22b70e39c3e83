"""Data sets that need no download: scikit-learn's own, and noise."""

import numpy as np
import torch

from ssl_zoo.config import DATASETS, ConfigError, PositiveInt
from ssl_zoo.data.source import InMemory, Split, check_split
from ssl_zoo.system import rng


def _sklearn(name: str):
    try:
        import sklearn.datasets
    except ImportError as error:
        raise ImportError(f"{name} is part of scikit-learn: pip install scikit-learn") from error
    return sklearn.datasets


@DATASETS.register_module()
class Digits(InMemory):
    """scikit-learn's bundled digits: 1,437 + 360 gray images of 8x8 in 10 classes; no download."""

    def __init__(self, split: Split, *, limit: PositiveInt | None = None):
        split = check_split(split)
        pixels, labels = _sklearn("Digits").load_digits(return_X_y=True)  # [1797, 64] of 0..16
        images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        order = rng.permutation(len(labels), "digits").numpy()
        kept = order[:1437] if split == "train" else order[1437:]
        super().__init__(images[kept], labels[kept], 10, split, limit)


@DATASETS.register_module()
class Photographs(InMemory):
    """Overlapping patches of the two color photographs that scikit-learn bundles; no download.

    Real colors, no benchmark: two pictures of 427 x 640 make 8,910 + 2,500 patches at size 32, and
    a class is which of them, and which of its horizontal bands, a patch's center lies in. Vertical
    strips two patches wide are for training and testing in turn: the splits share no pixel.

    Args:
        size: height and width of a patch in pixels.
        bands: of each photograph, from top to bottom: there are twice as many classes.
    """

    def __init__(
        self,
        split: Split,
        *,
        size: PositiveInt = 32,
        bands: PositiveInt = 6,
        limit: PositiveInt | None = None,
    ):
        split = check_split(split)
        first, stride = (0, 4) if split == "train" else (1, 8)
        images, labels = [], []
        for number, pixels in enumerate(_sklearn("Photographs").load_sample_images().images):
            photo = torch.tensor(pixels).permute(2, 0, 1)  # [3, H, W]
            height, width = photo.shape[1:]
            largest = min(height, width // 4)
            for name, value, most in (("size", size, largest), ("bands", bands, height)):
                if value > most:
                    raise ConfigError(name, "too large", found=str(value), expected=f"1 to {most}")
            strips = photo.unfold(2, 2 * size, 2 * size)[:, :, first::2]  # [3, H, S, 2 * size]
            patches = strips.unfold(1, size, stride).unfold(3, size, stride)
            patches = patches.permute(1, 2, 3, 0, 4, 5)  # [rows, S, columns, 3, size, size]
            center = torch.arange(len(patches)) * stride + size // 2
            band = (center * bands // height)[:, None, None].expand(patches.shape[:3])
            images.append(patches.flatten(0, 2))
            labels.append(number * bands + band.flatten())
        order = rng.permutation(sum(map(len, labels)), "photographs")  # for `limit`
        images, labels = torch.cat(images)[order], torch.cat(labels)[order]
        super().__init__(images, labels, 2 * bands, split, limit)


@DATASETS.register_module()
class Synthetic(InMemory):
    """Noisy colored blocks of `size` pixels, a pattern a class; `num_samples` of each split."""

    def __init__(
        self,
        split: Split,
        *,
        num_samples: PositiveInt = 512,
        size: PositiveInt = 32,
        channels: PositiveInt = 3,
        num_classes: PositiveInt = 10,
    ):
        split = check_split(split)
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
