"""COCO's layout: one JSON of annotations a split. Instances, keypoints, and LVIS."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from ssl_zoo.config import OfMachine
from ssl_zoo.data.files import counted
from ssl_zoo.data.source import Split, check_split
from ssl_zoo.transfer.masks import decoded, library
from ssl_zoo.transfer.source import (
    ANNOTATED,
    AnnotatedSet,
    Records,
    Target,
    all_there,
    boxes_target,
    has_area,
)

Task = Literal["boxes", "masks", "keypoints"]
SIDE = re.compile("(?<![a-z])(left|right|l|r)(?![a-z])")  # a word of a keypoint's name
OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


@ANNOTATED.register_module()
class COCO(AnnotatedSet):
    """COCO 2017 (arXiv:1405.0312), or an own set in its layout.

    Categories are numbered without the gaps of their ids: the i-th in the order of ids is label
    i + 1, and `category_ids` has their ids.

    Args:
        root: the folder of annotations/, train2017/ and val2017/. None: $SSL_ZOO_DATA (or coco/
            in it), then ./data.
        task: boxes and masks read annotations/instances_NAME.json, keypoints
            annotations/person_keypoints_NAME.json.
        train, test: NAME, which is also the folder of the pictures.

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: an annotation is damaged; names file, id, found and expected.
        ImportError: masks need faster-coco-eval.
    """

    subfolders = ("coco",)
    name_key = "file_name"  # of an entry of images
    image_keys: ClassVar[dict[str, type]] = {}  # what else it has to have
    category_keys: ClassVar[dict[str, type]] = {}
    files: ClassVar[dict[str, str]] = {
        "boxes": "instances_{}.json",
        "masks": "instances_{}.json",
        "keypoints": "person_keypoints_{}.json",
    }

    def __init__(
        self,
        split: Split,
        *,
        root: OfMachine[str | None] = None,
        task: Task = "boxes",
        train: str = "train2017",
        test: str = "val2017",
    ):
        self.split = check_split(split)
        name = train if self.split == "train" else test
        file = os.path.join("annotations", self.files[task].format(name))
        self._read(self.folder(root, file, name) / file, task, name)

    def _read(self, path: Path, task: Task, pictures: str) -> None:
        if task == "masks":
            library()
        self.task, self.path, self.annotations = task, path, [str(path)]
        image_keys = {self.name_key: str, **self.image_keys}
        content = _Content(path, task, image_keys, self.category_keys)
        self.classes = [category["name"] for category in content.categories]
        self.category_ids = [category["id"] for category in content.categories]
        self.keypoints: list[str] = content.keypoints
        place = path.parent.parent
        names = [self.picture_name(image, pictures) for image in content.images]
        folders = {os.path.dirname(name) for name in names}
        there = {
            os.path.join(folder, entry.name)
            for folder in folders
            if (place / folder).is_dir()
            for entry in os.scandir(place / folder)
        }
        all_there(str(path), [str(place / name) for name in names if name not in there])
        self.paths = [str(place / name) for name in names]
        self._records = Records(content.records())
        self.objects = torch.tensor([content.learnable[image["id"]] for image in content.images])
        of = f"{counted(len(content.annotations), 'object')} of {len(self.classes):,} categories"
        if self.keypoints:
            pairs = sum(i != other for i, other in enumerate(self.mirrored_keypoints())) // 2
            of += f", {len(self.keypoints)} keypoints, {pairs} pairs of left and right"
        self.found = f"{path}: {counted(len(self), 'picture')}, {of}"

    def picture_name(self, image: Mapping[str, Any], pictures: str) -> str:
        """Of an entry of images: the file below the root."""
        return os.path.join(pictures, image[self.name_key])

    def target(self, i: int) -> Target:
        record = self._records[i]
        keypoints, shapes = record.pop("keypoints", None), record.pop("segmentation", None)
        target = boxes_target(**record)
        if shapes is not None:
            height, width = size = target["size"]
            masks = [decoded(shape, size) for shape in shapes]
            none = torch.zeros((0, height, width), dtype=torch.uint8)
            target["masks"] = torch.stack(masks) if masks else none
        if keypoints is not None:
            numbers = torch.tensor(keypoints, dtype=torch.float32)
            target["keypoints"] = numbers.view(-1, len(self.keypoints), 3)
        return target

    def mirrored_keypoints(self) -> list[int]:
        """Which keypoint each is in the mirror: a left one is the right one there, by its name.

        Raises:
            ValueError: a left one has no right one, or the other way round.
        """
        names = [name.lower() for name in self.keypoints]
        swapped = [SIDE.sub(lambda found: OTHER_SIDE[found[0]], name) for name in names]
        alone = [name for name, other in zip(names, swapped, strict=True) if other not in names]
        if alone:
            problem = f"found {alone[0]!r} without its other side"
            raise ValueError(f"{self.path}: keypoints: {problem}, expected both or neither")
        return [names.index(name) for name in swapped]

    def truth(self) -> dict[str, Any]:
        """The file of annotations, as `coco_measures` wants it."""
        return _loaded(self.path)


@ANNOTATED.register_module()
class LVIS(COCO):
    """LVIS v1 (arXiv:1908.03195): COCO's pictures, 1203 categories with frequencies.

    Args:
        root: COCO's folder, with annotations/lvis_v1_train.json and lvis_v1_val.json added. Both
            splits have pictures in train2017/ and in val2017/.
        train, test: names of the files.
    """

    name_key = "coco_url"
    category_keys: ClassVar[dict[str, type]] = {"frequency": str}
    image_keys: ClassVar[dict[str, type]] = {
        "neg_category_ids": list,
        "not_exhaustive_category_ids": list,
    }

    def __init__(
        self,
        split: Split,
        *,
        root: OfMachine[str | None] = None,
        task: Literal["boxes", "masks"] = "masks",
        train: str = "lvis_v1_train",
        test: str = "lvis_v1_val",
    ):
        self.split = check_split(split)
        name = train if self.split == "train" else test
        file = os.path.join("annotations", f"{name}.json")
        self._read(self.folder(root, file) / file, task, "")

    def picture_name(self, image: Mapping[str, Any], pictures: str) -> str:
        return os.path.join(*image[self.name_key].split("/")[-2:])


class _Content:
    """A file of annotations, checked: images, categories in the order of ids, annotations."""

    def __init__(
        self,
        path: Path,
        task: Task,
        image_keys: Mapping[str, type],
        category_keys: Mapping[str, type],
    ):
        self.path, self.task = path, task
        data = _loaded(path)
        for key in ("images", "annotations", "categories"):
            if not isinstance(data.get(key), list):
                raise ValueError(f"{path}: {key}: found no list of them")
        self.images, self.annotations = data["images"], data["annotations"]
        self._have("image", self.images, {"id": int, **image_keys})
        self._have("category", data["categories"], {"id": int, "name": str, **category_keys})
        self.categories = sorted(data["categories"], key=lambda category: category["id"])
        if not self.images or not self.categories:
            empty = "images" if not self.images else "categories"
            raise ValueError(f"{path}: {empty}: found none")
        self.keypoints = self.categories[0].get("keypoints", []) if task == "keypoints" else []
        if task == "keypoints" and (len(self.categories) > 1 or not self.keypoints):
            raise ValueError(f"{path}: categories: expected one, with names of its keypoints")
        self.label = {of["id"]: i for i, of in enumerate(self.categories, start=1)}
        self.sizes = {of["id"]: self._size(of) for of in self.images}
        if len(self.sizes) < len(self.images):
            raise ValueError(f"{path}: images: an id is there more than once")
        self.learnable: Counter[int] = Counter()
        for of in self.annotations:
            self._check(of)

    def _have(self, what: str, items: list, kinds: Mapping[str, type]) -> None:
        """Raises ValueError for one of them that lacks a key or has something else there."""
        for item in items:
            for key, kind in kinds.items():
                if not isinstance(item.get(key), kind):
                    found = f"{key}: found {item.get(key)!r}, expected {kind.__name__}"
                    raise ValueError(f"{self.path}: {what} {item.get('id')}: {found}")

    def _size(self, image: Mapping[str, Any]) -> tuple[int, int]:
        size = image.get("height"), image.get("width")
        if not all(isinstance(side, int) and side > 0 for side in size):
            which = f"{self.path}: image {image.get('id')}"
            raise ValueError(f"{which}: height, width: found {size}, expected numbers of pixels")
        return size

    def _check(self, of: Mapping[str, Any]) -> None:
        """Raises ValueError for an annotation that cannot be meant."""

        def wrong(key: str, expected: str) -> ValueError:
            found = repr(of.get(key))[:80]
            which = f"{self.path}: annotation {of.get('id')}"
            return ValueError(f"{which}: {key}: found {found}, expected {expected}")

        size = self.sizes.get(of.get("image_id"))
        if size is None:
            raise wrong("image_id", "the id of an image")
        if of.get("category_id") not in self.label:
            raise wrong("category_id", "the id of a category")
        box = of.get("bbox")
        if not (_numbers(box) and len(box) == 4 and box[2] >= 0 and box[3] >= 0):
            raise wrong("bbox", "[x, y, width, height]")
        if not _numbers([of.get("area")]):
            raise wrong("area", "a number")
        if of.get("iscrowd", 0) not in (0, 1):
            raise wrong("iscrowd", "0 or 1")
        if self.task == "masks" and not _is_shape(of.get("segmentation"), size):
            height, width = size
            raise wrong("segmentation", f"polygons, or run lengths of {width} x {height} pixels")
        points = of.get("keypoints")
        if self.keypoints and not (_numbers(points) and len(points) == 3 * len(self.keypoints)):
            raise wrong("keypoints", f"3 numbers for each of {len(self.keypoints)}")
        x, y, width, height = box
        # As in detectron2, a person without a visible keypoint is no reason to train on a picture;
        # nor is an object whose polygons have no three corners.
        shown = not self.keypoints or any(points[2::3])
        if self.task == "masks" and isinstance(of["segmentation"], list):
            shown = any(len(polygon) >= 6 for polygon in of["segmentation"])
        if not of.get("iscrowd", 0) and shown and has_area([x, y, x + width, y + height], size):
            self.learnable[of["image_id"]] += 1

    def records(self) -> list[dict[str, Any]]:
        """For each image, in the file's order, the arguments of `boxes_target` and more."""
        of_image: dict[int, list[dict]] = {image["id"]: [] for image in self.images}
        for of in self.annotations:
            of_image[of["image_id"]].append(of)
        more = {"masks": ("segmentation",), "keypoints": ("keypoints",)}.get(self.task, ())
        return [
            {
                "image_id": image,
                "size": self.sizes[image],
                "boxes": [[x, y, x + w, y + h] for x, y, w, h in (of["bbox"] for of in objects)],
                "labels": [self.label[of["category_id"]] for of in objects],
                "area": [of["area"] for of in objects],
                "iscrowd": [of.get("iscrowd", 0) for of in objects],
                **{key: [of[key] for of in objects] for key in more},
            }
            for image, objects in of_image.items()
        ]


def _loaded(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON, or cut short ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: found {type(data).__name__}, expected an object")
    return data


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(x, int | float) and not isinstance(x, bool) and isfinite(x) for x in values
    )


def _is_readable(runs: dict[str, Any], size: tuple[int, int]) -> bool:
    """Of run lengths as text, which tell only when they are decoded."""
    try:
        decoded(runs, size)
    except RuntimeError:
        return False
    return True


def _is_shape(shape: Any, size: tuple[int, int]) -> bool:
    if isinstance(shape, dict):
        counts = shape.get("counts")
        if shape.get("size") != list(size):
            return False
        if isinstance(counts, str):
            return _is_readable(shape, size)
        return _numbers(counts) and min(counts, default=0) >= 0 and sum(counts) == size[0] * size[1]
    return isinstance(shape, list) and all(_numbers(x) and len(x) % 2 == 0 for x in shape)
