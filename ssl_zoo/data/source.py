"""What images come from: a set, a set that is held in memory, or a stream."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ssl_zoo.system import rng
from ssl_zoo.system.files import user_path

Split = Literal["pretrain", "train", "test"]


class Source:
    """Images to learn from or to judge by: an `ImageSet` or a `Stream`.

    Which images are meant is said by `at`: positions [n] of a set, n records of a stream.

    Attributes:
        sized: how many images there are is known, and each is to be had at any time. A class says
            so, since configs are checked before any data are read.
        num_classes, classes: how many classes images have and what these are called, where a class
            is what an image has. Of other targets (boxes, masks) only the set and the evaluation
            that judges by them know.
        split: the split's own name; equal for two splits that hold the same images.
        varies: images vary in size.
        scaled: `shapes` is there, and `fetch` takes `shrink`, [n] of 1, 2, 4 or 8 for each image.
        draws: images may come out of `fetch` at random, and it takes `keys`, [n] int64, of which
            each image is a function; not of a set that is `scaled`.
        in_ram: fetching is no work for a process of its own.
        found: what was found where files were looked for, a line for a person; '' if nowhere.
        baselines: makers of untrained modules, images -> features [n, F], for a network to beat.
    """

    sized: ClassVar[bool] = True
    num_classes: int = 0
    classes: list[str] | None = None
    split: str
    varies = False
    scaled = False
    draws = False
    in_ram = False
    found = ""
    baselines: ClassVar[dict[str, Callable[[], nn.Module]]] = {}

    def fetch(self, at: Any) -> Tensor | list[Tensor]:
        """uint8 [n, C, H, W]; where images vary in size, n of uint8 [C, H, W]."""
        raise NotImplementedError

    def shapes(self, at: Any) -> Tensor:
        """[n, 3] int64 of (C, H, W), without decoding."""
        raise NotImplementedError

    def labels_of(self, at: Any) -> Tensor:
        """The images' classes [n] int64, -1 where there is none or it is unknown."""
        return torch.full((len(at),), -1)

    @property
    def identity(self) -> str:
        """What the images and their classes are, wherever they lie: equal for equal ones.

        Of names and sizes, and of contents where those are cheap. By it results say what they were
        measured on, and a resume sees that it goes on with the same.
        """
        raise NotImplementedError

    def held_close_to(self, device: torch.device) -> Source:
        """The same images where `device` reaches them fastest."""
        return self


class Stream(Source):
    """Images that come one after another, as many as are asked for.

    A record is what an image is made of: where it lies (a file and a place in it), or its bytes.
    Each rank walks over all records, and its workers make images of its own share, so a record had
    better be the former. Records, and positions, which checkpoints keep, are plain values.
    """

    sized = False

    def read(self, seed: int, position: Any = None) -> Iterator[tuple[Any, Any]]:
        """(record, the position after it) without end, from a position on; None: the beginning.

        A function of its arguments alone. The order is the stream's own, and differs by seed.
        """
        raise NotImplementedError


class ImageSet(Source):
    """A split of a data set: so many images, each to be had by its position.

    Attributes:
        labels: [n] int64, -1 where unknown; None: it knows no classes, and has a `__len__` of its
            own.
    """

    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def labels_of(self, index: Tensor) -> Tensor:
        return super().labels_of(index) if self.labels is None else self.labels[index]

    def subset(self, index: Tensor) -> ImageSet:
        """The images at `index` [m] alone, in this order; classes keep their numbers."""
        return Subset(self, index)

    def names(self, index: Tensor) -> list[str]:
        """What the images of `index` [n] are called in errors: a file, or else a position."""
        return [str(i) for i in index.tolist()]

    def file_sizes(self, index: Tensor) -> list[int]:
        """Bytes that the images of `index` [n] take where they lie; 0: unknown."""
        return [0] * len(index)

    @cached_property
    def fingerprint(self) -> Tensor:
        """What tells the images apart, wherever they lie: [n] int64, of names and files' sizes.

        The sum of a code of the image's class, where its name begins with that, and one of all
        else: of a class under another name the difference of the two names' codes is known.
        """
        index, classes = torch.arange(len(self)), self.classes or []
        rest, of_class = [], []
        labels = self.labels_of(index).tolist()
        known = zip(self.names(index), self.file_sizes(index), labels, strict=True)
        for name, size, label in known:
            first, _, below = name.partition("/")
            inside = 0 <= label < len(classes) and first == classes[label]
            rest.append(os.fsencode(f"{below if inside else name}\0{size}"))
            of_class.append(label if inside else -1)
        # A last code for all that lie in no class.
        codes = torch.cat([class_codes(classes), torch.zeros(1, dtype=torch.int64)])
        return identities(rest) + codes[torch.tensor(of_class)]

    @property
    def identity(self) -> str:
        digest = hashlib.sha256(self.fingerprint.numpy())
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy())
        return digest.hexdigest()[:12]


class Subset(ImageSet):
    """Some images of a set, see `ImageSet.subset`."""

    def __init__(self, whole: ImageSet, index: Tensor):
        self.whole, self.index = whole, index
        self.labels = None if whole.labels is None else whole.labels[index]
        self.num_classes, self.classes = whole.num_classes, whole.classes
        self.varies, self.scaled, self.in_ram = whole.varies, whole.scaled, whole.in_ram
        self.draws = whole.draws
        self.found = f"{len(index)} images of {whole.found or whole.split}"
        which = hashlib.blake2b(index.numpy(), digest_size=4).hexdigest()
        self.split = f"{whole.split} {which}"

    def __len__(self) -> int:
        return len(self.index)

    def fetch(self, index: Tensor, *how: Tensor) -> Tensor | list[Tensor]:
        return self.whole.fetch(self.index[index], *how)

    def shapes(self, index: Tensor) -> Tensor:
        return self.whole.shapes(self.index[index])

    def names(self, index: Tensor) -> list[str]:
        return self.whole.names(self.index[index])

    @property
    def fingerprint(self) -> Tensor:
        return self.whole.fingerprint[self.index]

    def held_close_to(self, device: torch.device) -> ImageSet:
        held = copy.copy(self)
        held.whole = self.whole.held_close_to(device)
        return held


class InMemory(ImageSet):
    """A split held in RAM as bytes; of all images [n, C, H, W] the first `limit`."""

    in_ram = True

    def __init__(self, images, labels, num_classes: int, split: str, limit: int | None = None):
        self.images = torch.as_tensor(images)[:limit].contiguous()  # [n, C, H, W]
        if labels is not None:
            self.labels = torch.as_tensor(labels, dtype=torch.int64)[:limit]  # [n]
        self.num_classes, self.split = num_classes, split
        self._held: dict[torch.device, ImageSet] = {}
        self._pinned = False

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, index: Tensor) -> Tensor:
        index = index.to(self.images.device, non_blocking=True)
        images = self.images.index_select(0, index)
        return images.pin_memory() if self._pinned else images

    @cached_property
    def fingerprint(self) -> Tensor:
        """[n] int64, of the pixels."""
        return identities(self.images.flatten(1).numpy())

    def held_close_to(self, device: torch.device) -> ImageSet:
        """On a GPU a copy held there, if it takes at most an eighth of the memory that is free."""
        if device.type != "cuda":
            return self
        if device not in self._held:
            held = copy.copy(self)
            if self.images.nbytes <= torch.cuda.mem_get_info(device)[0] // 8:
                held.images = self.images.to(device, non_blocking=True)
            else:
                held._pinned = True  # batches are gathered where they travel from without a wait
            self._held[device] = held
        return self._held[device]


def identities(items: Iterable) -> Tensor:
    """A code of 64 bits for each of n items (bytes, arrays), [n] int64, on any machine the same."""
    digests = (hashlib.blake2b(item, digest_size=8).digest() for item in items)
    return torch.from_numpy(np.frombuffer(bytearray(b"".join(digests)), "<i8"))


def class_codes(classes: list[str]) -> Tensor:
    """What the names of classes add to the fingerprint of their images, [C] int64."""
    return identities(map(os.fsencode, classes))


def matched(old: Tensor, new: Tensor) -> Tensor:
    """Where in `old` [m] each of `new` [n] stands, -1 where nowhere; equal ones in their order."""
    old, new = (rng.hashed(x, _occurrence(x)) for x in (old, new))
    ordered, order = old.sort()
    place = torch.searchsorted(ordered, new).clamp(max=len(old) - 1)
    return torch.where(ordered[place] == new, order[place], -1)


def _occurrence(x: Tensor) -> Tensor:
    """How many of the same value stand before each, [n] int64."""
    ordered, order = x.sort(stable=True)
    return torch.empty_like(x).index_copy_(
        0, order, torch.arange(len(x)) - torch.searchsorted(ordered, ordered)
    )


def check_split(split: str) -> str:
    """'train' or 'test', since pre-training uses the training images; ValueError for others."""
    if split not in get_args(Split):
        raise ValueError(f"split is 'pretrain', 'train' or 'test', found {split!r}")
    return "train" if split == "pretrain" else split


def roots(root: str | os.PathLike | None) -> list[Path]:
    """Folders that may hold data: the user's alone if there is one, else $SSL_ZOO_DATA, ./data."""
    if root is not None:
        return [user_path(root)]
    named = os.environ.get("SSL_ZOO_DATA")
    return [*([user_path(named)] if named else []), Path("data")]
