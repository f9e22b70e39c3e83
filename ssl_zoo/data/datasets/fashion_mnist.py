"""Fashion-MNIST: where its idx files may lie, how they are read, what they must hold."""

import gzip
import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ssl_zoo.config import DATASETS, OfMachine, PositiveInt
from ssl_zoo.data.source import InMemory, Split, check_split, roots

DEBIAN = "dataset-fashion-mnist"  # a package
SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # where it puts the files
PARTS = ("images-idx3-ubyte", "labels-idx1-ubyte")
# Of the contents; the gzip around them differs between distributors.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@DATASETS.register_module()
class FashionMNIST(InMemory):
    """Fashion-MNIST: 60,000 + 10,000 gray images of 28x28 in 10 classes (arXiv:1708.07747).

    Args:
        root: see `find`. None: $SSL_ZOO_DATA, ./data, then where Debian's package puts them.
    """

    def __init__(
        self, split: Split, *, root: OfMachine[str | None] = None, limit: PositiveInt | None = None
    ):
        split = check_split(split)
        folders = roots(root) if root is not None else [*roots(None), SYSTEM]
        files = find(folders)
        if files is None:
            raise FileNotFoundError(
                f"FashionMNIST was not found in {', '.join(map(str, folders))}; get it with "
                "`ssl-zoo data get fashion_mnist`, or name its folder in data.dataset.root"
            )
        kind = "train" if split == "train" else "t10k"
        images, labels = (read(files[f"{kind}-{part}"]) for part in PARTS)
        if len(images) != len(labels) or images.dim() != 3 or labels.dim() != 1:
            found, file = f"{list(images.shape)} and {list(labels.shape)}", f"{kind}-{PARTS[0]}"
            raise ValueError(f"{files[file]}: expected images and as many labels, found {found}")
        super().__init__(images[:, None], labels, 10, split, limit)


def find(folders: Iterable[Path]) -> dict[str, Path] | None:
    """The four files by name, from the first place that has all of them, gzipped or not.

    In each folder: the folder itself, fashion-mnist/, and torchvision's FashionMNIST/raw/.
    """
    for folder in folders:
        for place in (folder, folder / "fashion-mnist", folder / "FashionMNIST" / "raw"):
            paths = {name: (place / f"{name}.gz", place / name) for name in SHA256}
            files = {name: p for name, both in paths.items() for p in both if p.is_file()}
            if len(files) == len(SHA256):
                return files
    return None


def contents(path: Path) -> bytes:
    """A file's bytes, decompressed if its name ends in .gz; ValueError where it is not whole."""
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error}); get it again") from error


def read(path: Path) -> Tensor:
    """An idx file of bytes as a uint8 tensor; ValueError if it is none, or not a whole one."""
    data = contents(path)
    # Two zero bytes, the type (8: unsigned byte), the number of dimensions, each as 4 bytes.
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: found header {data[:4].hex()}, expected 000008.. (idx of bytes)")
    offset = 4 + 4 * data[3]
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, offset, 4)]
    if len(data) - offset != math.prod(shape):
        found = f"found {len(data) - offset} bytes; get it again"
        raise ValueError(f"{path}: the header says {shape}, {found}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=offset).view(shape)


def verify(files: dict[str, Path]) -> None:
    """Raises ValueError where one of the four files holds something else."""
    for name, expected in SHA256.items():
        actual = hashlib.sha256(contents(files[name])).hexdigest()
        if actual != expected:
            found = f"found sha256 {actual} of the contents, expected {expected}"
            raise ValueError(f"{files[name]}: {found}; delete it and get it again")
