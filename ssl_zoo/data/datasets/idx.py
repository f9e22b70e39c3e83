"""MNIST's idx files: where they may lie, how they are read, what Fashion-MNIST's must hold."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
PARTS = ("images-idx3-ubyte", "labels-idx1-ubyte")
# sha256 of the contents; the gzip around them differs between distributors.
FASHION_MNIST = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def find(folders: Iterable[Path]) -> dict[str, Path] | None:
    """The four files by name, from the first place that has all of them, gzipped or not.

    In each folder: the folder itself, fashion-mnist/, and torchvision's FashionMNIST/raw/.
    """
    for folder in folders:
        for place in (folder, folder / "fashion-mnist", folder / "FashionMNIST" / "raw"):
            files = {}
            for name in FASHION_MNIST:
                for path in (place / f"{name}.gz", place / name):
                    if path.is_file():
                        files[name] = path
            if len(files) == len(FASHION_MNIST):
                return files
    return None


def contents(path: Path) -> bytes:
    """A file's bytes, decompressed if its name ends in .gz.

    Raises:
        ValueError: not a whole gzip file.
    """
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise ValueError(
            f"{path}: not a whole gzip file ({error}); delete it and get it again"
        ) from error


def read(path: str | os.PathLike) -> Tensor:
    """An idx file of bytes as a uint8 tensor.

    Raises:
        ValueError: not such a file, or its length is not what its header says.
    """
    path = Path(path)
    data = contents(path)
    # Two zero bytes, the type (8: unsigned byte), the number of dimensions, each as 4 bytes.
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: found header {data[:4].hex()}, expected 000008.. (idx of bytes)")
    offset = 4 + 4 * data[3]
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, offset, 4)]
    if len(data) - offset != math.prod(shape):
        raise ValueError(
            f"{path}: the header says {shape}, that is {math.prod(shape)} bytes, "
            f"found {len(data) - offset}; delete it and get it again"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=offset).view(shape)


def verify(files: dict[str, Path]) -> None:
    """Checks the contents of Fashion-MNIST's files.

    Raises:
        ValueError: a file holds something else.
    """
    for name, expected in FASHION_MNIST.items():
        actual = hashlib.sha256(contents(files[name])).hexdigest()
        if actual != expected:
            raise ValueError(
                f"{files[name]}: found sha256 {actual} of the contents, expected {expected}; "
                "delete it and get it again"
            )
