"""Images in folders, one folder a class, decoded when they are needed."""

import os
import warnings
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.config import DATASETS, OfMachine
from ssl_zoo.data import files
from ssl_zoo.data.files import counted, some
from ssl_zoo.data.image import decode
from ssl_zoo.data.image.decode import Color, Decoding
from ssl_zoo.data.source import ImageSet, Split, check_split, roots
from ssl_zoo.system.text import one_line

SPLITS = {"train": ("train",), "test": ("val", "test")}  # the folders of each


@DATASETS.register_module()
class ImageFolder(ImageSet):
    """Images in root/train and root/val (or root/test), one folder a class.

    Classes are numbered in the alphabetical order of root/train; one without images keeps its
    number, lest the others' change. Images directly in root/train have no label (-1):
    pre-training needs none. Nor does it need root/train, if images lie directly in root and no
    split does.

    Which files are read: `files.scan`; `found` says what was, and what was not. Gray levels of 16
    bits are scaled to 8.

    Args:
        root: the folder of train/ and val/. None: $SSL_ZOO_DATA, then ./data.
        scaled: decode an image at 1/2, 1/4 or 1/8 where all its views still have a decoded pixel
            for each of theirs (`Views.shrink_factors`): for photographs of several times the
            views' size. Edges of boxes move by at most one decoded pixel, by two where EXIF
            mirrors or turns the image.
        channels: 3: RGB; 1: gray, for a backbone with `in_chans: 1`.
        exif: turn images upright, as their orientation tag says; false: as they are stored.
        background: gray level, or [red, green, blue], of what is transparent; 255 is white.

    Raises:
        FileNotFoundError: no such layout, or no images in it.
        ValueError: a class of the test images is not among the training ones.
    """

    varies = True
    subfolder = ""  # of the root, where the layout may also lie

    def __init__(
        self,
        split: Split,
        *,
        root: OfMachine[str | None] = None,
        scaled: bool = False,
        channels: Literal[1, 3] = 3,
        exif: bool = True,
        background: Color = 255,
    ):
        self.scaled, self.decoding = scaled, Decoding(channels, exif, background)
        self.split = check_split(split)
        self.folder = folder = self._find(root)
        name, train = type(self).__name__, folder.parent / "train"
        of_training = train if self.split == "test" and train.is_dir() else folder
        self.classes = files.class_names(of_training)
        self.num_classes = len(self.classes)
        found = files.scan(folder)
        if not found.images:
            kinds = ", ".join(decode.formats())
            there = "; ".join(["", *found.ignored()])
            raise FileNotFoundError(f"{name}: no image ({kinds}) in {folder}{there}")
        names = [path.split(os.sep)[0] if os.sep in path else None for path in found.images]
        if unknown := sorted(set(names) - set(self.classes) - {None}):
            count = counted(len(unknown), "class", "es")
            lacking = f"{count} that {of_training} lacks, the first is {unknown[0]!r}"
            both = filter(None, (lacking, files.alike(unknown, self.classes)))
            raise ValueError(f"{name}: {folder} has {'; '.join(both)}")
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = torch.tensor([number.get(name, -1) for name in names])
        self.found = told(folder, self.labels, self.classes, found.ignored())
        # Bytes in one array: a list of a million strings would be copied into each worker, page
        # by page, as its reference counts change.
        self._names = np.array([os.fsencode(path) for path in found.images])
        jpegs = any(path.lower().endswith((".jpg", ".jpeg")) for path in found.images)
        if decode.simplejpeg is None and jpegs:
            slow = "Pillow decodes the JPEGs; faster, to the same bytes: pip install simplejpeg"
            warnings.warn(f"{name}: {slow}", stacklevel=2)

    def _find(self, root: str | None) -> Path:
        """The folder of this split's images.

        All splits lie in one place, the first with training images or else with any split: from
        another the classes would be others.
        """
        places = [place for base in roots(root) for place in (base, base / self.subfolder)]
        kinds = SPLITS[self.split]
        chosen = [p for p in places if (p / "train").is_dir()] or [*filter(_splits_of, places)]
        for folder in (place / kind for place in chosen[:1] for kind in kinds):
            if folder.is_dir():
                return folder
        places = chosen[:1] or places
        flat = [place for place in places if files.holds_images(place) and not _splits_of(place)]
        if flat and self.split == "train":
            return flat[0]
        hint = (
            "expected root/train/CLASS/IMAGE and root/val/CLASS/IMAGE, or for pre-training alone "
            "root/IMAGE, with the root in data.dataset.root"
        )
        if flat:
            hint = (
                "images without labels serve pre-training alone: name others in "
                "evaluations.NAME.data.dataset, or take NAME out by evaluations.NAME=null"
            )
        tried = ", ".join(dict.fromkeys(map(str, places)))
        missing = f"no {' or '.join(f'{kind}/' for kind in kinds)} in {tried}"
        if root is not None and not any(place.is_dir() for place in places):
            missing = f"no such folder: {tried}"
        raise FileNotFoundError(f"{type(self).__name__}: {missing}; {hint}")

    def paths(self, index: Tensor) -> list[str]:
        """The files of `index` [n]."""
        return [os.path.join(self.folder, name) for name in self.names(index)]

    def names(self, index: Tensor) -> list[str]:
        """Paths below the split's folder."""
        return [os.fsdecode(bytes(name)) for name in self._names[index.numpy()]]

    def file_sizes(self, index: Tensor) -> list[int]:
        def of(paths: list[str]) -> list[int]:
            return [os.stat(path).st_size for path in paths]

        with ThreadPoolExecutor(16) as pool:  # over a network each is a wait, and many run at once
            return [*chain.from_iterable(pool.map(of, map(self.paths, index.split(1000))))]

    def shapes(self, index: Tensor) -> Tensor:
        return torch.tensor([decode.shape(path, self.decoding) for path in self.paths(index)])

    def fetch(self, index: Tensor, shrink: Tensor | None = None) -> list[Tensor]:
        factors = [1] * len(index) if shrink is None else shrink.tolist()
        both = zip(self.paths(index), factors, strict=True)
        return [decode.pixels(path, k, self.decoding) for path, k in both]


@DATASETS.register_module()
class ImageNet(ImageFolder):
    """ILSVRC-2012: (imagenet/)train/n01440764/*.JPEG, and val/ sorted into its classes likewise."""

    subfolder = "imagenet"


def told(
    place: Path, labels: Tensor, classes: Collection[str], ignored: Collection[str] = ()
) -> str:
    """What there is of a split, in a line."""
    labeled = labels[labels >= 0]
    count = torch.bincount(labeled, minlength=len(classes))
    empty = [name for name, images in zip(classes, count.tolist(), strict=True) if not images]
    parts = [f"{place}: {counted(len(labels), 'image')}"]
    if classes:
        parts[0] += f" in {counted(len(classes), 'class', 'es')}"
    if empty:
        parts.append(f"{counted(len(empty), 'class', 'es')} without images here ({some(empty)})")
    if without := len(labels) - len(labeled):
        parts.append(f"{counted(without, 'image')} without a label")
    if pair := files.alike(classes, classes):
        parts.append(f"the classes {pair}")
    if ignored:
        parts.append(f"not read: {', '.join(ignored)}")
    return one_line("; ".join(parts))


def _splits_of(place: Path) -> list[str]:
    return [kind for kinds in SPLITS.values() for kind in kinds if (place / kind).is_dir()]
