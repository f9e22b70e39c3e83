"""Readers of the published layouts, on tiny folders with what real ones have."""

import json
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import tiny_layouts as tiny
import torch
from PIL import Image

from ssl_zoo.config import ConfigError, bind
from ssl_zoo.data.image.decode import BadImage
from ssl_zoo.transfer import ANNOTATED, COCO, LVIS, VOC, Cityscapes, learnable
from ssl_zoo.transfer.judging import judge_of
from ssl_zoo.transfer.masks import counted_runs, decoded, encoded
from ssl_zoo.transfer.source import Records, label_map
from ssl_zoo.transfer.source import picture as read_picture


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    made = {name: getattr(tiny, name)(root / name) for name in ("voc", "coco", "cityscapes")}
    return {**made, "lvis": tiny.lvis(root / "lvis")}


@pytest.fixture
def copied(folders, tmp_path):
    """A folder that a test may damage."""

    def copy(name):
        return shutil.copytree(folders[name], tmp_path / name)

    return copy


def boxes(dataset, i):
    return dataset.target(i)["boxes"].tolist()


# ----------------------------------------------------------------------------------- VOC


def test_voc_pixels_from_one_become_sides_from_zero(folders):
    train, test = (VOC(split, root=folders["voc"]) for split in ("train", "test"))
    assert len(train) == 3 and len(test) == 1 and len(train.classes) == 20
    assert boxes(train, 0) == [[0, 0, 32, 24], [8, 4, 16, 12]]  # the whole picture, and 8 x 8
    target = train.target(0)
    assert target["difficult"].tolist() == [False, True] and target["iscrowd"].tolist() == [0, 0]
    assert [train.classes[i - 1] for i in target["labels"]] == ["dog", "cat"]
    assert target["area"].tolist() == [32 * 24, 64] and target["size"] == (24, 32)
    assert train.target(1)["boxes"].shape == (0, 4) and train.objects.tolist() == [2, 0, 1]
    torch.testing.assert_close(  # numbers with fractions; the box of a part is not the object's
        train.target(2)["boxes"], torch.tensor([[1.4, 2.0, 10.6, 20.0]])
    )
    assert boxes(test, 0) == [[19, 9, 32, 24]]  # over the border
    assert "3 pictures of VOC2007/trainval, VOC2012/trainval, 3 objects" in train.found


def test_years_are_chosen_and_voc_devkit_is_found(folders, tmp_path):
    (tmp_path / "VOCdevkit").symlink_to(folders["voc"])
    only = VOC("train", root=tmp_path, train=["VOC2012/trainval"])
    assert len(only) == 1 and "2012_000001" in only.paths[0]


def test_pictures_are_uint8_of_three_channels_upright(folders):
    train = VOC("train", root=folders["voc"])
    for i in range(3):  # RGB, gray, turned
        image, target = train[i]
        assert image.dtype == torch.uint8 and image.shape == (3, *target["size"])
    gray = train[1][0]
    assert torch.equal(gray[0], gray[1]) and torch.equal(gray[0], gray[2])
    expected = np.random.default_rng(3).integers(0, 256, (3, 4, 3))  # as `picture` drew it
    middle = train[2][0][:, 4::8, 4::8].permute(1, 2, 0)
    assert (middle.float() - torch.from_numpy(expected)).abs().mean() < 12


def test_the_annotations_size_says_which_way_a_picture_is_held(tmp_path):
    path = tmp_path / "turned.jpg"
    tiny.picture(path, 0, turned=True)
    stored = np.asarray(Image.open(path))
    assert read_picture(str(path), (24, 32)).shape == (3, 24, 32)
    lying = read_picture(str(path), (32, 24))
    assert np.abs(lying.permute(1, 2, 0).numpy().astype(int) - stored).max() <= 2
    with pytest.raises(
        BadImage, match=r"turned\.jpg: is 32 x 24 pixels, its annotation says 9 x 7"
    ):
        read_picture(str(path), (7, 9))


def test_voc_semantic_maps_are_numbers_not_colors(folders):
    train = VOC("train", root=folders["voc"], task="semantic")
    image, labels = train[0]
    assert image.shape == (3, 24, 32) and labels.shape == (24, 32) and labels.dtype == torch.int64
    assert labels[4, 8] == 255 and train.classes[int(labels[5, 8])] == "dog" and labels[0, 0] == 0
    assert len(train.classes) == 21 and len(VOC("test", root=folders["voc"], task="semantic")) == 1


@pytest.mark.parametrize(("mode", "levels"), [("1", 2), ("L;2", 4), ("L;4", 16), ("L", 16)])
def test_gray_labels_are_the_numbers_in_the_file_whatever_its_depth(tmp_path, mode, levels):
    labels = np.arange(16, dtype=np.uint8).reshape(2, 8) % levels
    if mode.startswith("L;"):
        bits = int(mode[2:])
        write_gray_png(tmp_path / "map.png", labels, bits)
        with Image.open(tmp_path / "map.png") as image:
            assert image.tile[0][3] == mode
    else:
        Image.fromarray(labels.astype(bool) if mode == "1" else labels).save(tmp_path / "map.png")
    assert label_map(str(tmp_path / "map.png")).tolist() == labels.tolist()


def write_gray_png(path, labels, bits):
    """Which Pillow does not write: `bits` a pixel."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = labels.shape
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    per_byte = 8 // bits
    rows = b""
    for row in labels.reshape(height, -1, per_byte):
        packed = [sum(int(v) << (8 - bits * (i + 1)) for i, v in enumerate(of)) for of in row]
        rows += b"\0" + bytes(packed)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_background_among_classes_of_ones_own_maps_is_refused(copied):
    root = copied("voc")
    tiny.write(root / "classes.txt", "background\nperson\ndog\n")
    with pytest.raises(ValueError, match=r"classes.txt: found 'background', which has"):
        VOC("train", root=root, task="semantic")


def test_a_test_set_of_difficult_objects_alone_is_refused_before_training(copied):
    root = copied("voc")
    for path in (root / "VOC2007/Annotations").glob("*.xml"):
        hard = path.read_text().replace("<bndbox>", "<difficult>1</difficult><bndbox>")
        path.write_text(hard)
    whole = {"train": ["VOC2007/trainval"], "test": ["VOC2007/trainval"]}
    with pytest.raises(ValueError, match="VOC2007/trainval: no object but difficult ones"):
        VOC("test", root=root, **whole)
    assert len(VOC("train", root=root, **whole))


def test_pictures_of_one_name_are_told_apart_by_their_folders(copied):
    root = copied("voc")
    years = {"train": ["VOC2007/trainval", "VOC2012/trainval"]}
    assert VOC("train", root=root, **years).name(0) == "000001"
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        of = root / "VOC2012" / folder
        (of / f"2012_000001.{suffix}").rename(of / f"000001.{suffix}")
    tiny.write(root / "VOC2012/ImageSets/Main/trainval.txt", "000001\n")
    names = [VOC("train", root=root, **years).name(i) for i in (0, 2)]
    assert names == ["VOC2007_JPEGImages_000001", "VOC2012_JPEGImages_000001"]


def test_classes_of_ones_own(copied):
    root = copied("voc")
    tiny.write(root / "classes.txt", "person\nbat\n")
    tiny.write(
        root / "VOC2012/Annotations/2012_000001.xml",
        tiny.voc_xml(tiny.voc_object("bat", (1, 1, 2, 2))),
    )
    own = VOC("train", root=root, train=["VOC2012/trainval"])
    assert own.classes == ["person", "bat"] and own.target(0)["labels"].tolist() == [2]


def test_a_class_may_have_a_slash_in_its_name(copied, tmp_path):
    root = copied("voc")
    tiny.write(root / "classes.txt", "dog\ncar/truck\n")
    tiny.write(
        root / "VOC2012/Annotations/2012_000001.xml",
        tiny.voc_xml(tiny.voc_object("car/truck", (1, 1, 2, 2))),
    )
    judge = judge_of(VOC("test", root=root, test=["VOC2012/trainval"]))
    found = {"boxes": [[0, 0, 2, 2]], "labels": [2], "scores": [0.5], "name": "a", "index": 0}
    (tmp_path / "out").mkdir()
    judge.write([found], tmp_path / "out")
    assert (tmp_path / "out" / "comp3_det_test_car%2Ftruck.txt").read_text().startswith("a 0.5")


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ("<object><name>dog</name></object>", "object 1: xmin: found '', expected a number"),
        (tiny.voc_object("dgo", (1, 1, 2, 2)), "object 1: found the class 'dgo'.*nearest: dog"),
        (tiny.voc_object("dog", (9, 1, 2, 2)), r"found the box \[9.0, 1.0, 2.0, 2.0\]"),
        (tiny.voc_object("dog", ("nan", 1, 2, 2)), "xmin: found 'nan'"),
        (tiny.voc_object("dog", (1, 1, 2, 2))[:-9], "no XML"),
    ],
)
def test_damaged_voc_annotations_are_named(objects, message, copied):
    root = copied("voc")
    tiny.write(root / "VOC2007/Annotations/000002.xml", tiny.voc_xml(objects))
    with pytest.raises(ValueError, match=rf"000002\.xml: .*{message}"):
        VOC("train", root=root)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("VOC2007/JPEGImages/000002.jpg", "boxes"),
        ("VOC2007/Annotations/000001.xml", "boxes"),
        ("VOC2012/ImageSets/Main/trainval.txt", "boxes"),
        ("VOC2012/SegmentationClass/2012_000001.png", "semantic"),
    ],
)
def test_missing_voc_files_are_named(name, task, copied):
    root = copied("voc")
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.rpartition("/")[2]):
        VOC("train", root=root, task=task)


# ---------------------------------------------------------------------------------- COCO


def test_coco_boxes_and_gaps_in_category_ids(folders):
    coco = COCO("train", root=folders["coco"])
    assert coco.classes == ["person", "dog", "brush"] and coco.category_ids == [1, 18, 90]
    assert boxes(coco, 0) == [[8, 4, 18, 14], [1, 0, 8, 24]]
    target = coco.target(0)
    assert target["labels"].tolist() == [2, 1] and target["iscrowd"].tolist() == [0, 1]
    assert target["image_id"] == 139 and target["area"].tolist() == [100, 7 * 24]
    assert boxes(coco, 1)[0] == [28, 20, 32, 24]  # cut at the border
    assert coco.target(1)["area"][0] == 16  # as annotated
    assert coco.target(2)["boxes"].shape == (0, 4)
    assert coco.objects.tolist() == [1, 2, 0]  # neither the crowd nor the box without width
    assert [len(learnable(coco.target(i))["boxes"]) for i in range(3)] == [1, 2, 0]
    assert [coco[i][0].shape for i in range(3)] == [(3, 24, 32)] * 3


def test_coco_masks_of_polygons_and_run_lengths(folders):
    coco = COCO("test", root=folders["coco"], task="masks")
    masks = coco.target(0)["masks"]
    assert masks.shape == (2, 24, 32) and masks.dtype == torch.uint8
    expected = torch.zeros(24, 32)
    expected[4:14, 8:18] = 1
    assert torch.equal(masks[0].float(), expected)
    crowd = torch.zeros(24, 32)
    crowd[:, 1:8] = 1
    assert torch.equal(masks[1].float(), crowd)
    assert coco.target(1)["masks"].sum((1, 2)).tolist() == [16, 0, 32]  # an object of two parts
    assert coco.target(2)["masks"].shape == (0, 24, 32)
    assert learnable(coco.target(1))["masks"].shape == (2, 24, 32)


def test_masks_equal_pycocotools():
    draw = np.random.default_rng(0)
    for _ in range(5):
        mask = draw.random((24, 32)) < draw.random()
        runs = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encoded(torch.from_numpy(mask))["counts"] == runs["counts"].decode()
        assert np.array_equal(decoded(counted_runs(mask), (24, 32)).numpy(), mask)
        polygon = [(draw.random(8) * 30).tolist()]
        shape = pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygon, 24, 32))
        assert np.array_equal(decoded(polygon, (24, 32)).numpy(), pycocotools.mask.decode(shape))


def test_coco_keypoints(folders):
    coco = COCO("train", root=folders["coco"], task="keypoints")
    assert coco.classes == ["person"] and coco.keypoints == ["nose", "left_eye", "right_eye"]
    points = coco.target(1)["keypoints"]
    assert points.shape == (2, 3, 3) and points.dtype == torch.float32
    assert points[1].tolist() == [[4, 5, 2], [0, 0, 0], [12, 12, 1]]
    assert coco.target(2)["keypoints"].shape == (0, 3, 3)
    assert coco.mirrored_keypoints() == [0, 2, 1]


@pytest.mark.parametrize(
    ("names", "mirrored"),
    [
        (["left_eye", "tail", "right_eye"], [2, 1, 0]),
        (["eye_left", "eye_right"], [1, 0]),
        (["Left-Eye", "Right-Eye", "leftover"], [1, 0, 2]),
        (["l_ear", "r_ear", "upright", "ear.r", "ear.l"], [1, 0, 2, 4, 3]),
        (["left_wing", "tail"], None),
    ],
)
def test_a_left_keypoint_is_the_right_one_in_the_mirror(names, mirrored, copied):
    root = copied("coco")
    path = root / "annotations" / "person_keypoints_train2017.json"

    def renamed(data):
        data["categories"][0]["keypoints"] = names
        for of in data["annotations"]:
            of["keypoints"] = [1, 1, 2] * len(names)

    damage(path, renamed)
    if mirrored is None:
        with pytest.raises(ValueError, match=r"train2017\.json: keypoints: found '.*' without its"):
            COCO("train", root=root, task="keypoints")
        return
    coco = COCO("train", root=root, task="keypoints")
    assert coco.mirrored_keypoints() == mirrored
    pairs = len(names) // 2
    assert f"{len(names)} keypoints, {pairs} pairs of left and right" in coco.found


def test_what_nothing_is_learned_from_does_not_count(copied):
    """A sliver that scaling closes, what lies outside, a person of whom no keypoint is seen."""
    root = copied("coco")
    path = root / "annotations" / "instances_train2017.json"
    sliver = {"image_id": 7, "category_id": 1, "bbox": [1e-5, 2, 1e-5, 5], "area": 1}
    damage(path, lambda data: data["annotations"].append({**sliver, "segmentation": []}))
    coco = COCO("train", root=root)
    assert coco.objects.tolist() == [1, 2, 0]
    assert not len(learnable(coco.target(2))["boxes"])
    assert COCO("train", root=root, task="keypoints").objects.tolist() == [0, 1, 0]
    flat = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 9, 9], "area": 81, "iscrowd": 0}
    flat["segmentation"] = [[1, 2, 10, 11]]
    damage(path, lambda data: data["annotations"].append(flat))
    assert COCO("train", root=root).objects.tolist() == [1, 2, 1]
    masks = COCO("train", root=root, task="masks")
    assert masks.objects.tolist() == [1, 2, 0] and not len(learnable(masks.target(2))["boxes"])
    root = copied("voc")
    outside = tiny.voc_xml(tiny.voc_object("dog", (90, 90, 95, 95)))
    tiny.write(root / "VOC2007/Annotations/000002.xml", outside)
    assert VOC("train", root=root).objects.tolist() == [2, 0, 1]


def damage(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["annotations"][0].update(image_id=1),
            "annotation 900: image_id: found 1, exp",
        ),
        (
            lambda d: d["annotations"][0].update(category_id=2),
            "annotation 900: category_id: found 2",
        ),
        (
            lambda d: d["annotations"][2].update(bbox=[1, 2, -3, 4]),
            r"annotation 6: bbox: found \[1",
        ),
        (lambda d: d["annotations"][2].pop("bbox"), "annotation 6: bbox: found None"),
        (lambda d: d["annotations"][0].pop("area"), "annotation 900: area: found None"),
        (
            lambda d: d["annotations"][1]["segmentation"].update(size=[9, 9]),
            "run lengths of 32 x 24",
        ),
        (
            lambda d: d["annotations"][1]["segmentation"]["counts"].pop(),
            "annotation 5: segmentation",
        ),
        (
            lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3]]),
            "900: segmentation: found",
        ),
        (lambda d: d["annotations"][1].update(iscrowd=None), "annotation 5: iscrowd: found None"),
        (lambda d: d["annotations"][1].update(iscrowd="1"), "annotation 5: iscrowd: found '1'"),
        (
            lambda d: d["annotations"][1]["segmentation"].update(counts=[-8, 776]),
            "annotation 5: segmentation",
        ),
        (
            lambda d: d["annotations"][1]["segmentation"].update(counts="`o"),
            "annotation 5: segmentation",
        ),
        (lambda d: d["images"][1].pop("height"), "image 42: height, width: found"),
        (lambda d: d["images"][1].pop("file_name"), "image 42: file_name: found None"),
        (lambda d: d["images"][1].pop("id"), "image None: id: found None"),
        (lambda d: d["categories"][1].pop("name"), "category 1: name: found None"),
        (lambda d: d["images"].append(d["images"][0]), "images: an id is there more than once"),
        (lambda d: d.pop("categories"), "categories: found no list"),
        (lambda d: d["images"].clear(), "images: found none"),
    ],
)
def test_damaged_coco_annotations_are_named(change, message, copied):
    path = copied("coco") / "annotations" / "instances_train2017.json"
    damage(path, change)
    with pytest.raises(ValueError, match=rf"instances_train2017\.json: .*{message}"):
        COCO("train", root=path.parent.parent, task="masks")


def test_a_cut_file_of_annotations_and_missing_files_are_named(copied):
    root = copied("coco")
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(ValueError, match=r"instances_train2017\.json: no JSON, or cut short"):
        COCO("train", root=root)
    (root / "val2017" / "000000000007.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 missing file \('.*000000000007\.jpg'\)"):
        COCO("test", root=root)
    with pytest.raises(FileNotFoundError, match=r"COCO: .*nowhere has no annotations"):
        COCO("test", root=root / "nowhere")


def test_damaged_keypoints_are_named(copied):
    path = copied("coco") / "annotations" / "person_keypoints_train2017.json"
    damage(path, lambda data: data["annotations"][0].update(keypoints=[1, 2]))
    with pytest.raises(ValueError, match=r"keypoints: found \[1, 2\], expected 3 numbers for each"):
        COCO("train", root=path.parent.parent, task="keypoints")


# ---------------------------------------------------------------------- LVIS, Cityscapes


def test_lvis(folders):
    lvis = LVIS("train", root=folders["lvis"])
    assert lvis.classes == ["cup", "yak", "bun"] and lvis.task == "masks"
    assert [Path(path).parent.name for path in lvis.paths] == ["train2017", "val2017"]
    image, target = lvis[0]
    assert image.shape == (3, 24, 32) and target["labels"].tolist() == [2, 1]
    assert target["masks"].sum((1, 2)).tolist() == [64, 64] and target["iscrowd"].tolist() == [0, 0]
    assert lvis.truth()["images"][0]["neg_category_ids"] == [20]


def test_an_image_of_lvis_says_which_categories_are_not_there(copied):
    path = copied("lvis") / "annotations" / "lvis_v1_train.json"
    damage(path, lambda data: data["images"][1].pop("neg_category_ids"))
    with pytest.raises(ValueError, match="image 2: neg_category_ids: found None, expected list"):
        LVIS("train", root=path.parent.parent)


def test_a_category_of_lvis_says_how_frequent_it_is(copied):
    path = copied("lvis") / "annotations" / "lvis_v1_val.json"
    damage(path, lambda data: data["categories"][0].pop("frequency"))
    with pytest.raises(ValueError, match=r"category \d+: frequency: found None, expected str"):
        LVIS("test", root=path.parent.parent)


def test_cityscapes_ids_become_the_nineteen_classes(folders):
    train = Cityscapes("train", root=folders["cityscapes"])
    assert len(train) == 2 and len(train.classes) == 19
    image, labels = train[0]
    assert image.shape == (3, 24, 32)
    of = {7: "road", 8: "sidewalk", 23: "sky", 24: "person", 31: "train", 33: "bicycle"}
    for id, name in of.items():
        assert train.classes[int(labels[id // 32, id % 32])] == name
    for id in (0, 6, 9, 10, 14, 29, 30):  # not among those that are judged
        assert labels[id // 32, id % 32] == 255
    assert sorted(set(labels.flatten().tolist())) == [*range(19), 255]


def test_damaged_and_missing_cityscapes_files_are_named(copied):
    root = copied("cityscapes")
    path = next((root / "gtFine" / "train").glob("bremen/*"))
    tiny.label_picture(path, np.full((24, 32), 77))
    train = Cityscapes("train", root=root)
    with pytest.raises(ValueError, match=rf"{path.name}: found a label 77, expected 0 to 33"):
        train[1]
    Image.new("RGB", (32, 24)).save(path)
    with pytest.raises(BadImage, match=rf"{path.name}: .*its mode is RGB"):
        train[1]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 missing file \('.*{path.name}'\)"):
        Cityscapes("train", root=root)


# ------------------------------------------------------------------------------- in all


def test_records_hold_plain_values_and_travel_as_bytes():
    items = [{"a": [1, 2.5]}, [], "text é", {"b": None}]
    records = pickle.loads(pickle.dumps(Records(items)))
    assert list(records) == items and len(records) == 4
    with pytest.raises(IndexError):
        records[4]


def test_sets_travel_to_other_processes(folders):
    for dataset in (
        VOC("train", root=folders["voc"]),
        COCO("train", root=folders["coco"], task="masks"),
        Cityscapes("test", root=folders["cityscapes"]),
    ):
        image, _ = pickle.loads(pickle.dumps(dataset))[0]
        assert torch.equal(image, dataset[0][0])


def test_a_block_of_yaml_names_a_set(folders):
    block = {"type": "VOC", "root": str(folders["voc"]), "train": ["VOC2007/trainval"]}
    part = bind(ANNOTATED, block)
    assert len(part(split="train")) == 2 and part.spelled_out(machine=False) == {
        "type": "VOC",
        "task": "boxes",
        "train": ["VOC2007/trainval"],
        "test": None,
    }
    with pytest.raises(ConfigError, match=r"task(.|\n)*semantic"):
        bind(ANNOTATED, {**block, "task": "sematic"})
    assert {"COCO", "LVIS", "Cityscapes", "TreeCrowns"} <= ANNOTATED.module_dict.keys()
