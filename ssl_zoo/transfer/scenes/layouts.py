"""Scenes and tiles on disk, as the readers of `transfer.sets` read them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ssl_zoo.system.files import write_text
from ssl_zoo.transfer.masks import counted_runs
from ssl_zoo.transfer.scenes.painting import Scene
from ssl_zoo.transfer.sets.cityscapes import PICTURE
from ssl_zoo.transfer.source import OWN_CLASSES

BACKGROUND = "background"
QUALITY = {"quality": 95, "subsampling": 0}  # of JPEGs


class Box(NamedTuple):
    """An object in VOC's file: its class, [x0, y0, x1, y1], and whether part of it is not seen."""

    name: str
    box: tuple[int, int, int, int]
    truncated: bool


class Layout:
    """Takes pictures one after the other; what is one file for all is written by `close`."""

    def __init__(self, folder: Path, classes: Sequence[str]):
        self.folder, self.classes = folder, list(classes)

    def add(self, split: str, number: int, scene: Scene) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _made(self, *parts: str) -> Path:
        """A path below the folder; the folder that it is in is there afterwards."""
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class COCOLayout(Layout):
    """train2017/, val2017/ and annotations/instances_*.json, masks as run lengths."""

    parts: ClassVar = {"train": "train2017", "test": "val2017"}

    def __init__(self, folder: Path, classes: Sequence[str]):
        super().__init__(folder, classes)
        self.images: dict[str, list[dict]] = {split: [] for split in self.parts}
        self.annotations: dict[str, list[dict]] = {split: [] for split in self.parts}

    def add(self, split: str, number: int, scene: Scene) -> None:
        name = f"{number:012d}.jpg"
        Image.fromarray(scene.image).save(self._made(self.parts[split], name), **QUALITY)
        height, width = scene.image.shape[:2]
        image = {"id": number, "file_name": name, "height": height, "width": width}
        self.images[split].append(image)
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            x0, y0, x1, y1 = around(mask)
            annotation = {
                "id": len(self.annotations[split]) + 1,
                "image_id": number,
                "category_id": label,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": counted_runs(mask),
            }
            self.annotations[split].append(annotation)

    def close(self) -> None:
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes, start=1)]
        for split, part in self.parts.items():
            content = {"images": self.images[split], "annotations": self.annotations[split]}
            path = self._made("annotations", f"instances_{part}.json")
            write_text(path, json.dumps({**content, "categories": categories}))


class VOCLayout(Layout):
    """JPEGImages/, Annotations/, Segmentation*/ and ImageSets/, in the folder itself."""

    def __init__(self, folder: Path, classes: Sequence[str]):
        super().__init__(folder, classes)
        self.names: dict[str, list[str]] = {"train": [], "test": []}

    def add(self, split: str, number: int, scene: Scene) -> None:
        named = zip(scene.labels, scene.masks, scene.whole, strict=True)
        boxes = [Box(self.classes[i - 1], around(mask), whole < 1) for i, mask, whole in named]
        name = f"{split}_{number:06d}"
        self.add_boxes(split, name, scene.image, boxes)
        objects = np.zeros(scene.image.shape[:2], np.uint8)
        for count, mask in enumerate(scene.masks, start=1):
            objects[mask] = count
        for kind, labels in (
            ("SegmentationClass", label_of(scene)),
            ("SegmentationObject", objects),
        ):
            image = Image.fromarray(labels)
            image.putpalette(_palette())
            image.save(self._made(kind, f"{name}.png"))

    def add_boxes(self, split: str, name: str, image: np.ndarray, boxes: Sequence[Box]) -> None:
        """A picture, uint8 [H, W, 3], without a map."""
        Image.fromarray(image).save(self._made("JPEGImages", f"{name}.jpg"), **QUALITY)
        height, width = image.shape[:2]
        content: dict[str, Any] = {"filename": f"{name}.jpg"}
        content["size"] = {"width": width, "height": height, "depth": 3}
        content["object"] = [
            {
                "name": of.name,
                "truncated": int(of.truncated),
                "difficult": 0,
                # From 1 on, the last one inside.
                "bndbox": dict(
                    xmin=of.box[0] + 1, ymin=of.box[1] + 1, xmax=of.box[2], ymax=of.box[3]
                ),
            }
            for of in boxes
        ]
        tree = _element("annotation", content)
        ElementTree.indent(tree)
        path = self._made("Annotations", f"{name}.xml")
        write_text(path, ElementTree.tostring(tree, encoding="unicode") + "\n")
        self.names[split].append(name)

    def close(self) -> None:
        write_text(self._made(OWN_CLASSES), "".join(f"{name}\n" for name in self.classes))
        maps = (self.folder / "SegmentationClass").is_dir()
        for kind in ("Main", "Segmentation") if maps else ("Main",):
            for split, names in self.names.items():
                path = self._made("ImageSets", kind, f"{split}.txt")
                write_text(path, "".join(f"{name}\n" for name in names))


class CityscapesLayout(Layout):
    """leftImg8bit/ and gtFine/ with train/ and val/: semantic maps, 0 is background."""

    parts: ClassVar = {"train": "train", "test": "val"}

    def add(self, split: str, number: int, scene: Scene) -> None:
        place, name = os.path.join(self.parts[split], "scenes"), f"scenes_{number:06d}_000000"
        picture = self._made("leftImg8bit", place, name + PICTURE)
        Image.fromarray(scene.image).save(picture)
        labels = self._made("gtFine", place, f"{name}_gtFine_labelTrainIds.png")
        Image.fromarray(label_of(scene)).save(labels)

    def close(self) -> None:
        names = [BACKGROUND, *self.classes]
        write_text(self._made(OWN_CLASSES), "".join(f"{name}\n" for name in names))


LAYOUTS = {"coco": COCOLayout, "voc": VOCLayout, "cityscapes": CityscapesLayout}


def around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box [x0, y0, x1, y1] of what is true in [H, W]."""
    columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def label_of(scene: Scene) -> np.ndarray:
    """The semantic map, uint8 [H, W], 0 where there is no object."""
    labels = np.zeros(scene.image.shape[:2], np.uint8)
    for label, mask in zip(scene.labels, scene.masks, strict=True):
        labels[mask] = label
    return labels


def _element(tag: str, content: Any) -> ElementTree.Element:
    """XML of a mapping; a list in it is as many elements of its name."""
    element = ElementTree.Element(tag)
    if not isinstance(content, dict):
        element.text = str(content)
        return element
    for name, value in content.items():
        for item in value if isinstance(value, list) else [value]:
            element.append(_element(name, item))
    return element


def _palette() -> list[int]:
    """Of 256 labels, colors that are told apart: a label's bits are spread over the channels."""
    return [
        sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
        for label in range(256)
        for channel in range(3)
    ]
