"""Cityscapes: streets, a semantic map of 19 classes."""

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ssl_zoo.config import OfMachine
from ssl_zoo.data.files import counted
from ssl_zoo.data.source import Split, check_split
from ssl_zoo.transfer.source import (
    ANNOTATED,
    IGNORED,
    AnnotatedSet,
    all_there,
    in_range,
    label_map,
    own_classes,
)

# label id in the files -> class; the other of the ids 0 to 33 are ignored.
TRAINED = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
IDS = 34
PICTURE = "_leftImg8bit.png"


@ANNOTATED.register_module()
class Cityscapes(AnnotatedSet):
    """Cityscapes' fine annotations (arXiv:1604.01685): 2975 pictures train, 500 test.

    A set of other classes names them in classes.txt in the root, a line each; its maps are then
    *_gtFine_labelTrainIds.png, and hold positions in that list.

    Args:
        root: the folder of leftImg8bit/ and gtFine/. None: $SSL_ZOO_DATA (or cityscapes/ in it),
            then ./data.
        train, test: the folders of pictures in both.

    Raises:
        FileNotFoundError: a file is missing; names it.
    """

    subfolders = ("cityscapes",)
    task: Literal["semantic"] = "semantic"

    def __init__(
        self,
        split: Split,
        *,
        root: OfMachine[str | None] = None,
        train: str = "train",
        test: str = "val",
    ):
        self.split = check_split(split)
        part = train if self.split == "train" else test
        folders = [os.path.join(kind, part) for kind in ("leftImg8bit", "gtFine")]
        place = self.folder(root, *folders)
        own = own_classes(place)
        self.classes = own or list(TRAINED.values())
        self._table = None if own else _table()
        pictures, maps = (place / folder for folder in folders)
        end = "_gtFine_labelTrainIds.png" if own else "_gtFine_labelIds.png"
        names = _below(pictures, PICTURE)
        if not names:
            raise FileNotFoundError(f"Cityscapes: no picture */*{PICTURE} in {pictures}")
        there = set(_below(maps, end))
        missing = [str(maps / (name + end)) for name in names if name not in there]
        all_there("Cityscapes", missing)
        self.paths = [str(pictures / (name + PICTURE)) for name in names]
        self.annotations = [str(maps / (name + end)) for name in names]
        self.objects = torch.ones(len(names), dtype=torch.int64)
        self.found = f"{pictures}: {counted(len(names), 'picture')} of {len(self.classes)} classes"

    def target(self, i: int) -> Tensor:
        labels = label_map(self.annotations[i])
        if self._table is None:
            return in_range(labels, self.classes, self.annotations[i])
        return self._table[in_range(labels, range(IDS), self.annotations[i])]


def _table() -> Tensor:
    """The class of each label id, [256] int64."""
    table = torch.full((256,), IGNORED)
    table[list(TRAINED)] = torch.arange(len(TRAINED))
    return table


def _below(folder: Path, end: str) -> list[str]:
    """CITY/NAME of the files CITY/NAME + end, sorted."""
    found = (path.relative_to(folder) for path in folder.glob(f"*/*{end}"))
    return sorted(str(path)[: -len(end)] for path in found)
