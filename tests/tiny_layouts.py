"""Folders in the layouts of VOC, COCO, LVIS and Cityscapes, with what real ones have; 32 x 24.

And such in which a network can learn to find something: shapes, and persons with keypoints.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

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


# ----------------------------------------------------------------------- what can be learned

LEARNED = 8  # pictures, of both splits
SHAPES = ["dog", "person", "train"]  # a disc, a rectangle, a rhombus: names that all layouts know
SHAPE_COLORS = [(220, 60, 40), (40, 190, 80), (50, 80, 230)]


class Shape(NamedTuple):
    """Of SHAPES[kind]; box x0, y0, x1, y1 in whole pixels, and the polygon that touches it."""

    kind: int
    box: tuple[int, int, int, int]
    polygon: list[float]


def shapes(seed: int, side: int) -> list[Shape]:
    """One in each half of a picture of 2 side x 2 side pixels."""
    draw = np.random.default_rng(seed)
    made = []
    for half in range(2):
        width, height = draw.integers(side // 2, side - 3, 2).tolist()
        x0 = half * side + int(draw.integers(1, side - width))
        y0 = int(draw.integers(1, 2 * side - height))
        kind = (seed + half * (1 + seed // 3)) % 3
        turns = np.arange(32) * np.pi / 16
        outline = [
            np.stack([np.cos(turns), np.sin(turns)], axis=1),
            np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]),
            np.array([[0, -1], [1, 0], [0, 1], [-1, 0]]),
        ][kind]
        polygon = (outline + 1) / 2 * [width, height] + [x0, y0]
        box = (x0, y0, x0 + width, y0 + height)
        made.append(Shape(kind, box, polygon.round(3).flatten().tolist()))
    return made


def covered(polygon: list[float], side: int) -> np.ndarray:
    """Pixels of a picture that are inside, by most of their area, [2 side, 2 side] bool."""
    fine = Image.new("L", (8 * side, 8 * side))
    ImageDraw.Draw(fine).polygon([4 * x - 0.5 for x in polygon], fill=255)
    return np.asarray(fine.reduce(4)) > 127


def ground(seed: int, side: int) -> np.ndarray:
    """Gray noise, [2 side, 2 side, 3] uint8."""
    noise = np.random.default_rng(100 + seed).integers(100, 150, (2 * side, 2 * side, 1))
    return noise.astype(np.uint8).repeat(3, 2)


def shapes_picture(path: Path, seed: int, side: int) -> list[Shape]:
    pixels, made = ground(seed, side), shapes(seed, side)
    for shape in made:
        pixels[covered(shape.polygon, side)] = SHAPE_COLORS[shape.kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return made


def shapes_map(path: Path, made: list[Shape], side: int, labels: list[int], rest: int) -> None:
    """A PNG of labels, by kind of shape; `rest` where there is none."""
    numbers = np.full((2 * side, 2 * side), rest)
    for shape in made:
        numbers[covered(shape.polygon, side)] = labels[shape.kind]
    label_picture(path, numbers)


def voc_shapes(root: Path, side: int = 48) -> Path:
    """Each image set that is published, of the same pictures: boxes, and maps in 2012."""
    for year in ("VOC2007", "VOC2012"):
        names = []
        for seed in range(LEARNED):
            names.append(f"{year[3:]}_{seed:06d}")
            made = shapes_picture(root / year / "JPEGImages" / f"{names[-1]}.jpg", seed, side)
            boxes = [(of.kind, (of.box[0] + 1, of.box[1] + 1, *of.box[2:])) for of in made]
            objects = "".join(voc_object(SHAPES[kind], box) for kind, box in boxes)
            text = voc_xml(objects, 2 * side, 2 * side)
            write(root / year / "Annotations" / f"{names[-1]}.xml", text)
            path = root / year / "SegmentationClass" / f"{names[-1]}.png"
            shapes_map(path, made, side, [12, 15, 19], 0)
        for part in ("Main/trainval", "Main/test", "Segmentation/trainaug", "Segmentation/val"):
            write(root / year / "ImageSets" / f"{part}.txt", "\n".join(names))
    return root


def cityscapes_shapes(root: Path, side: int = 48) -> Path:
    """On a road; id 0 is ignored."""
    for part in ("train", "val"):
        for seed in range(LEARNED):
            name = f"{part}/aachen/aachen_{seed:06d}_000019"
            made = shapes_picture(root / "leftImg8bit" / f"{name}_leftImg8bit.png", seed, side)
            path = root / "gtFine" / f"{name}_gtFine_labelIds.png"
            shapes_map(path, made, side, [24, 26, 11], 7)
    return root


def annotated(id: int, image: int, category: int, box: tuple, polygon: list[float]) -> dict:
    x, y = np.array(polygon).reshape(-1, 2).T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    corner, (width, height) = [*box[:2]], (box[2] - box[0], box[3] - box[1])
    entry = {"id": id, "image_id": image, "category_id": category, "area": float(area)}
    return {**entry, "bbox": [*corner, width, height], "segmentation": [polygon]}


def coco_shapes(root: Path, side: int = 48) -> Path:
    """COCO's instances and LVIS's, of the same pictures; ids of categories have gaps."""
    ids, size = [18, 1, 90], {"width": 2 * side, "height": 2 * side}
    for part, split in (("train2017", "train"), ("val2017", "val")):
        images, found = [], []
        for seed in range(LEARNED):
            image, name = 7 * seed + 3, f"{part}/{seed:012d}.jpg"
            for shape in shapes_picture(root / name, seed, side):
                id = len(found) + 1
                found.append(annotated(id, image, ids[shape.kind], shape.box, shape.polygon))
            images.append({"id": image, "file_name": f"{seed:012d}.jpg", **size})
            images[-1]["coco_url"] = f"http://images.cocodataset.org/{name}"
        categories = [{"id": id, "name": name} for id, name in zip(ids, SHAPES, strict=True)]
        content = {"images": images, "categories": categories}
        content["annotations"] = [{**of, "iscrowd": 0} for of in found]
        write(root / "annotations" / f"instances_{part}.json", content)
        lists = {"neg_category_ids": ids, "not_exhaustive_category_ids": []}
        content["images"] = [{**image, **lists} for image in images]
        content["annotations"] = found
        content["categories"] = [
            {**of, "frequency": f} for of, f in zip(categories, "frc", strict=True)
        ]
        write(root / "annotations" / f"lvis_v1_{split}.json", content)
    return root


# COCO's keypoints of a person who faces us: left ones are on the right; percent of a box.
KEYPOINTS = {
    "nose": (50, 14),
    "left_eye": (60, 8),
    "right_eye": (40, 8),
    "left_ear": (72, 12),
    "right_ear": (28, 12),
    "left_shoulder": (80, 28),
    "right_shoulder": (20, 28),
    "left_elbow": (90, 42),
    "right_elbow": (10, 42),
    "left_wrist": (94, 56),
    "right_wrist": (6, 56),
    "left_hip": (68, 58),
    "right_hip": (32, 58),
    "left_knee": (72, 76),
    "right_knee": (28, 76),
    "left_ankle": (76, 94),
    "right_ankle": (24, 94),
}


def persons(root: Path, side: int = 48) -> Path:
    """COCO's persons, two a picture; each keypoint is a dot, those of a pair of one color."""
    template = np.array([*KEYPOINTS.values()]) / 100
    kinds = [name.split("_")[-1] for name in KEYPOINTS]
    colors = np.random.default_rng(5).integers(0, 256, (17, 3))
    person = {"id": 1, "name": "person", "keypoints": [*KEYPOINTS]}
    for part in ("train2017", "val2017"):
        images, found = [], []
        for seed in range(LEARNED):
            pixels = ground(seed, side)
            for shape in shapes(seed, side):
                x0, y0, x1, y1 = shape.box
                pixels[y0:y1, x0:x1] = (230, 200, 180)
                points = np.floor(template * [x1 - x0, y1 - y0] + [x0, y0]).astype(int)
                for kind, (x, y) in zip(kinds, points, strict=True):
                    color = colors[kinds.index(kind)]
                    pixels[max(y - 1, y0) : y + 2, max(x - 1, x0) : x + 2] = color
                rectangle = [x0, y0, x1, y0, x1, y1, x0, y1]
                entry = annotated(len(found) + 1, seed, 1, shape.box, rectangle)
                seen = [number for x, y in points.tolist() for number in (x, y, 2)]
                found.append({**entry, "keypoints": seen, "num_keypoints": 17, "iscrowd": 0})
            path = root / part / f"{seed:012d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=95)
            images.append({"id": seed, "file_name": path.name})
            images[-1] |= {"width": 2 * side, "height": 2 * side}
        content = {"images": images, "annotations": found, "categories": [person]}
        write(root / "annotations" / f"person_keypoints_{part}.json", content)
    return root
