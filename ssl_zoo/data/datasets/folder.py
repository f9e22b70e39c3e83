"""Images in folders, one folder a class, decoded when they are needed."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.config import DATASETS, OfMachine
from ssl_zoo.data.image import decode
from ssl_zoo.data.source import ImageSet, Split, check_split, roots

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


def _files(folder: Path) -> list[str]:
    """Paths of all images below, relative to `folder`, sorted."""
    paths = []
    for place, _, names in os.walk(folder, followlinks=True):
        inner = os.path.relpath(place, folder)
        paths += [os.path.normpath(os.path.join(inner, name)) for name in names]
    return sorted(path for path in paths if path.lower().endswith(SUFFIXES))


@DATASETS.register_module()
class ImageFolder(ImageSet):
    """Images in root/train and root/val (or root/test), one folder a class.

    Classes are numbered in the alphabetical order of root/train. Images directly in root/train have
    no label (-1): pre-training needs none.

    Args:
        root: the folder of train/ and val/. None: $SSL_ZOO_DATA, then ./data.
        scaled: decode an image at 1/2, 1/4 or 1/8 where all its views still have a decoded pixel
            for each of theirs (`Views.shrink_factors`): for photographs of several times the
            views' size. Edges of boxes move by at most one decoded pixel.

    Raises:
        FileNotFoundError: no such layout, or no images in it.
        ValueError: a class of the test images is not among the training ones.
    """

    varies = True
    subfolder = ""  # of the root, where the layout may also lie

    def __init__(self, split: Split, *, root: OfMachine[str | None] = None, scaled: bool = False):
        self.scaled = scaled
        self.split = check_split(split)
        name = type(self).__name__
        places = [place for base in roots(root) for place in (base, base / self.subfolder)]
        kinds = ("train",) if self.split == "train" else ("val", "test")
        folders = [place / kind for place in places for kind in kinds if (place / kind).is_dir()]
        if not folders:
            wanted, tried = " or ".join(f"{kind}/" for kind in kinds), dict.fromkeys(places)
            raise FileNotFoundError(
                f"{name}: no {wanted} in {', '.join(map(str, tried))}; expected root/train/CLASS/"
                "IMAGE and root/val/CLASS/IMAGE, with the root in data.dataset.root"
            )
        folder = folders[0]
        train = folder.parent / "train"
        entries = os.scandir(train if train.is_dir() else folder)
        classes = sorted(entry.name for entry in entries if entry.is_dir())
        files = _files(folder)
        if not files:
            raise FileNotFoundError(f"{name}: no image ({', '.join(SUFFIXES)}) in {folder}")
        names = [file.split(os.sep)[0] if os.sep in file else None for file in files]
        unknown = sorted(set(names) - set(classes) - {None})
        if unknown:
            lacking = f"{len(unknown)} classes that {train} lacks, the first is {unknown[0]!r}"
            raise ValueError(f"{name}: {folder} has {lacking}")
        number = {name: i for i, name in enumerate(classes)}
        self.labels = torch.tensor([number.get(name, -1) for name in names])
        self.classes, self.num_classes, self.folder = classes, len(classes), folder
        # Bytes in one array: a list of a million strings would be copied into each worker, page
        # by page, as its reference counts change.
        self._paths = np.array([os.fsencode(folder / file) for file in files])
        if decode.simplejpeg is None and any(f.lower().endswith((".jpg", ".jpeg")) for f in files):
            slow = "Pillow decodes the JPEGs; faster, to the same bytes: pip install simplejpeg"
            warnings.warn(f"{name}: {slow}", stacklevel=2)

    def paths(self, index: Tensor) -> list[str]:
        """The files of `index` [n]."""
        return [os.fsdecode(bytes(path)) for path in self._paths[index.numpy()]]

    def names(self, index: Tensor) -> list[str]:
        """Paths below the split's folder."""
        start = len(str(self.folder / "_")) - 1  # `relpath` takes as long as opening the file
        return [path[start:] for path in self.paths(index)]

    def file_sizes(self, index: Tensor) -> list[int]:
        def of(paths: list[str]) -> list[int]:
            return [os.stat(path).st_size for path in paths]

        with ThreadPoolExecutor(16) as pool:  # over a network each is a wait, and many run at once
            return [*chain.from_iterable(pool.map(of, map(self.paths, index.split(1000))))]

    def shapes(self, index: Tensor) -> Tensor:
        return torch.tensor([decode.shape(path) for path in self.paths(index)])

    def fetch(self, index: Tensor, shrink: Tensor | None = None) -> list[Tensor]:
        factors = [1] * len(index) if shrink is None else shrink.tolist()
        return [decode.pixels(path, k) for path, k in zip(self.paths(index), factors, strict=True)]


@DATASETS.register_module()
class ImageNet(ImageFolder):
    """ILSVRC-2012: (imagenet/)train/n01440764/*.JPEG, and val/ sorted into its classes likewise."""

    subfolder = "imagenet"
