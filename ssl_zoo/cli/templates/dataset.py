"""NewPart: one sentence on what it holds."""

from __future__ import annotations

import torch

from ssl_zoo.config import DATASETS, PositiveInt
from ssl_zoo.data.source import InMemory, Split, check_split
from ssl_zoo.system import rng


@DATASETS.register_module()
class NewPart(InMemory):
    """Stripes, down or across, of 8 x 8 pixels in gray: two classes, drawn anew each time.

    Args:
        num_samples: of each split.
    """

    def __init__(self, split: Split, *, num_samples: PositiveInt = 512):
        split = check_split(split)  # 'train' or 'test'; what pre-trains is 'train' here
        sample = torch.arange(num_samples)[:, None, None]  # [n, 1, 1]
        labels = sample.flatten() % 2  # [n], int64; -1 where unknown
        place = torch.arange(8)
        down = place.expand(8, 8)  # the column of each pixel
        along = torch.where(sample % 2 == 0, down, down.T)  # [n, 8, 8]
        shift = rng.integers(4, split, "shift", sample)
        bright = 128 + 127 * rng.uniform(split, "bright", sample)
        images = bright * ((along + shift) % 4 < 2)  # [n, 8, 8], 0 to 255
        super().__init__(images[:, None].to(torch.uint8), labels, num_classes=2, split=split)
