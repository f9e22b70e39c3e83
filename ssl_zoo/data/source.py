"""What a data set must offer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

Split = Literal["pretrain", "train", "test"]


class ImageSet:
    """A split of a data set.

    Attributes:
        labels: [n] int64, -1 where unknown.
        num_classes: number of classes.
        split: the split's own name; equal for two splits that hold the same images.
        varies: images vary in size.
        scaled: `shapes` is there, and `fetch` takes `shrink`, see `ImageFolder`.
        in_ram: fetching is no work for a process of its own.
        baselines: by name, makers of modules that map images [n, C, H, W] to features [n, F]
            without training: what a network should beat here, beside raw pixels.
    """

    labels: Tensor
    num_classes: int
    split: str
    varies = False
    scaled = False
    in_ram = False
    baselines: ClassVar[dict[str, Callable[[], nn.Module]]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, index: Tensor) -> Tensor | list[Tensor]:
        """uint8 [n, C, H, W] for `index` [n]; where images vary in size, n of uint8 [C, H, W].

        Args:
            shrink (where `scaled`): [n] of 1, 2, 4 or 8, how much smaller to decode each.
        """
        raise NotImplementedError

    def shapes(self, index: Tensor) -> Tensor:
        """[n, 3] int64 of (C, H, W), without decoding."""
        raise NotImplementedError

    def held_close_to(self, device: torch.device) -> ImageSet:
        """The same images where `device` reaches them fastest."""
        return self


def check_split(split: str) -> str:
    """'train' or 'test'; pre-training uses the training images.

    Raises:
        ValueError: another name.
    """
    if split not in ("pretrain", "train", "test"):
        raise ValueError(f"split is 'pretrain', 'train' or 'test', found {split!r}")
    return "train" if split == "pretrain" else split


def roots(root: str | os.PathLike | None) -> list[Path]:
    """Folders that may hold data: the user's alone if there is one, else $SSL_ZOO_DATA, ./data."""
    if root is not None:
        return [Path(root).expanduser()]
    named = os.environ.get("SSL_ZOO_DATA")
    return [*([Path(named).expanduser()] if named else []), Path("data")]
