"""Average precision as PASCAL VOC measures it, by the rules of its development kit."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor
from torchvision.ops import box_iou

from ssl_zoo.transfer.metrics.measures import Measures

THRESHOLDS = np.arange(50, 100, 5) / 100  # of IoU
Integral = Literal["2007", "2010"]


class _Matches(NamedTuple):
    """Of one class, detections by falling score, [n] each: the object that each overlaps most.

    Attributes:
        iou: with it; -1 where the picture has none.
        object: its number among all objects of the class.
        difficult: whether that one is not counted.
        count: of objects that are.
    """

    iou: np.ndarray
    object: np.ndarray
    difficult: np.ndarray
    count: int


def voc_measures(
    outputs: Sequence[Mapping[str, Tensor]],
    truths: Sequence[Mapping[str, Tensor]],
    classes: Sequence[str],
    integral: Integral = "2007",
) -> Measures:
    """AP (the mean over IoU 0.5, 0.55, ..., 0.95), AP50 and AP75, means over classes.

    A detection belongs to the object of its class that it overlaps most. It is right if that IoU
    reaches the threshold and no surer detection has the object; one of a difficult object does
    not count. Classes without an object that counts are left out of the means.

    Args:
        outputs: a picture's boxes [n, 4], labels [n] (from 1 on) and scores [n].
        truths: of the same pictures, boxes [m, 4], labels [m] and difficult [m].
        integral: 2007: the mean of the highest precision at recalls 0, 0.1, ..., 1 and beyond
            them, for VOC 2007 (and what detectron2, so MoCo's paper, gives for it); 2010: the
            whole area under that envelope, since 2010.
    """
    if len(outputs) != len(truths):
        raise ValueError(f"outputs of {len(outputs)} pictures, truths of {len(truths)}")
    area = {"2007": _by_eleven_points, "2010": _by_area}[integral]
    precisions = {}  # class -> [thresholds]
    for label, name in enumerate(classes, start=1):
        matches = _matched(outputs, truths, label)
        if matches.count:
            precisions[name] = [100 * area(*_curve(matches, t)) for t in THRESHOLDS]
    if not precisions:
        raise ValueError("no picture has an object that counts")
    mean = np.mean(list(precisions.values()), axis=0)
    metrics = {"AP": mean.mean(), "AP50": mean[0], "AP75": mean[5]}
    return Measures(
        {name: float(value) for name, value in metrics.items()},
        {name: float(np.mean(values)) for name, values in precisions.items()},
    )


def _matched(outputs: Sequence, truths: Sequence, label: int) -> _Matches:
    scores, ious, objects, difficult = [], [], [], []
    first = count = 0
    for output, truth in zip(outputs, truths, strict=True):
        found = output["labels"].cpu() == label
        of = truth["labels"] == label
        hard = truth["difficult"][of].numpy()
        n, m = int(found.sum()), len(hard)
        if n and m:
            iou, best = box_iou(
                output["boxes"][found].cpu().double(), truth["boxes"][of].double()
            ).max(1)
            ious.append(iou.numpy())
            objects.append(first + best.numpy())
            difficult.append(hard[best.numpy()])
        elif n:
            ious.append(np.full(n, -1.0))
            objects.append(np.full(n, -1))
            difficult.append(np.zeros(n, bool))
        if n:
            scores.append(output["scores"][found].detach().cpu().numpy())
        first, count = first + m, count + int((~hard).sum())
    if not scores:
        return _Matches(np.zeros(0), np.zeros(0, int), np.zeros(0, bool), count)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    columns = (np.concatenate(column)[order] for column in (ious, objects, difficult))
    return _Matches(*columns, count)


def _curve(matches: _Matches, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection that counts."""
    near = matches.iou >= threshold
    firsts = np.zeros_like(near)
    where = np.flatnonzero(near)
    firsts[where[np.unique(matches.object[where], return_index=True)[1]]] = True
    counts = ~(near & matches.difficult)
    right = np.cumsum(firsts[counts])
    return right / matches.count, right / np.arange(1, len(right) + 1)


def _by_eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    highest = [precision[recall >= t].max(initial=0) for t in np.arange(11) / 10]
    return float(np.mean(highest))


def _by_area(recall: np.ndarray, precision: np.ndarray) -> float:
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * envelope).sum())
