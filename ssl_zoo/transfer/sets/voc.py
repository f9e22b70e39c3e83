"""PASCAL VOC: XML for boxes, PNG with a palette for semantic maps."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import torch
from torch import Tensor

from ssl_zoo.config import OfMachine, closest
from ssl_zoo.data.files import counted
from ssl_zoo.data.source import Split, check_split
from ssl_zoo.transfer.source import (
    ANNOTATED,
    OWN_CLASSES,
    AnnotatedSet,
    Records,
    Target,
    all_there,
    boxes_target,
    has_area,
    in_range,
    label_map,
    list_folder,
    own_classes,
)

CLASSES = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"]
CLASSES += ["diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"]
CLASSES += ["train", "tvmonitor"]
# What MoCo's paper (arXiv:1911.05722) trains and tests on, boxes of both years and maps of 2012.
PUBLISHED = {
    "boxes": {"train": ["VOC2007/trainval", "VOC2012/trainval"], "test": ["VOC2007/test"]},
    "semantic": {"train": ["VOC2012/train"], "test": ["VOC2012/val"]},
}
BACKGROUND = "background"
KIND = {"boxes": "Main", "semantic": "Segmentation"}  # of image sets


@ANNOTATED.register_module()
class VOC(AnnotatedSet):
    """PASCAL VOC 2007, 2012 or both, or an own set in their layout.

    VOC counts pixels from 1 and names the last one inside: the box xmin 1, xmax W is [0, W] here.
    A set that has others than VOC's 20 classes names them in classes.txt in the root, a line each.

    Args:
        root: the folder of VOC2007/ and VOC2012/ (VOCdevkit/). None: $SSL_ZOO_DATA, then ./data.
        task: boxes; or semantic: 21 classes, background first, the border of objects ignored.
        train, test: image sets, each `FOLDER/NAME`: FOLDER/ImageSets/Main/NAME.txt (Segmentation
            for maps) below the root. None: of boxes VOC2007/trainval and VOC2012/trainval, tested
            on VOC2007/test; of maps VOC2012/train and val. An own set's are mostly `train`, `test`.

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: an annotation is damaged; names file, object, found and expected.
    """

    subfolders = ("VOCdevkit",)

    def __init__(
        self,
        split: Split,
        *,
        root: OfMachine[str | None] = None,
        task: Literal["boxes", "semantic"] = "boxes",
        train: list[str] | None = None,
        test: list[str] | None = None,
    ):
        self.split, self.task = check_split(split), task
        chosen = (train if self.split == "train" else test) or PUBLISHED[task][self.split]
        sets = [(Path(name).parent, Path(name).name) for name in chosen]
        lists = [str(of / "ImageSets" / KIND[task] / f"{name}.txt") for of, name in sets]
        place = self.folder(root, *lists)
        if all(of.name == "VOC2007" for of, _ in sets):
            self.integral = "2007"
        names = own_classes(place) or CLASSES
        if task == "semantic" and BACKGROUND in names:
            problem = f"found {BACKGROUND!r}, which has the number 0 of itself"
            raise ValueError(f"{place / OWN_CLASSES}: {problem}; expected the others")
        self.classes = list(names) if task == "boxes" else [BACKGROUND, *names]
        members = [
            (place / of, name)
            for (of, _), path in zip(sets, lists, strict=True)
            for name in _listed(place / path)
        ]
        kinds = {"boxes": ("Annotations", ".xml"), "semantic": ("SegmentationClass", ".png")}
        self.paths, self.annotations = _files(members, *kinds[task])
        if task == "boxes":
            read = [
                read_objects(path, Path(path).read_bytes(), self.classes)
                for path in self.annotations
            ]
            difficult = [value for of in read for value in of["difficult"]]
            if self.split == "test" and difficult and all(difficult):
                problem = "no object but difficult ones, which count neither for nor against"
                raise ValueError(f"{place}: {', '.join(chosen)}: {problem}")
            self._records = Records(read)
            self.objects = torch.tensor(
                [sum(has_area(box, of["size"]) for box in of["boxes"]) for of in read]
            )
            of = counted(sum(len(record["boxes"]) for record in read), "object")
        else:
            self.objects, of = torch.ones(len(self.paths), dtype=torch.int64), "semantic maps"
        self.found = f"{place}: {counted(len(self), 'picture')} of {', '.join(chosen)}, {of}"

    def target(self, i: int) -> Target | Tensor:
        if self.task == "semantic":
            return in_range(label_map(self.annotations[i]), self.classes, self.annotations[i])
        return boxes_target(i, **self._records[i])


def _listed(path: Path) -> list[str]:
    """Names in an image set; what else stands in a line (a class's 1, 0 or -1) is not read."""
    names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path}: lists no image")
    return names


def _files(
    members: list[tuple[Path, str]], folder: str, suffix: str
) -> tuple[list[str], list[str]]:
    """Of each (folder of a year, name): the picture, and the annotation."""
    pictures, annotations, missing = [], [], []
    years = dict.fromkeys(year for year, _ in members)
    for name in ("JPEGImages", folder):
        all_there("VOC", [str(year / name) for year in years if not (year / name).is_dir()])
    images = {year: list_folder(year / "JPEGImages") for year in years}
    there = {year: {path.name for path in (year / folder).iterdir()} for year in years}
    for year, name in members:
        if name not in images[year]:
            missing.append(str(year / "JPEGImages" / f"{name}.jpg"))
        if name + suffix not in there[year]:
            missing.append(str(year / folder / (name + suffix)))
        pictures.append(str(year / "JPEGImages" / images[year].get(name, "")))
        annotations.append(str(year / folder / (name + suffix)))
    all_there("VOC", missing)
    return pictures, annotations


def read_objects(path: str, text: bytes, classes: Sequence[str]) -> dict:
    """size, boxes, labels and difficult of a file of annotations; errors name its path."""

    def wrong(problem: str) -> ValueError:
        return ValueError(f"{path}: {problem}")

    def number(of: ElementTree.Element | None, tag: str, where: str) -> float:
        text = "" if of is None else of.findtext(tag, "")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not isfinite(value):
            raise wrong(f"{where}: {tag}: found {text!r}, expected a number")
        return value

    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise wrong(f"no XML ({error})") from error
    size = tuple(int(number(tree.find("size"), tag, "size")) for tag in ("height", "width"))
    boxes, labels, difficult = [], [], []
    for count, item in enumerate(tree.iter("object"), start=1):
        where, name = f"object {count}", item.findtext("name", "").strip()
        if name not in classes:
            nearest = closest(name, classes)
            hint = f"; nearest: {nearest}" if nearest else ""
            raise wrong(f"{where}: found the class {name!r}, expected one of the set's{hint}")
        of = item.find("bndbox")
        x0, y0, x1, y1 = (number(of, tag, where) for tag in ("xmin", "ymin", "xmax", "ymax"))
        if x1 < x0 or y1 < y0:
            raise wrong(f"{where}: found the box {[x0, y0, x1, y1]}, expected min <= max")
        boxes.append([x0 - 1, y0 - 1, x1, y1])
        labels.append(list(classes).index(name) + 1)
        difficult.append(item.findtext("difficult", "0").strip() == "1")
    return {"size": size, "boxes": boxes, "labels": labels, "difficult": difficult}
