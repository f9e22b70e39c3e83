"""Views of annotated pictures, and batches of them."""

import pickle

import numpy as np
import pytest
import tiny_layouts as tiny
import torch
from torch.nn import functional as F

from ssl_zoo.config import ConfigError, Part, bind
from ssl_zoo.data import Splits, Views
from ssl_zoo.data.image import Samples
from ssl_zoo.data.image.color import Normalize
from ssl_zoo.data.image.decode import BadImage
from ssl_zoo.data.image.geometry import CenterCrop
from ssl_zoo.system import rng
from ssl_zoo.testing.tiny import TinyNet
from ssl_zoo.transfer import COCO, VOC, Cityscapes
from ssl_zoo.transfer.augment import Augment, mirror
from ssl_zoo.transfer.batches import AnnotatedBatches, Colors, PictureBatch, Reader, in_torch
from ssl_zoo.transfer.source import boxes_target

CPU = torch.device("cpu")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    return {name: getattr(tiny, name)(root / name) for name in ("voc", "coco", "cityscapes")}


def splits(workers=0):
    """Of a run on other images, which nothing here looks at."""
    normalize = Part(Normalize, mean=MEAN, std=STD)
    clean = Part(Views, ops={"crop": Part(CenterCrop, size=8), "normalize": normalize})
    return Splits(3, dataset=Part(TinyNet), clean=clean, workers=workers)


def batches(dataset, *, of=None, size=2, **how):
    return AnnotatedBatches(of or splits(), dataset, Augment(**how), size, seed=5)


# ----------------------------------------------------------------------------------- views


def test_in_the_mirror_boxes_masks_and_keypoints_are_where_the_pixels_are():
    height, width = 6, 9
    target = boxes_target(1, (height, width), [[1, 2, 4, 5], [0, 0, 9, 6]], [3, 1])
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 2:5, 1:4] = masks[1] = 1
    # A nose; a left and a right eye, of which the second object has no right one.
    points = torch.tensor([[[2, 3, 2], [1, 2, 2], [3, 2, 1]], [[4, 4, 2], [8, 0, 1], [0, 0, 0]]])
    target |= {"masks": masks, "keypoints": points.float()}
    found = mirror(target, [0, 2, 1])
    for box, mask in zip(found["boxes"].int().tolist(), found["masks"], strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    drawn = torch.zeros(1, height, width)
    drawn[0, 2, 1] = 1  # the pixel of the first object's left eye
    (where,) = drawn.flip(-1)[0].nonzero().tolist()
    x, y, seen = found["keypoints"][0, 2].tolist()  # which is a right eye now
    assert [y, x] == where and seen == 2
    assert found["keypoints"][1].tolist() == [[4, 4, 2], [0, 0, 0], [0, 0, 1]]
    again = mirror(found, [0, 2, 1])
    assert all(torch.equal(again[name], target[name]) for name in ("boxes", "masks", "keypoints"))
    assert again["labels"].tolist() == [3, 1] and again["size"] == (height, width)


def test_each_picture_is_flipped_by_its_own_coin():
    image, flip = torch.arange(3 * 4 * 5).view(3, 4, 5).byte(), Augment(flip=0.3)
    target = boxes_target(0, (4, 5), [[0, 0, 2, 1]], [1])
    seen = []
    for number in range(400):
        key = rng.hashed(7, 2, number, "picture")
        found, of = flip(image, target, key, None)
        turned = not torch.equal(found, image)
        assert torch.equal(found, image.flip(-1) if turned else image)
        assert of["boxes"][0].tolist() == ([3, 0, 5, 1] if turned else [0, 0, 2, 1])
        seen.append(turned)
    assert 0.2 < np.mean(seen) < 0.4


def test_a_map_is_scaled_and_cut_with_its_picture():
    """The picture shows its labels, so they still agree wherever colors are not mixed."""
    labels = torch.arange(4).repeat_interleave(12).repeat(40, 1)  # [40, 48], four wide bands
    labels[:3] = 255
    image = labels.byte().expand(3, 40, 48)
    augment = Augment(scale=(0.5, 2.0), crop=(30, 32))
    sizes = set()
    for number in range(60):
        key = rng.hashed(number, "picture")
        found, of = augment(image, labels, key, None)
        factor = 0.5 + 1.5 * rng.uniform(key, "scale").item()
        height, width = (round(side * factor) for side in (40, 48))
        assert of.shape == (min(height, 30), min(width, 32)) == found.shape[1:]
        assert set(of.unique().tolist()) <= {0, 1, 2, 3, 255}
        assert (found[0] == of).float().mean() > 0.75
        plain = F.interpolate(labels[None, None].float(), (height, width), mode="nearest-exact")
        windows = plain[0, 0].long().unfold(0, of.shape[0], 1).unfold(1, of.shape[1], 1)
        ways = (of, of.flip(-1))
        assert any((windows == way).flatten(2).all(2).any() for way in ways)
        sizes.add(tuple(of.shape))
    assert len(sizes) > 5


def test_scale_and_crop_are_for_maps():
    arguments = bind(Augment, {"crop": 32}).arguments()
    Augment.check_task(arguments, "semantic")
    with pytest.raises(ConfigError, match="crop: is for semantic maps"):
        Augment.check_task(arguments, "masks")


# ----------------------------------------------------------------------------------- batches


def test_a_batch_has_the_clean_colors_and_what_can_be_learned(folders):
    dataset = COCO("train", root=folders["coco"], task="masks")
    of = batches(dataset, flip=0.0)
    assert of.kept.tolist() == [0, 1] and of.steps_per_epoch == 1  # the third has no object
    (batch,) = of.batches(0, 1, CPU)
    assert sorted(batch.index.tolist()) == [0, 1] and torch.equal(batch.index, of.indices(0))
    for image, target, i in zip(batch.images, batch.targets, batch.index.tolist(), strict=True):
        pixels, known = dataset[i]
        mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
        torch.testing.assert_close(image, (pixels / 255 - mean) / std)
        kept = (known["iscrowd"] == 0) & (known["area"] > 0)
        assert torch.equal(target["masks"], known["masks"][kept])
        assert target["boxes"].shape == (int(kept.sum()), 4) and target["size"] == (24, 32)
    assert list(Colors(splits()).spelled) == ["normalize"]


def looks(dataset, size):
    """((epoch, position), image) of six epochs."""
    of = batches(dataset, size=size)
    for step, batch in enumerate(of.batches(0, 6 * of.steps_per_epoch, CPU)):
        for i, image in zip(batch.index.tolist(), batch.images, strict=True):
            yield (step // of.steps_per_epoch, i), image


def test_a_picture_looks_the_same_whatever_batch_it_is_in(folders):
    dataset = VOC("train", root=folders["voc"])
    alone, together = (dict(looks(dataset, size)) for size in (1, 2))
    assert alone.keys() == together.keys() and len(alone) == 12
    assert all(torch.equal(image, together[key]) for key, image in alone.items())
    assert any(not torch.equal(alone[0, 0], alone[epoch, 0]) for epoch in range(1, 6))


def test_workers_read_the_same(folders):
    dataset = COCO("train", root=folders["coco"], task="keypoints")
    here, there = (batches(dataset, of=splits(n), size=1).batches(0, 3, CPU) for n in (0, 1))
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.images[0], b.images[0]) and torch.equal(a.index, b.index)
        assert torch.equal(a.targets[0]["keypoints"], b.targets[0]["keypoints"])


def test_maps_come_as_they_are_and_a_reader_travels(folders):
    reader = pickle.loads(pickle.dumps(Reader(Cityscapes("train", root=folders["cityscapes"]))))
    ((image, target),) = map(in_torch, reader(Samples(0, 0, [1])))
    assert image.dtype == torch.uint8 and target.dtype == torch.int64
    assert torch.equal(target, reader.dataset.target(1))


def test_micro_batches_share_a_batch():
    of = PictureBatch([torch.ones(3, 2, i) for i in range(1, 6)], list("abcde"), torch.arange(5))
    parts = of.split(2)
    assert [part.targets for part in parts] == [["a", "b", "c"], ["d", "e"]]
    assert [len(part.images) for part in parts] == [3, 2] and parts[1].index.tolist() == [3, 4]
    assert len(of.split(9)) == 5


def test_a_damaged_picture_is_named(folders, tmp_path):
    root = tiny.voc(tmp_path / "voc")
    path = root / "VOC2007" / "JPEGImages" / "000001.jpg"
    path.write_bytes(path.read_bytes()[:200])
    dataset = VOC("train", root=root, train=["VOC2007/trainval"])
    for workers in (0, 1):
        with pytest.raises(BadImage, match=r"000001\.jpg: cannot be decoded"):
            list(batches(dataset, of=splits(workers), size=1).batches(0, 1, CPU))


def test_sets_that_cannot_be_learned_from_are_refused(folders):
    with pytest.raises(ValueError, match="2 pictures with an object, fewer than batch_size 3"):
        batches(VOC("train", root=folders["voc"]), size=3)
    empty = VOC("train", root=folders["voc"])
    empty.objects.zero_()
    with pytest.raises(ValueError, match="no picture has an object to learn from"):
        batches(empty)
