"""Measures of detections and maps, against pycocotools and average precision written out."""

import contextlib
import copy
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO as Reference
from pycocotools.cocoeval import COCOeval as ReferenceEval

from ssl_zoo.transfer import (
    coco_measures,
    coco_results,
    confusion,
    overlap_measures,
    voc_measures,
)

CLASSES = ["a", "b", "c"]
IDS = [2, 7, 30]  # of categories: with gaps
SIZE = 64


def scenes(seed, images=12):
    """Truths, and outputs near them: some moved, doubled, of another class, or out of nowhere."""
    draw = np.random.default_rng(seed)

    def some_boxes(count):
        corner = draw.integers(0, 40, (count, 2))
        return np.hstack([corner, corner + draw.integers(6, 24, (count, 2))]).astype(np.float32)

    truths, outputs = [], []
    for _ in range(images):
        count = int(draw.integers(0, 6))
        boxes, labels = some_boxes(count), draw.integers(1, 4, count)
        truths.append(
            {
                "boxes": torch.from_numpy(boxes),
                "labels": torch.from_numpy(labels),
                "difficult": torch.from_numpy(draw.random(count) < 0.2),
            }
        )
        near = boxes[draw.integers(0, max(count, 1), 2 * count)] if count else boxes
        near = near + draw.integers(-2, 3, near.shape)
        found = np.vstack([boxes[: count // 2], near, some_boxes(2)]).astype(np.float32)
        of = draw.integers(1, 4, len(found))
        of[: count // 2] = labels[: count // 2]
        scores = draw.permutation(len(found)) / len(found) + draw.random() / 100
        outputs.append(
            {
                "boxes": torch.from_numpy(found),
                "labels": torch.from_numpy(of),
                "scores": torch.from_numpy(scores.astype(np.float32)),
            }
        )
    return truths, outputs


def rows(of, *names):
    return zip(*(of[name].tolist() for name in names), strict=True)


# ----------------------------------------------------------------------------------- VOC


def written_out(truths, outputs, label, threshold, integral):
    """Average precision of a class, a detection after the other; None without objects."""
    detections = [
        (float(score), i, box)
        for i, out in enumerate(outputs)
        for box, of, score in rows(out, "boxes", "labels", "scores")
        if of == label
    ]
    taken, right, wrong, curve = set(), 0, 0, []
    total = sum(
        int(of == label and not hard)
        for truth in truths
        for of, hard in rows(truth, "labels", "difficult")
    )
    for _, image, box in sorted(detections, key=lambda d: -d[0]):
        best, which = -1.0, None
        for j, (other, of) in enumerate(rows(truths[image], "boxes", "labels")):
            if of == label and overlap(box, other) > best:
                best, which = overlap(box, other), j
        if which is not None and best >= threshold:
            if truths[image]["difficult"][which]:
                continue
            if (image, which) in taken:
                wrong += 1
            else:
                taken.add((image, which))
                right += 1
        else:
            wrong += 1
        curve.append((right / total if total else 0, right / (right + wrong)))
    if not total:
        return None
    if integral == "2007":
        return sum(max([p for r, p in curve if r >= t / 10], default=0) for t in range(11)) / 11
    area, before = 0.0, 0.0
    for i, (recall, _) in enumerate(curve):
        area += (recall - before) * max(p for _, p in curve[i:])
        before = recall
    return area


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("integral", ["2007", "2010"])
@pytest.mark.parametrize("seed", range(3))
def test_voc_equals_average_precision_written_out(seed, integral):
    truths, outputs = scenes(seed)
    found = voc_measures(outputs, truths, [*CLASSES, "nowhere"], integral)
    by_threshold = {
        t: [written_out(truths, outputs, label, t / 100, integral) for label in (1, 2, 3)]
        for t in range(50, 100, 5)
    }
    means = {t: 100 * np.mean(values) for t, values in by_threshold.items()}
    assert found.metrics["AP50"] == pytest.approx(means[50])
    assert found.metrics["AP75"] == pytest.approx(means[75])
    assert found.metrics["AP"] == pytest.approx(np.mean(list(means.values())))
    first = 100 * np.mean([values[0] for values in by_threshold.values()])
    assert found.by_class["a"] == pytest.approx(first) and "nowhere" not in found.by_class
    assert 5 < found.metrics["AP"] < 95


def test_voc_of_the_truth_itself_and_of_nothing():
    truths, _ = scenes(0)
    sure = [{**truth, "scores": torch.ones(len(truth["labels"]))} for truth in truths]
    nothing = [{name: x[:0] for name, x in out.items()} for out in sure]
    for integral in ("2007", "2010"):
        assert set(voc_measures(sure, truths, CLASSES, integral).metrics.values()) == {100}
        assert set(voc_measures(nothing, truths, CLASSES, integral).metrics.values()) == {0}
    empty = [{**truth, "difficult": truth["difficult"] | True} for truth in truths]
    with pytest.raises(ValueError, match="no picture has an object that counts"):
        voc_measures(sure, empty, CLASSES)
    with pytest.raises(ValueError, match="outputs of 11 pictures, truths of 12"):
        voc_measures(sure[1:], truths, CLASSES)


# ---------------------------------------------------------------------------------- COCO


def as_coco(truths, crowds=True):
    """A file of annotations, in which difficult objects are crowds."""
    annotations = []
    for image, truth in enumerate(truths):
        for (x0, y0, x1, y1), label, hard in rows(truth, "boxes", "labels", "difficult"):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + image,
                    "category_id": IDS[label - 1],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": 0.7 * (x1 - x0) * (y1 - y0),
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    "iscrowd": int(hard and crowds),
                    "keypoints": [x0, y0, 2, x1, y1, 1] + [0, 0, 0] * 15,
                    "num_keypoints": 2,
                }
            )
    names = zip(IDS, CLASSES, ("f", "r", "c"), strict=True)
    return {
        "images": [{"id": 100 + i, "width": SIZE, "height": SIZE} for i in range(len(truths))],
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "frequency": f} for i, name, f in names],
    }


def all_results(outputs, kind):
    results = []
    for image, out in enumerate(outputs):
        masks = torch.zeros(len(out["boxes"]), SIZE, SIZE, dtype=torch.bool)
        for mask, box in zip(masks, out["boxes"].int().tolist(), strict=True):
            mask[max(box[1], 0) : box[3], max(box[0], 0) : box[2]] = True
        points = torch.zeros(len(masks), 17, 3)
        points[:, 0, :2], points[:, 1, :2] = out["boxes"][:, :2], out["boxes"][:, 2:]
        results += coco_results(
            {**out, "masks": masks, "keypoints": points}, 100 + image, IDS, kind
        )
    return results


def referee(truth, results, kind, images=None, most=None):
    """pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = Reference()
        gt.dataset = {"info": {}, **copy.deepcopy(truth)}
        gt.createIndex()
        work = ReferenceEval(gt, gt.loadRes(copy.deepcopy(results)), kind)
        if images is not None:
            work.params.imgIds = images
        if most is not None:
            work.params.maxDets = [1, 10, most]
        work.evaluate()
        work.accumulate()
        if most is None:
            work.summarize()
    return work


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
@pytest.mark.parametrize("images", [None, [100, 103, 104, 107, 110]])
def test_coco_equals_pycocotools(kind, images):
    truths, outputs = scenes(4)
    truth, results = as_coco(truths, crowds=kind != "keypoints"), all_results(outputs, kind)
    results = [entry for entry in results if images is None or entry["image_id"] in images]
    before = copy.deepcopy((truth, results))
    found = coco_measures(truth, results, kind, images)
    assert (truth, results) == before
    work = referee(truth, results, kind, images)
    ap, ap50, ap75, *sizes = work.stats[:6].tolist()
    expected = {"AP": ap, "AP50": ap50, "AP75": ap75}
    if kind == "keypoints":
        expected |= {"AP_medium": sizes[0], "AP_large": sizes[1], "AR": work.stats[5]}
    else:
        expected |= {"AP_small": sizes[0], "AP_medium": sizes[1], "AP_large": sizes[2]}
        expected["AR"] = work.stats[8]
    expected = {name: 100 * value for name, value in expected.items() if value >= 0}
    assert found.metrics == pytest.approx(expected) and 1 < found.metrics["AP"] < 95
    precision = work.eval["precision"][:, :, :, 0, -1].mean((0, 1))
    assert found.by_class == pytest.approx(dict(zip(CLASSES, 100 * precision, strict=True)))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_lvis_equals_pycocotools_on_the_pictures_that_say_so(kind):
    """A category counts where it is, or is said not to be.

    Where not all of it is marked, what finds nothing is not counted: as if there were a crowd of
    it everywhere.
    """
    truths, outputs = scenes(5, images=20)
    truth, results = as_coco(truths, crowds=False), all_results(outputs, kind)
    draw = np.random.default_rng(0)
    there = {(of["image_id"], of["category_id"]) for of in truth["annotations"]}
    judged, crowds = set(there), []
    for image in truth["images"]:
        absent = [id for id in IDS if (image["id"], id) not in there]
        present = [id for id in IDS if (image["id"], id) in there]
        image["neg_category_ids"] = [id for id in absent if draw.random() < 0.5]
        image["not_exhaustive_category_ids"] = [id for id in present if draw.random() < 0.3]
        judged |= {(image["id"], id) for id in image["neg_category_ids"]}
        crowds += [(image["id"], id) for id in image["not_exhaustive_category_ids"]]
    found = coco_measures(truth, results, kind, lvis=True)
    whole = {"size": [SIZE, SIZE], "counts": [0, SIZE * SIZE]}
    everywhere = [
        {"id": 1000 + i, "image_id": image, "category_id": id, "bbox": [-99, -99, 300, 300]}
        | {"area": 1, "iscrowd": 1, "segmentation": whole}
        for i, (image, id) in enumerate(crowds)
    ]
    crowded = {**truth, "annotations": truth["annotations"] + everywhere}
    kept = [entry for entry in results if (entry["image_id"], entry["category_id"]) in judged]
    precision = referee(crowded, kept, kind, most=300).eval["precision"][:, :, :, 0, -1]
    by_class = 100 * precision.mean((0, 1))
    frequent, rare, common = by_class.tolist()
    expected = {
        "AP": by_class.mean(),
        "AP_rare": rare,
        "AP_common": common,
        "AP_frequent": frequent,
    }
    expected["AP50"] = 100 * precision[0].mean()
    assert expected == pytest.approx({name: found.metrics[name] for name in expected})
    plain = coco_measures(truth, results, kind).metrics["AP"]
    assert plain < expected["AP"] and len(kept) < len(results) and everywhere


def test_lvis_counts_the_surest_300_of_a_picture():
    truths, _ = scenes(0, images=1)
    truth = as_coco(truths, crowds=False)
    truth["images"][0] |= {"neg_category_ids": IDS, "not_exhaustive_category_ids": []}
    wrong = {"image_id": 100, "category_id": 2, "bbox": [50, 50, 2, 2]}
    right = [
        {"image_id": 100, "category_id": of["category_id"], "bbox": of["bbox"], "score": 0.1}
        for of in truth["annotations"]
    ]
    for count, value in ((300 - len(right), True), (300, False)):
        many = [{**wrong, "score": 0.9} for _ in range(count)]
        assert (coco_measures(truth, many + right, "bbox", lvis=True).metrics["AR"] > 0) is value


@pytest.mark.parametrize("kind", ["bbox", "keypoints"])
@pytest.mark.parametrize("ids", [lambda i: i - 1, lambda i: 7, None], ids=["from 0", "one", "none"])
def test_own_ids_of_annotations_do_not_matter(kind, ids):
    truths, outputs = scenes(4)
    truth, results = as_coco(truths, crowds=False), all_results(outputs, kind)
    expected = coco_measures(truth, results, kind)
    for entry in truth["annotations"]:
        del entry["num_keypoints"]
        number = entry.pop("id")
        if ids:
            entry["id"] = ids(number)
    assert coco_measures(truth, results, kind) == expected


def test_coco_without_results_and_with_wrong_ones():
    truths, outputs = scenes(4)
    truth = as_coco(truths)
    assert coco_measures(truth, [], "bbox").metrics["AP"] == 0
    with pytest.raises(ValueError, match="a result is of image 100, none of the 1 wanted"):
        coco_measures(truth, all_results(outputs, "bbox"), "bbox", images=[101])


# -------------------------------------------------------------------------- semantic maps


def test_overlap_of_maps_against_counting():
    draw = np.random.default_rng(0)
    truth, found = (torch.from_numpy(draw.integers(0, 4, (3, 8, 9))) for _ in range(2))
    truth[0, :2] = 255
    matrix = sum(confusion(p, t, 5) for p, t in zip(found, truth, strict=True))
    assert torch.equal(matrix, confusion(found, truth, 5)) and matrix.sum() == (truth != 255).sum()
    known = truth != 255
    expected = {}
    for label, name in enumerate("abcd"):
        both = (known & (truth == label) & (found == label)).sum()
        either = (known & ((truth == label) | (found == label))).sum()
        expected[name] = 100 * float(both / either)
    measures = overlap_measures(matrix, [*"abcde"])  # of e there is no pixel, and none was found
    assert measures.by_class == pytest.approx(expected)
    assert measures.metrics["mIoU"] == pytest.approx(np.mean(list(expected.values())))
    right = float((truth == found)[known].float().mean())
    assert measures.metrics["pixel_accuracy"] == pytest.approx(100 * right)
    with pytest.raises(ValueError, match="no pixel counts"):
        overlap_measures(torch.zeros(5, 5, dtype=torch.int64), [*"abcde"])
