"""Folders in the layouts of VOC, COCO, LVIS and Cityscapes, with what real ones have; 32 x 24."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 32, 24
TURNED = 6  # EXIF's orientation of a picture that is stored lying on its side


def picture(path: Path, seed: int, gray: bool = False, turned: bool = False) -> None:
    """A picture of 32 x 24; turned: stored as 24 x 32, and EXIF says how to hold it."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 1 if gray else 3))
    image = Image.fromarray(noise.astype(np.uint8).repeat(8, 0).repeat(8, 1).squeeze())
    exif = Image.Exif()
    if turned:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = TURNED
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))


def label_picture(path: Path, labels: np.ndarray, palette: bool = False) -> None:
    image = Image.fromarray(labels.astype(np.uint8))
    if palette:
        image.putpalette(list(range(256)) * 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write(path: Path, content: str | dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def voc_xml(objects: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{objects}</annotation>"


def voc_object(name: str, box: tuple, more: str = "") -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inside = "".join(f"<{side}>{number}</{side}>" for side, number in sides)
    return f"<object><name>{name}</name>{more}<bndbox>{inside}</bndbox></object>"


def voc(root: Path) -> Path:
    """VOC2007 (two pictures train, one tests) and VOC2012 (one each)."""
    hard = "<difficult>1</difficult>"
    head = "<part><name>head</name><bndbox><xmin>3</xmin></bndbox></part>"
    whole = voc_object("dog", (1, 1, WIDTH, HEIGHT))
    objects = {
        "VOC2007/000001": whole + voc_object("cat", (9, 5, 16, 12), hard),
        "VOC2007/000002": "",
        "VOC2007/000003": voc_object("person", (20, 10, 40, 24), "<difficult>0</difficult>"),
        "VOC2012/2012_000001": voc_object("person", (2.4, 3, 10.6, 20)).replace(
            "<bndbox>", head + "<bndbox>", 1
        ),
        "VOC2012/2012_000002": voc_object("train", (1, 1, 1, 1)),
    }
    for seed, (name, text) in enumerate(objects.items()):
        year, name = name.split("/")
        path = root / year / "JPEGImages" / f"{name}.jpg"
        picture(path, seed, gray=name == "000002", turned=name == "2012_000001")
        write(root / year / "Annotations" / f"{name}.xml", voc_xml(text))
        labels = np.zeros((HEIGHT, WIDTH))
        labels[4:12, 8:16] = 12  # dog
        labels[4, 8:16] = 255
        if year == "VOC2012":
            path = root / year / "SegmentationClass" / f"{name}.png"
            label_picture(path, labels, palette=True)
    lists = {
        "VOC2007/ImageSets/Main/trainval": "000001\n000002\n",
        "VOC2007/ImageSets/Main/test": "000003\n",
        "VOC2012/ImageSets/Main/trainval": "2012_000001 -1\n",
        "VOC2012/ImageSets/Segmentation/train": "2012_000001\n",
        "VOC2012/ImageSets/Segmentation/val": "2012_000002\n",
    }
    for name, text in lists.items():
        write(root / f"{name}.txt", text)
    return root


def square(x: int, y: int, side: int) -> list[int]:
    """A polygon."""
    return [x, y, x + side, y, x + side, y + side, x, y + side]


CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "brush"}]
# A crowd in the left eight columns, but for its first column.
CROWD = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT, 7 * HEIGHT, (WIDTH - 8) * HEIGHT]}


def coco_annotations() -> list[dict]:
    """Of images 139, 42 and 7; 7 has none."""

    def of(id, image, category, box, shape, **more):
        area = more.pop("area", box[2] * box[3])
        entry = {"id": id, "image_id": image, "category_id": category, "bbox": box, "area": area}
        return {**entry, "segmentation": shape, "iscrowd": 0, **more}

    return [
        of(900, 139, 18, [8, 4, 10, 10], [square(8, 4, 10)]),
        of(5, 139, 1, [1, 0, 7, HEIGHT], CROWD, iscrowd=1),
        of(6, 42, 90, [28, 20, 8, 8], [square(28, 20, 8), [1, 2, 3, 4]], area=16),
        of(7, 42, 1, [20, 2, 0, 5], [[1, 1, 2, 2]]),
        of(8, 42, 1, [2, 2, 12, 12], [square(2, 2, 4), square(10, 10, 4)], area=32),
    ]


def coco(root: Path) -> Path:
    """Instances and keypoints, the same pictures in both splits; keypoints of three names."""
    names = {139: "000000000139.jpg", 42: "000000000042.jpg", 7: "000000000007.jpg"}
    images = [
        {"id": id, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for id, name in names.items()
    ]
    person = {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"]}
    points = {5: [0] * 9, 7: [0] * 9, 8: [4, 5, 2, 0, 0, 0, 12, 12, 1]}
    people = [
        {
            **of,
            "keypoints": points[of["id"]],
            "num_keypoints": sum(map(bool, points[of["id"]][2::3])),
        }
        for of in coco_annotations()
        if of["category_id"] == 1
    ]
    for part in ("train2017", "val2017"):
        for id, name in names.items():
            picture(root / part / name, id, gray=id == 42, turned=id == 7)
        content = {"images": images, "annotations": coco_annotations(), "categories": CATEGORIES}
        write(root / "annotations" / f"instances_{part}.json", content)
        content = {"images": images, "annotations": people, "categories": [person]}
        write(root / "annotations" / f"person_keypoints_{part}.json", content)
    return root


def lvis(root: Path) -> Path:
    """Pictures of a split lie in both of COCO's folders; annotations have no iscrowd."""
    categories = [
        {"id": 3, "name": "cup", "frequency": "f"},
        {"id": 11, "name": "yak", "frequency": "r"},
        {"id": 20, "name": "bun", "frequency": "c"},
    ]
    images = []
    for id, part in ((1, "train2017"), (2, "val2017")):
        picture(root / part / f"{id:012d}.jpg", id)
        url = f"http://images.cocodataset.org/{part}/{id:012d}.jpg"
        lists = {"neg_category_ids": [20], "not_exhaustive_category_ids": [3]}
        images.append({"id": id, "coco_url": url, "width": WIDTH, "height": HEIGHT, **lists})
    annotations = [
        {
            "id": id,
            "image_id": image,
            "category_id": category,
            "bbox": [x, x, 8, 8],
            "area": 64,
            "segmentation": [square(x, x, 8)],
        }
        for id, image, category, x in ((1, 1, 11, 2), (2, 1, 3, 12), (3, 2, 20, 4))
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        write(root / "annotations" / f"lvis_v1_{split}.json", content)
    return root


def cityscapes(root: Path) -> Path:
    """Two cities train, one tests; maps hold the ids 0 to 33."""
    streets = {"train": ["aachen/aachen_000000_000019", "bremen/bremen_000001_000019"]}
    streets["val"] = ["lindau/lindau_000000_000019"]
    labels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 34
    for part, names in streets.items():
        for seed, name in enumerate(names):
            picture(root / "leftImg8bit" / part / f"{name}_leftImg8bit.png", seed)
            label_picture(root / "gtFine" / part / f"{name}_gtFine_labelIds.png", labels)
    return root
