"""What an annotated data set offers: pictures, and what is to be found in them.

Boxes are [x0, y0, x1, y1] in pixels from the picture's top left corner, where a picture of width W
reaches from 0 to W: a box of one pixel has sides of 1.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_zoo.config import Registry
from ssl_zoo.data.files import counted, some
from ssl_zoo.data.image import decode
from ssl_zoo.data.image.decode import GRAY_STEPS, BadImage, Decoding
from ssl_zoo.data.source import roots
from ssl_zoo.system.files import sha256
from ssl_zoo.system.text import one_line

ANNOTATED = Registry("annotated data set")
OWN_CLASSES = "classes.txt"
IGNORED = 255  # in semantic maps: counts neither for nor against
# Of a box that is trained on, in pixels: a thinner one may be gone once it is mirrored and scaled.
LEAST_SIDE = 0.01
Target = dict[str, Any]


class AnnotatedSet(torch.utils.data.Dataset):
    """A split of pictures with annotations, which are read and checked when it is made.

    What cannot be read, or is not there, is an error then, and not in the middle of training; that
    a picture itself is damaged is found when it is decoded (a `BadImage`).

    Attributes:
        task: what is to be found: boxes, masks, keypoints, or a semantic map; the argument of this
            name or, where there is none, the class's.
        classes: names. The label of classes[i] is i + 1 in boxes, where 0 is background, and i in
            semantic maps.
        found: what was found, a line for a person.
        objects: [n] int64, how many a picture has that can be learned from (`learnable`); of a
            semantic set 1 each.
        paths: the pictures' files.
        annotations: the files that tell what is on them.
        integral: of average precision, see `voc_measures`.
        subfolders: of a root, where the layout may also lie.
    """

    task: str
    classes: list[str]
    found: str
    objects: Tensor
    paths: list[str]
    annotations: Sequence[str]
    integral: Literal["2007", "2010"] = "2010"
    subfolders: ClassVar[tuple[str, ...]] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, Target | Tensor]:
        """The picture, uint8 [3, H, W], and its `target`."""
        target = self.target(i)
        size = tuple(target.shape) if isinstance(target, Tensor) else target["size"]
        return picture(self.paths[i], size), target

    @cached_property
    def identity(self) -> str:
        """Which pictures and annotations these are, wherever they lie.

        Of pictures the names, below the folder that they have in common, and sizes in bytes; of
        annotations all that their files hold.
        """
        folder = os.path.commonpath([os.path.dirname(path) for path in self.paths])
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for path in self.paths:
            name = os.fsencode(os.path.relpath(path, folder))
            digest.update(b"%s %d\n" % (name, os.path.getsize(path)))
        for path in self.annotations:
            digest.update(sha256(Path(path)).encode())
        return digest.hexdigest()[:12]

    def name(self, i: int) -> str:
        """What people call picture i: its file without folder and suffix; with the folders that
        tell them apart, joined by _, where two would have one name.
        """
        return self._names[i]

    @cached_property
    def _names(self) -> list[str]:
        names = [Path(path).stem for path in self.paths]
        if len(set(names)) == len(names):
            return names
        folder = os.path.commonpath([os.path.dirname(path) for path in self.paths])
        below = (Path(os.path.relpath(path, folder)) for path in self.paths)
        return ["_".join(path.with_suffix("").parts) for path in below]

    def target(self, i: int) -> Target | Tensor:
        """Of picture i, which is not read: a semantic map [H, W] int64, or a dict as torchvision's.

        boxes [n, 4] float32, clipped to the picture (one that lies outside is left without area);
        labels [n] int64; area [n] float32 as annotated; iscrowd [n] int64: a region of many
        objects; difficult [n] bool: not counted by VOC's measure; image_id, the data set's own;
        size (H, W). With masks: masks [n, H, W] uint8. With keypoints: keypoints [n, K, 3]
        float32 of x, y and whether it is there (0), hidden (1) or visible (2).
        """
        raise NotImplementedError

    @classmethod
    def folder(cls, root: str | os.PathLike | None, *wanted: str) -> Path:
        """The first place that has all of `wanted`, paths below it.

        Raises:
            FileNotFoundError: none has; says what each lacks.
        """
        places = [place / below for place in roots(root) for below in ("", *cls.subfolders)]
        lacking = []
        for place in places:
            missing = [name for name in wanted if not (place / name).exists()]
            if not missing:
                return place
            lacking.append(f"{place} has no {missing[0]}")
        where = "" if root is not None else "; its place can be given as `root`"
        raise FileNotFoundError(f"{cls.__name__}: {'; '.join(lacking)}{where}")


class Records(Sequence):
    """Plain values as bytes in one array, which processes share.

    Millions of Python objects would be copied into each worker as their reference counts change.
    """

    def __init__(self, items: Iterable[Any]):
        texts = [json.dumps(item).encode() for item in items]
        self.ends = np.cumsum([len(text) for text in texts])
        self.bytes = np.frombuffer(b"".join(texts), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> Any:
        start = self.ends[i - 1] if i else 0
        return json.loads(self.bytes[start : self.ends[i]].tobytes())


def picture(path: str, size: tuple[int, int]) -> Tensor:
    """The picture that annotations of size (H, W) were made on, uint8 [3, H, W].

    It is turned upright as EXIF says, as programs show it to who annotates (and as detectron2
    reads it); or left as stored where only so it has the annotated size.

    Raises:
        BadImage: it cannot be decoded, or has that size neither way.
    """
    upright = decode.pixels(path)
    if upright.shape[1:] == torch.Size(size):
        return upright
    stored = decode.pixels(path, how=Decoding(exif=False))
    if stored.shape[1:] == torch.Size(size):
        return stored
    found, expected = (f"{w} x {h}" for h, w in (upright.shape[1:], size))
    raise BadImage(f"{one_line(path)}: is {found} pixels, its annotation says {expected}", path)


def label_map(path: str) -> Tensor:
    """The numbers that a PNG of labels holds, [H, W] int64, whatever colors a palette gives.

    Raises:
        BadImage: no such PNG, or one of colors.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("P", "L", "1"):
                problem = f"its mode is {image.mode}, expected P, L or 1, a number a pixel"
                raise ValueError(problem)
            steps = GRAY_STEPS.get(image.tile[0][3], 1)
            return torch.from_numpy(np.asarray(image).astype(np.int64) // steps)
    except (OSError, ValueError, SyntaxError) as error:
        raise BadImage(f"{one_line(path)}: cannot be read as labels ({error})", path) from error


def boxes_target(
    image_id: int, size: tuple[int, int], boxes: list, labels: list, **more: list
) -> Target:
    """A `target`; `more` may have area, iscrowd and difficult."""
    height, width = size
    given = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    clipped = torch.minimum(given.clamp(min=0), torch.tensor([width, height] * 2))
    area = (clipped[:, 2:] - clipped[:, :2]).prod(1)
    none = [0] * len(given)
    return {
        "boxes": clipped,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "area": torch.tensor(more["area"], dtype=torch.float32) if "area" in more else area,
        "iscrowd": torch.tensor(more.get("iscrowd", none), dtype=torch.int64),
        "difficult": torch.tensor(more.get("difficult", none), dtype=torch.bool),
        "image_id": image_id,
        "size": (height, width),
    }


def learnable(target: Target) -> Target:
    """Without crowds, and without boxes and masks that have no area inside the picture.

    Difficult objects stay, as in detectron2's training on VOC.
    """
    boxes = target["boxes"]
    kept = (target["iscrowd"] == 0) & (boxes[:, 2:] - boxes[:, :2] > LEAST_SIDE).all(1)  # [n]
    if "masks" in target:
        kept &= (target["masks"] != 0).flatten(1).any(1)
    return {name: x[kept] if isinstance(x, Tensor) else x for name, x in target.items()}


def has_area(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether `learnable` keeps this [x0, y0, x1, y1] of a picture of (height, width)."""
    height, width = size
    sides = min(box[2], width) - max(box[0], 0), min(box[3], height) - max(box[1], 0)
    return min(sides) > LEAST_SIDE


def list_folder(folder: Path) -> dict[str, str]:
    """Names of pictures in a folder without their suffix -> with it."""
    known = decode.suffixes()
    names = (entry.name for entry in os.scandir(folder))
    split = ((name, *os.path.splitext(name)) for name in sorted(names))
    return {stem: name for name, stem, suffix in split if suffix.lower() in known}


def all_there(what: str, missing: Sequence[str]) -> None:
    """Raises FileNotFoundError if files are missing."""
    if missing:
        raise FileNotFoundError(
            f"{what}: {counted(len(missing), 'missing file')} ({some(missing)})"
        )


def own_classes(place: Path) -> list[str]:
    """Of a set in a published layout that has classes of its own; [] if it has not."""
    path = place / OWN_CLASSES
    if not path.is_file():
        return []
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path}: found {len(names)} names, some twice; expected one a line")
    return names


def in_range(labels: Tensor, classes: Sequence[str], path: str) -> Tensor:
    """A map, if all its labels are of classes, or ignored."""
    known = (labels < len(classes)) | (labels == IGNORED)
    if not known.all():
        expected = f"0 to {len(classes) - 1}, or {IGNORED}"
        raise ValueError(f"{path}: found a label {int(labels[~known][0])}, expected {expected}")
    return labels
