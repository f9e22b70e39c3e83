"""Images that Python has already: any torch data set, and views by name."""

from __future__ import annotations

import copy
import inspect
import operator
import random
import reprlib
from collections import UserList
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_zoo.config import ConfigError, Part, load, not_among
from ssl_zoo.config.yaml import RECIPES
from ssl_zoo.data.image.decode import AS_USUAL, BadImage, opaque
from ssl_zoo.data.source import ImageSet, Split, Stream, identities
from ssl_zoo.system import rng
from ssl_zoo.system.text import one_line

PRESETS = {p.stem.removeprefix("views_"): p for p in (RECIPES / "_base_").glob("views_*.yaml")}
PUBLISHED = 224  # pixels, of the presets' large views
LOOKED_AT = 256  # images by which a data set is known
FEW = 1000  # members of a list that is copied, see `apart`
CPU = torch.device("cpu")


class Wrapped(ImageSet):
    """A torch data set, or any sequence, of images or of (image, label).

    An image is a PIL image, an array [H, W] or [H, W, C], or a tensor [C, H, W]: bytes, or floats
    from 0 to 1. Gray ones are given three equal channels.

    Args:
        items: with a length, and an item at 0, 1, ...
        labeled: labels are needed: `items.targets`, `items.labels`, or what a pass over all items
            finds. Else they are known only where the data set has class numbers at hand.

    Raises:
        ConfigError: it is empty, or labels are needed and are not there, or are no class numbers.
    """

    varies = draws = True

    def __init__(self, items: Any, split: str, labeled: bool = False):
        listed = hasattr(items, "__len__") and hasattr(items, "__getitem__")
        if not listed or isinstance(items, str):
            found, expected = type(items).__name__, "a data set with a length and items by number"
            raise ConfigError("data", "not a map-style data set", found=found, expected=expected)
        if len(items) == 0:
            found, expected = f"an empty {type(items).__name__}", "at least one image"
            raise ConfigError("data", "no images", found=found, expected=expected)
        self.items, self.split = items, split
        told = {name: getattr(items, name, None) for name in ("targets", "labels")}
        name = next((name for name, labels in told.items() if labels is not None), None)
        labels = None if name is None else _class_numbers(told[name], len(items))
        if name is None and labeled:
            own = self.apart()
            with rng.kept_random_state(CPU):
                labels = torch.tensor([own._label(i) for i in range(len(items))])
        if labels is None and labeled:
            found = one_line(f"{type(items).__name__}.{name} = {reprlib.repr(told[name])}")
            expected = f"{len(items)} integers, a class number for each image"
            raise ConfigError("data", "labels are needed", found=found, expected=expected)
        self.labels = torch.full((len(items),), -1) if labels is None else labels  # [n]
        self.num_classes = max(int(self.labels.max()) + 1, 0)

    def _label(self, index: int) -> int:
        try:
            item = self.items[index]
        except (OSError, ValueError):  # what cannot be read is for the loader to say
            return -1
        if not isinstance(item, tuple | list) or len(item) != 2:
            found, expected = f"item {index} is one {type(item).__name__}", "(image, label)"
            raise ConfigError("data", "labels are needed", found=found, expected=expected)
        try:
            return operator.index(item[1])
        except TypeError as error:
            found = one_line(f"item {index} has {reprlib.repr(item[1])}")
            raise ConfigError(
                "data", "labels are needed", found=found, expected="a class number, an integer"
            ) from error

    def apart(self) -> Wrapped:
        """The same for this process to read from: `items` stay as they are, see `apart`."""
        own = copy.copy(self)
        own.items = apart(self.items)
        return own

    @cached_property
    def fingerprint(self) -> Tensor:
        """[n] int64, of positions, and of the pixels of LOOKED_AT images, evenly spaced.

        Not of pixels where the same image comes out in two ways: such a set draws by itself.
        """
        items, own = [str(i).encode() for i in range(len(self))], self.apart()
        first: list[Tensor] = []
        with rng.kept_random_state(CPU):
            with suppress(BadImage):
                first = [own._pixels(0) for _ in range(2)]
            if not first or torch.equal(*first):
                for i in (torch.arange(LOOKED_AT) * len(self) // LOOKED_AT).unique().tolist():
                    with suppress(BadImage):  # what cannot be read is for the loader to say
                        pixels = own._pixels(i)
                        items[i] += f" {tuple(pixels.shape)} ".encode() + pixels.numpy().tobytes()
        return identities(items)

    def fetch(self, index: Tensor, keys: Tensor | None = None) -> list[Tensor]:
        """What the data set draws of the CPU's generators for an image is decided by its key."""
        keys = rng.hashed(index) if keys is None else keys
        images = []
        with rng.kept_random_state(CPU):
            for i, key in zip(index.tolist(), keys.tolist(), strict=True):
                random.seed(key)
                np.random.seed(key % 2**32)
                torch.default_generator.manual_seed(key)  # a GPU's is the training's alone
                images.append(self._pixels(i))
        return images

    def _pixels(self, index: int) -> Tensor:
        """uint8 [3, H, W]; BadImage for what cannot be read or is no image."""
        try:
            item = self.items[index]
            return as_bytes(item[0] if isinstance(item, tuple | list) else item)
        except (OSError, ValueError) as error:
            name = f"image {index} of {type(self.items).__name__}"
            raise BadImage(one_line(f"{name}: {error}")) from error


def apart(items: Any) -> Any:
    """A copy of a data set that opens files of its own; arrays, images and long lists are shared.

    A data set may open its file when it is first asked. If this process asked it, the processes
    that start from here would share one place in that file, and read each other's images. One that
    cannot be copied is returned itself: it holds what is open already.
    """
    shared: dict[int, Any] = {}  # deepcopy's: what stands for an object, by its id
    seen: set[int] = set()
    pending = [items]
    while pending:
        thing = pending.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor | np.ndarray | Image.Image | ModuleType) or (
            isinstance(thing, list | tuple | dict) and len(thing) > FEW
        ):
            shared[id(thing)] = thing
        elif isinstance(thing, list | tuple):
            pending += thing
        elif isinstance(thing, dict):
            pending += thing.values()
        elif not isinstance(thing, type):
            pending += getattr(thing, "__dict__", {}).values()
    try:
        return copy.deepcopy(items, shared)
    except Exception:  # of files, locks and whatever else stands in it
        return items


def _class_numbers(labels: Any, count: int) -> Tensor | None:
    """[count] int64; None for what is not one integer for each image."""
    try:
        found = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    except (ValueError, TypeError, RuntimeError):  # lists of several lengths, for one
        return None
    whole = found.dtype.kind in "iub" and found.shape == (count,)
    return torch.from_numpy(found.astype(np.int64)) if whole else None


def as_bytes(image: Any, channels: int = 3) -> Tensor:
    """A PIL image, array or tensor, see `Wrapped`, as uint8 [channels, H, W].

    Gray has `channels` equal ones; a PIL image becomes gray where 1 is asked for, and its levels
    and transparent parts become what a file's do. ValueError for what is no image.
    """
    if isinstance(image, Image.Image):
        rgb = opaque(image, AS_USUAL.background)
        pixels = np.array(rgb if channels == 3 else rgb.convert("L"))
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image)
        image = image[None] if image.ndim == 2 else image.movedim(-1, 0)
    if not isinstance(image, Tensor) or image.ndim != 3 or len(image) not in (1, channels):
        shape = f" of shape {tuple(image.shape)}" if isinstance(image, Tensor) else ""
        kinds = "an array [H, W] or [H, W, {0}], or a tensor [{0}, H, W] or [1, H, W]"
        expected = f"a PIL image, {kinds.format(channels)}"
        raise ValueError(f"found a {type(image).__name__}{shape}, expected {expected}")
    if image.is_floating_point():
        low, high = image.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"floats from {low:.3g} to {high:.3g}, expected 0 to 1: no normalizing"
            )
        image = (image * 255).round()
    elif image.dtype != torch.uint8:
        raise ValueError(f"numbers of type {image.dtype}, expected bytes or floats from 0 to 1")
    return image.to(torch.uint8).expand(channels, -1, -1)


def given_images(split: str, *, splits: Mapping[str, Any]) -> ImageSet:
    """The split of {'train': data set, ...}; what pre-trains is 'pretrain', or else 'train'.

    Raises ConfigError for a split that was not given.
    """
    name = "train" if split == "pretrain" and "pretrain" not in splits else split
    if name not in splits:
        expected = "data={'pretrain': ..., 'train': ..., 'test': ...}, as far as they are needed"
        raise ConfigError(
            "data", f"no {name} images were given", found=", ".join(splits), expected=expected
        )
    given = splits[name]
    if not isinstance(given, ImageSet):
        return Wrapped(given, split, labeled=split != "pretrain")
    if given.split != name:  # of whatever set, here it is this split
        given = copy.copy(given)
        given.split = name
    return given


def preset(name: str, size: int, whole: bool = False) -> tuple[dict, dict]:
    """(views, clean) of a config's `data`, as a recipe of that name has them for 224 pixels.

    Args:
        size: pixels of the large views; smaller ones shrink with them.
        whole: the images have that size already, and are looked at whole.
    """
    if name not in PRESETS:
        raise not_among("views", "no views of this name", name, sorted(PRESETS))
    views = load(PRESETS[name]).data["data"]["views"]
    for op in views["ops"].values():
        if "size" in op:
            op["size"] = max(1, round(op["size"] * size / PUBLISHED))
    resize = {} if whole else {"resize": {"type": "Resize", "size": round(size * 256 / PUBLISHED)}}
    crop = {"type": "CenterCrop", "size": size}
    return views, {"ops": {**resize, "crop": crop, "normalize": views["ops"]["normalize"]}}


def dataset_block(data: Any) -> Any:
    """What a config has as its `data.dataset`, of what Python gave there.

    Args:
        data: a folder of images; a data set, see `Wrapped`; {'train': data set, 'test': ...}; or
            what is such a block already: a mapping with a `type`, a registered class, a `partial`,
            a stream.
    """
    if isinstance(data, str | Path):
        return {"type": "ImageFolder", "root": str(data)}
    is_part = (
        isinstance(data, Part | partial | Stream)
        or inspect.isclass(data)
        or inspect.isroutine(data)
    )
    if is_part or (isinstance(data, Mapping) and "type" in data):
        return data
    splits = dict(data) if isinstance(data, Mapping) else {"train": data}
    for name in splits:
        if name not in get_args(Split):
            raise not_among(f"data.{name}", "no split of a data set", name, get_args(Split))
    # A run records of what was given its type alone, and of a list each item.
    unlisted = {n: UserList(x) if isinstance(x, list | tuple) else x for n, x in splits.items()}
    return Part(given_images, splits=unlisted)


def shows_whole(block: Any, size: int) -> bool:
    """Whether images were given that have the size of the views already."""
    if not isinstance(block, Part) or block.target is not given_images:
        return False
    images = given_images("pretrain", splits=block.kwargs["splits"])
    images = images.apart() if isinstance(images, Wrapped) else images
    return images.fetch(torch.zeros(1).long())[0].shape[1:] == (size, size)
