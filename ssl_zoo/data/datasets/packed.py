"""A folder of images as one file of pixels: decoded and made small once, then only mapped.

    header   MAGIC, version, where the index begins, its length in bytes
    pixels   image after image, uint8 [H, W, C]
    index    an .npz of sizes [n, 2], labels [n], names [n], codes [n] of the pixels and a JSON of
             what was packed, and how; packs of before have no codes

Images keep their shape: a square would take a quarter of a 4:3 photograph from every view.
"""

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.config import DATASETS, OfMachine
from ssl_zoo.data.datasets.folder import ImageFolder, told
from ssl_zoo.data.image.decode import Decoding
from ssl_zoo.data.image.geometry import Resize
from ssl_zoo.data.source import ImageSet, Split, check_split, identities
from ssl_zoo.data.workers import Workers
from ssl_zoo.system.files import replacing, user_path
from ssl_zoo.system.text import show

MAGIC, VERSION = b"ssl_zoo packed\r\n", 2
HEADER = struct.Struct("<16sQQQ")
CHUNK = 32  # images a worker makes at a time


class Downscaled:
    """Images of a set with the shorter side at most `size`, never enlarged."""

    def __init__(self, dataset: ImageSet, size: int):
        self.dataset, self.size, self.resize = dataset, size, Resize(size=size)

    def __call__(self, positions: list[int]) -> tuple[Tensor, list[tuple[int, int]], list[int]]:
        """(pixels [sum of H x W x C] uint8, one tensor as each takes a file descriptor; H, W; a
        code of each image's pixels).
        """
        images = [
            (self.resize.apply_one(image, {}) if min(image.shape[1:]) > self.size else image)
            for image in self.dataset.fetch(torch.tensor(positions))
        ]
        flat = [image.permute(1, 2, 0).flatten() for image in images]
        codes = identities(pixels.numpy() for pixels in flat).tolist()
        return torch.cat(flat), [tuple(image.shape[1:]) for image in images], codes


def pack(
    dataset: ImageFolder, path: Path, size: int, workers: int = 0, log: Callable = show
) -> None:
    """Writes a split to `path`, whole or not at all; a pack of the same file names is kept.

    The shorter side gets `size` pixels, if it has more; nothing is cut off.

    Raises:
        FileExistsError: `path` is there and holds something else.
        ValueError: `size` is below 1, `path` is no pack, an image cannot be decoded.
    """
    if size < 1:
        raise ValueError(f"size is in pixels and at least 1, found {size}")
    log(dataset.found)
    about = {"split": dataset.split, "size": size, "classes": dataset.classes}
    about = json.loads(json.dumps(about | dataset.decoding._asdict()))  # as it is read again
    names = np.array([os.fsencode(x) for x in dataset.names(torch.arange(len(dataset)))])
    if path.exists():
        there = read(path)
        if there.about != about or not np.array_equal(there.names, names):
            different = "other images, of another size, or decoded in another way"
            raise FileExistsError(f"{path} holds a pack of {different}")
        log(f"{path}: there already")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    downscaled = Downscaled(dataset, size)
    chunks = [chunk.tolist() for chunk in torch.arange(len(dataset)).split(CHUNK)]
    made = Workers().map(downscaled, chunks, workers) if workers else map(downscaled, chunks)
    sizes: list[tuple[int, int]] = []
    codes: list[int] = []
    with replacing(path) as staged, open(staged, "wb") as file:
        file.write(bytes(HEADER.size))  # zeros: no header until all else is written
        for number, (pixels, shapes, of_pixels) in enumerate(made):
            file.write(pixels.numpy())
            sizes += shapes
            codes += of_pixels
            if number % 500 == 499:
                log(f"{path}: {len(sizes)} of {len(dataset)} images")
        index = io.BytesIO()
        meta = np.frombuffer(json.dumps(about).encode(), np.uint8)
        labels = dataset.labels.numpy()
        known = {"sizes": np.array(sizes), "codes": np.array(codes)}
        np.savez(index, about=meta, labels=labels, names=names, **known)
        index_start = file.tell()
        file.write(index.getvalue())
        file.seek(0)
        file.write(HEADER.pack(MAGIC, VERSION, index_start, len(index.getvalue())))
        file.flush()
        os.fsync(file.fileno())
    log(f"{path}: {len(sizes)} images, {path.stat().st_size / 1e9:.2f} GB")


class Index(NamedTuple):
    """What a pack holds."""

    about: dict[str, Any]  # split, size, classes, and the parts of a `Decoding`
    sizes: np.ndarray  # [n, 2] of H, W
    labels: np.ndarray  # [n]
    names: np.ndarray  # [n] of bytes
    codes: np.ndarray | None  # [n] int64 of the pixels; None where a pack was written without


def read(path: Path) -> Index:
    """A pack's index.

    Raises FileNotFoundError, or ValueError for no pack, another version, or a damaged one.
    """
    if not path.is_file():
        command = f"ssl-zoo data pack CONFIG --out {path.parent}"
        raise FileNotFoundError(f"{path}: no such file; `{command}` writes it")
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise ValueError(f"{path}: not written by `ssl-zoo data pack`; begins {header[:16]!r}")
        _, version, index_start, length = HEADER.unpack(header)
        if version != VERSION:
            again = f"ssl-zoo data pack CONFIG --out {path.parent} --size SIZE"
            problem = f"version {version}, expected {VERSION}: decoded by other rules"
            raise ValueError(f"{path}: {problem}; delete it, then write it anew: `{again}`")
        size, expected = os.path.getsize(path), index_start + length
        if size != expected:
            raise ValueError(f"{path}: damaged: {size} bytes, expected {expected}")
        file.seek(index_start)
        try:
            with np.load(io.BytesIO(file.read()), allow_pickle=False) as index:
                about = json.loads(index["about"].tobytes())
                sizes, labels = index["sizes"].astype(np.int64), index["labels"]
                names, channels = index["names"], about["channels"]
                codes = index.get("codes")
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: damaged: its index cannot be read ({error})") from error
    pixels = index_start - HEADER.size
    of_images = sizes.prod(1).sum() * channels
    counts = {len(of) for of in (sizes, labels, names, codes) if of is not None}
    if of_images != pixels or len(counts) != 1:
        raise ValueError(f"{path}: damaged: its index does not describe {pixels} bytes of pixels")
    return Index(about, sizes, labels, names, codes)


@DATASETS.register_module()
class Packed(ImageSet):
    """What `ssl-zoo data pack` wrote in `path`: a memory-mapped file, nothing to decode."""

    varies = True

    def __init__(self, split: Split, *, path: OfMachine[str]):
        self.split = check_split(split)
        self.file = user_path(path) / f"{self.split}.pack"
        about, self._sizes, labels, self._names, self._codes = read(self.file)
        if about["split"] != self.split:
            raise ValueError(f"{self.file}: holds the {about['split']} images")
        self.labels = torch.from_numpy(labels)
        self.classes, self.num_classes = about["classes"], len(about["classes"])
        how = ", ".join(f"{key} {about[key]}" for key in ("size", *Decoding._fields))
        self.found = f"{told(self.file, self.labels, self.classes)}; packed with {how}"
        self._channels = about["channels"]
        self._ends = self._sizes.prod(1).cumsum() * self._channels  # [n], bytes into the pixels
        self._pixels: np.memmap | None = None

    def names(self, index: Tensor) -> list[str]:
        """Paths below the folder that was packed."""
        return [os.fsdecode(bytes(name)) for name in self._names[index.numpy()]]

    def file_sizes(self, index: Tensor) -> list[int]:
        return (self._sizes[index.numpy()].prod(1) * self._channels).tolist()

    @cached_property
    def fingerprint(self) -> Tensor:
        """[n] int64, of names, sizes and pixels, as far as the pack has codes of these."""
        of_names = super().fingerprint
        return of_names if self._codes is None else of_names + torch.from_numpy(self._codes)

    def fetch(self, index: Tensor) -> list[Tensor]:
        if self._pixels is None:  # in the process that reads, lest the pixels be sent to it
            # Copy-on-write: torch wants memory that it may write, the file stays as it is.
            self._pixels = np.memmap(self.file, np.uint8, "c", HEADER.size, int(self._ends[-1]))
        images = []
        for i in index.tolist():
            shape, end = (*self._sizes[i], self._channels), self._ends[i]
            pixels = torch.from_numpy(self._pixels[end - math.prod(shape) : end])
            images.append(pixels.view(shape).permute(2, 0, 1))
        return images

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_pixels": None}
