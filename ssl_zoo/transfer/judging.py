"""What was found on a set's pictures: kept small, measured, and written as its layout has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from ssl_zoo.system.files import replacing, write_text
from ssl_zoo.transfer.masks import library
from ssl_zoo.transfer.metrics import (
    Measures,
    coco_measures,
    coco_results,
    confusion,
    overlap_measures,
    voc_measures,
)
from ssl_zoo.transfer.metrics.coco import OWN_SIGMA
from ssl_zoo.transfer.sets.coco import COCO, LVIS
from ssl_zoo.transfer.source import IGNORED, AnnotatedSet, Target

PERSON = 17  # keypoints that COCO's OKS knows
SURE = 0.5  # from this score on a detection is shown, and counts for how well a picture is done
OVERLAP = 0.5  # IoU from which on it is right, there


class Judge:
    """Knows what to make of a model's output on a set.

    Attributes:
        metric: the main one.
        measured: by which rules, for the protocol.
    """

    metric = "AP"
    measured: str

    def __init__(self, dataset: AnnotatedSet):
        self.dataset = dataset

    def entry(self, i: int, output: Any, target: Any) -> Any:
        """Of picture i: what `measures` and `write` need, in little space and plain values."""
        raise NotImplementedError

    def quality(self, output: Any, target: Any) -> float | None:
        """How well a picture is done, 0 to 1, to choose which are shown; None: this one is not."""
        raise NotImplementedError

    def measures(self, entries: Sequence[Any]) -> Measures:
        """Of the entries of all pictures, in order."""
        raise NotImplementedError

    def write(self, entries: Sequence[Any], folder: Path) -> None:
        """The predictions, to a folder that is there."""
        raise NotImplementedError


def judge_of(dataset: AnnotatedSet) -> Judge:
    """ImportError where its measure needs what is not there."""
    if dataset.task == "semantic":
        return OfMaps(dataset)
    return OfCOCO(dataset) if isinstance(dataset, COCO) else OfBoxes(dataset)


class OfObjects(Judge):
    """What judges of objects share."""

    def quality(self, output: Target, target: Target) -> float | None:
        """F1 of the boxes that it is sure of: each is right for at most one object of its class."""
        wanted = target["iscrowd"] == 0
        truth, labels = target["boxes"][wanted], target["labels"][wanted]
        sure = output["scores"] >= SURE
        order = output["scores"][sure].argsort(descending=True)
        boxes, of = output["boxes"][sure][order], output["labels"][sure][order]
        if not len(truth):
            return None
        same = of[:, None] == labels[None]
        iou = torch.where(same, box_iou(boxes.float(), truth), 0.0)  # [n, m]
        free, right = torch.ones(len(truth), dtype=torch.bool), 0
        for row in iou:
            best = torch.where(free, row, 0.0).max(0)
            if best.values >= OVERLAP:
                free[best.indices] = False
                right += 1
        return 2 * right / (len(boxes) + len(truth))


class OfBoxes(OfObjects):
    """Boxes by VOC's rules. Files as its kit's: a class each, of lines `NAME score x0 y0 x1 y1`."""

    def __init__(self, dataset: AnnotatedSet):
        super().__init__(dataset)
        self.measured = f"PASCAL VOC's AP by its integral of {dataset.integral}, mean over classes"

    def entry(self, i: int, output: Target, target: Target) -> dict[str, list]:
        found = {name: output[name].tolist() for name in ("boxes", "labels", "scores")}
        return {**found, "name": self.dataset.name(i), "index": i}

    def measures(self, entries: Sequence[dict]) -> Measures:
        outputs = [
            {
                "boxes": torch.tensor(entry["boxes"]).view(-1, 4),
                "labels": torch.tensor(entry["labels"], dtype=torch.int64),
                "scores": torch.tensor(entry["scores"]),
            }
            for entry in entries
        ]
        truths = [self.dataset.target(entry["index"]) for entry in entries]
        return voc_measures(outputs, truths, self.dataset.classes, self.dataset.integral)

    def write(self, entries: Sequence[dict], folder: Path) -> None:
        lines: dict[str, list[str]] = {name: [] for name in self.dataset.classes}
        for entry in entries:
            for box, label, score in zip(
                entry["boxes"], entry["labels"], entry["scores"], strict=True
            ):
                x0, y0, x1, y1 = box  # VOC's pixels count from 1, the last one is inside
                corners = f"{x0 + 1:.2f} {y0 + 1:.2f} {x1:.2f} {y1:.2f}"
                line = f"{entry['name']} {score:.6f} {corners}\n"
                lines[self.dataset.classes[label - 1]].append(line)
        for name, of in lines.items():
            shown = name.replace("/", "%2F")
            write_text(folder / f"comp3_det_{self.dataset.split}_{shown}.txt", "".join(of))


class OfCOCO(OfObjects):
    """Boxes, masks or keypoints by COCO's rules, LVIS by its own; COCO's files of results."""

    kinds: ClassVar = {
        "boxes": ("bbox",),
        "masks": ("segm", "bbox"),
        "keypoints": ("keypoints", "bbox"),
    }

    def __init__(self, dataset: COCO):
        super().__init__(dataset)
        library()
        self.of = self.kinds[dataset.task]
        self.lvis = isinstance(dataset, LVIS)
        self.measured = f"{'LVIS' if self.lvis else 'COCO'}'s AP of {dataset.task}"
        if dataset.task == "keypoints" and len(dataset.keypoints) != PERSON:
            self.measured += f", {OWN_SIGMA} for each of {len(dataset.keypoints)} in its OKS"

    def entry(self, i: int, output: Target, target: Target) -> dict[str, list]:
        ids, image = self.dataset.category_ids, target["image_id"]
        return {kind: coco_results(output, image, ids, kind) for kind in self.of}

    def measures(self, entries: Sequence[dict]) -> Measures:
        """The main kind's, and of the boxes beside them, `box_AP` and so on."""
        truth = self.dataset.truth()
        main, *others = (
            coco_measures(truth, self._all(entries, kind), kind, lvis=self.lvis) for kind in self.of
        )
        boxes = {f"box_{name}": value for of in others for name, value in of.metrics.items()}
        return Measures({**main.metrics, **boxes}, main.by_class)

    def write(self, entries: Sequence[dict], folder: Path) -> None:
        for kind in self.of:
            text = json.dumps(self._all(entries, kind))
            write_text(folder / f"{kind}_results.json", text)

    @staticmethod
    def _all(entries: Sequence[dict], kind: str) -> list[dict]:
        return [result for entry in entries for result in entry[kind]]


class OfMaps(Judge):
    """Semantic maps by their mean overlap; files are PNGs of class numbers."""

    metric = "mIoU"
    measured = "mean IoU over classes, of one confusion matrix over all pictures"

    def entry(self, i: int, output: Tensor, target: Tensor) -> dict[str, Any]:
        file = BytesIO()
        Image.fromarray(output.numpy().astype(np.uint8)).save(file, "PNG")
        matrix = confusion(output, target, len(self.dataset.classes)).int()
        return {"name": self.dataset.name(i), "png": file.getvalue(), "matrix": matrix}

    def quality(self, output: Tensor, target: Tensor) -> float | None:
        """The mean overlap of this picture alone."""
        if (target == IGNORED).all():
            return None
        classes = self.dataset.classes
        measures = overlap_measures(confusion(output, target, len(classes)), classes)
        return measures.metrics["mIoU"] / 100

    def measures(self, entries: Sequence[dict]) -> Measures:
        return overlap_measures(
            sum(entry["matrix"].long() for entry in entries), self.dataset.classes
        )

    def write(self, entries: Sequence[dict], folder: Path) -> None:
        for entry in entries:
            with replacing(folder / f"{entry['name']}.png") as staged:
                staged.write_bytes(entry["png"])
