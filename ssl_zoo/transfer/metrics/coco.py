"""COCO's and LVIS's measures, computed by faster-coco-eval."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ssl_zoo.transfer.masks import encoded, library
from ssl_zoo.transfer.metrics.measures import Measures

Kind = Literal["bbox", "segm", "keypoints"]
LVIS_DETECTIONS = 300  # a picture, over all categories
# How far off a keypoint may be, in sizes of the object. Each of a person's 17 has a number of its
# own; for others this one, about their mean.
OWN_SIGMA = 0.07
# As faster-coco-eval names them -> as people do. Recall is at 100 detections a picture (20 of
# persons with keypoints, 300 of LVIS).
NAMES = {"AP_all": "AP", "AP_50": "AP50", "AP_75": "AP75"}
NAMES |= {name: name for name in ("AP_small", "AP_medium", "AP_large")}
OF_LVIS = {"APr": "AP_rare", "APc": "AP_common", "APf": "AP_frequent"}


def coco_results(
    output: Mapping[str, Tensor],
    image_id: int,
    category_ids: Sequence[int],
    kind: Kind,
) -> list[dict[str, Any]]:
    """A picture's detections as entries of COCO's file of results.

    Args:
        output: boxes [n, 4], labels [n] (from 1 on), scores [n], and masks [n, H, W] bool or
            keypoints [n, K, 3].
        category_ids: of label 1, 2, ...
    """
    entries = []
    for i, (score, label) in enumerate(
        zip(output["scores"].tolist(), output["labels"].tolist(), strict=True)
    ):
        entry = {"image_id": image_id, "category_id": category_ids[label - 1], "score": score}
        # A box beside a mask would be asked for the object's size, so there is only one of them.
        if kind == "segm":
            entry["segmentation"] = encoded(output["masks"][i])
        elif kind == "keypoints":
            entry["keypoints"] = output["keypoints"][i].flatten().tolist()
        else:
            x0, y0, x1, y1 = output["boxes"][i].tolist()
            entry["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        entries.append(entry)
    return entries


def coco_measures(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: Kind,
    images: Sequence[int] | None = None,
    lvis: bool = False,
) -> Measures:
    """COCO's AP, AP50, AP75 and AP of small, medium and large objects, and AR.

    AP is the mean over IoU 0.5, 0.55, ..., 0.95 (over OKS of keypoints), which matches each
    detection to the free object that it overlaps most, at 101 recalls.

    Args:
        truth: a file of annotations, as `COCO.truth` gives it.
        results: of all pictures, see `coco_results`.
        images: ids of the pictures that were looked at; None: all of the truth.
        lvis: as LVIS does: a category counts in pictures for which the truth says whether it is
            there; AP_rare, AP_common and AP_frequent as well.

    Raises:
        ImportError: faster-coco-eval is not there.
        ValueError: a result is of a picture that was not looked at.
    """
    of = library()
    wanted = [image["id"] for image in truth["images"]] if images is None else list(images)
    if unknown := {entry["image_id"] for entry in results} - set(wanted):
        raise ValueError(f"a result is of image {min(unknown)}, none of the {len(wanted)} wanted")
    if lvis:
        results = _judged(truth, _surest(results, LVIS_DETECTIONS))
    # Both are changed by the library, so it has copies.
    truths = of.COCO({**truth, "annotations": _numbered(truth["annotations"], kind)})
    found = truths.loadRes([dict(entry) for entry in results])
    work = of.COCOeval_faster(truths, found, kind, lvis_style=lvis, print_function=_silent)
    work.params.imgIds = sorted(wanted)
    if kind == "keypoints" and truth["annotations"]:
        count = len(truth["annotations"][0]["keypoints"]) // 3
        if count != len(work.params.kpt_oks_sigmas):  # COCO's, of a person
            work.params.kpt_oks_sigmas = np.full(count, OWN_SIGMA)
    if lvis:
        work.params.maxDets = [LVIS_DETECTIONS]
    work.evaluate()
    work.accumulate()
    work.summarize()
    stats = work.stats_as_dict
    names = NAMES | OF_LVIS if lvis else NAMES
    metrics = {new: stats[old] for old, new in names.items() if old in stats}
    recall = work.eval["recall"][:, :, 0, -1]  # [IoU, category], of all sizes
    metrics["AR"] = _mean(recall)
    precision = work.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category]
    ids = {category["id"]: category["name"] for category in truth["categories"]}
    by_class = {ids[id]: _mean(precision[:, :, i]) for i, id in enumerate(work.params.catIds)}
    return Measures(_measured(metrics), _measured(by_class))


def _numbered(annotations: Sequence[Mapping], kind: Kind) -> list[dict[str, Any]]:
    """Copies with what the library reads: ids from 1 on, which it marks matches by (0 is none),
    and how many keypoints are there, without which it ignores an object."""
    copies = [{**entry, "id": i} for i, entry in enumerate(annotations, start=1)]
    if kind == "keypoints":
        for entry in copies:
            entry.setdefault("num_keypoints", sum(v > 0 for v in entry["keypoints"][2::3]))
    return copies


def _surest(results: Sequence[Mapping], most: int) -> list[Mapping]:
    """Of each picture the `most` of highest scores."""
    taken: dict[int, int] = {}
    kept = []
    for entry in sorted(results, key=lambda entry: -entry["score"]):
        count = taken[entry["image_id"]] = taken.get(entry["image_id"], 0) + 1
        if count <= most:
            kept.append(entry)
    return kept


def _judged(truth: Mapping[str, Any], results: Sequence[Mapping]) -> list[Mapping]:
    """Those of categories of which the picture's truth says whether they are there.

    faster-coco-eval leaves the others out too, but fails where a picture has no more than masks
    of such.
    """
    known = {(of["image_id"], of["category_id"]) for of in truth["annotations"]}
    known |= {(of["id"], absent) for of in truth["images"] for absent in of["neg_category_ids"]}
    return [entry for entry in results if (entry["image_id"], entry["category_id"]) in known]


def _mean(values: np.ndarray) -> float:
    """Of what is measured; -1 stands for what is not."""
    values = values[values > -1]
    return float(values.mean()) if len(values) else -1.0


def _measured(values: Mapping[str, float]) -> dict[str, float]:
    return {name: 100 * value for name, value in values.items() if value >= 0}


def _silent(*_: object) -> None:
    pass
