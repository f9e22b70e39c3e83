"""Folders as people have them: what is read, what is not, and what is said of it."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_zoo import cli
from ssl_zoo.data import ImageFolder, files

COUNTS = {"train": 16, "val": 6}


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """Three classes of 16 + 6 images."""
    for split, count in COUNTS.items():
        for number, name in enumerate("abc"):
            for i in range(count):
                save(tmp_path / "images" / split / name / f"{i}.jpg", 100 * number + i)
    return tmp_path / "images"


def build(root, split="train", **arguments):
    return ImageFolder(split, root=str(root), **arguments)


def names(data):
    return data.names(torch.arange(len(data)))


def test_what_is_found_is_said(root):
    assert build(root).found == f"{root / 'train'}: 48 images in 3 classes"
    assert build(root, "test").found == f"{root / 'val'}: 18 images in 3 classes"


@pytest.mark.parametrize("place", ["", "a", "a/deep"])
@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", ".thumbnails"])
def test_hidden_folders_are_no_class_and_hold_no_images(name, place, root):
    before = names(build(root))
    shutil.copytree(root / "train" / "b", root / "train" / place / name)
    data = build(root)
    assert names(data) == before and data.classes == ["a", "b", "c"]
    hidden = os.path.join(place, name)
    assert data.found.endswith(f"3 classes; not read: 1 hidden name ({hidden!r})")


def test_what_macos_leaves_beside_files_is_not_read(root):
    before = names(build(root))
    for i in range(4):
        (root / "train" / "a" / f"._{i}.jpg").write_bytes(b"\0\5\x16\7")
    data = build(root)
    data.fetch(torch.arange(len(data)))
    shown = ", ".join(repr(os.path.join("a", f"._{i}.jpg")) for i in range(3))
    assert names(data) == before and f"not read: 4 hidden names ({shown}, ...)" in data.found


@pytest.mark.parametrize("target", ["..", "../..", "../b", "."])
def test_a_link_to_what_is_read_already_adds_nothing(target, root):
    before = names(build(root))
    (root / "train" / "a" / "again").symlink_to(target)
    data = build(root)
    assert names(data) == before
    link = os.path.join("a", "again")
    assert f"not read: 1 link to folders that are read already ({link!r})" in data.found


@pytest.mark.parametrize("target", ["..", ".", "../.."])
def test_a_link_to_a_parent_is_no_class(target, root):
    (root / "train" / "Again").symlink_to(target)
    data = build(root)
    assert data.classes == ["a", "b", "c"] and len(data) == 48 and "'Again'" in data.found
    assert build(root, "test").classes == ["a", "b", "c"]


def test_classes_may_be_links_and_each_real_folder_is_read_once(root):
    shutil.move(root / "train" / "a", root / "pool")
    for name in ("a", "z"):
        (root / "train" / name).symlink_to(root / "pool")
    (root / "train" / "0").symlink_to("b")  # before the folder that it leads to
    data = build(root)
    assert data.classes == ["0", "a", "b", "c", "z"] and len(data) == 48
    assert data.labels.bincount(minlength=5).tolist() == [0, 16, 16, 16, 0]
    assert "5 classes; 2 classes without images here ('0', 'z')" in data.found
    assert "2 links to folders that are read already ('0', 'z')" in data.found


def test_links_that_lead_nowhere_or_in_a_circle_do_no_harm(root):
    (root / "train" / "a" / "gone").symlink_to("nowhere")
    (root / "train" / "self").symlink_to("self")
    data = build(root)
    assert data.classes == ["a", "b", "c"] and len(data) == 48
    assert "not read: 2 files without a suffix" in data.found


def test_every_image_format_is_read_and_the_rest_is_counted(root):
    for suffix in ("tif", "TIFF", "bmp", "gif", "ppm", "webp", "png", "jfif"):
        save(root / "train" / "scans" / f"1.{suffix}")
    for i in range(80):
        (root / "train" / "a" / f"{i}.txt").write_text("words")
    (root / "train" / "README").write_text("words")
    (root / "train" / "b" / "film.mpg").write_bytes(b"\0\0\1\xb3")
    data = build(root)
    assert len(data) == 56 and data.classes == ["a", "b", "c", "scans"]
    assert all(image.shape == (3, 32, 32) for image in data.fetch(torch.arange(48, 56)))
    ignored = data.found.split("not read: ")[1]
    assert ignored == "80 files .txt, 1 file without a suffix, 1 file .mpg"


def test_a_class_without_images_keeps_its_number_and_is_named(root):
    (root / "train" / "b").rename(root / "b")
    (root / "train" / "b").mkdir()
    train, test = build(root), build(root, "test")
    assert train.classes == test.classes == ["a", "b", "c"]
    assert train.labels.unique().tolist() == [0, 2] and test.labels.unique().tolist() == [0, 1, 2]
    assert "32 images in 3 classes; 1 class without images here ('b')" in train.found
    assert "without images" not in test.found


@pytest.mark.parametrize(
    ("of_train", "of_val", "difference"),
    [
        ("café", unicodedata.normalize("NFD", "café"), "unicode normalization"),
        ("Cat", "cat", "case"),
    ],
)
def test_classes_that_are_the_same_to_the_eye_are_told_apart(of_train, of_val, difference, root):
    if len({of_train, of_val} & set(os.listdir(root / "val"))) == 2:
        pytest.skip("this file system holds both names to be one")
    (root / "train" / "b").rename(root / "train" / of_train)
    (root / "val" / "b").rename(root / "val" / of_val)
    with pytest.raises(ValueError, match=r"has 1 class that .* lacks") as error:
        build(root, "test")
    assert f"{of_val!a} and {of_train!a} differ in {difference} alone" in str(error.value)
    save(root / "train" / of_val / "0.jpg")
    assert f"{of_train!a} and {of_val!a} differ in" in build(root).found or (
        f"{of_val!a} and {of_train!a} differ in {difference} alone" in build(root).found
    )


def test_a_flat_folder_is_for_pretraining_alone(root, tmp_path):
    for i in range(5):
        save(tmp_path / "flat" / f"{i}.png", i)
    save(tmp_path / "train" / "elsewhere" / "0.png")  # beside it, and none of its business
    data = build(tmp_path / "flat", "pretrain")
    assert data.labels.tolist() == [-1] * 5 and data.num_classes == 0
    assert data.found == f"{tmp_path / 'flat'}: 5 images; 5 images without a label"
    with pytest.raises(FileNotFoundError, match=r"no val/ or test/ .* images without labels.*null"):
        build(tmp_path / "flat", "test")
    save(root / "loose.jpg")  # splits that are there are the set
    assert len(build(root)) == 48
    shutil.rmtree(root / "train")
    with pytest.raises(FileNotFoundError, match="no train/ in"):
        build(root)


def test_a_folder_that_may_not_be_read_is_an_error(root, monkeypatch):
    real = os.scandir

    def refuse(place):
        if os.path.basename(place) == "b":
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="train/b"):
        files.scan(root / "train")


CONFIG = """
data:
  dataset: {{type: ImageFolder, root: {root}}}
  views:
    ops:
      crop: {{type: RandomResizedCrop, size: 32}}
      jitter: {{type: ColorJitter, brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1}}
      gray: {{type: RandomGrayscale}}
  clean: {{ops: {{resize: {{type: Resize, size: [32, 32]}}}}}}
  batch_size: 16
  workers: 1
backbone:
  type: Timm
  name: resnet18
  small_images: true
  options: {{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}}
method:
  type: Contrastive
  head: {{type: MLP, out_features: 16}}
  memory: {{type: MoCoQueue, size: 64}}
  loss: {{type: InfoNCE}}
optimizer: {{type: SGD, lr: 0.05}}
train: {{epochs: 1}}
evaluations: {{knn: {{type: KNN, k: 5}}}}
"""


def test_a_run_says_at_its_start_what_was_found_of_each_split(root, tmp_path, capsys):
    (root / "train" / ".ipynb_checkpoints").mkdir()
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(CONFIG.format(root=root))
    command = ["train", str(config), "--out", str(run), "--no-baselines", "--device", "cpu"]
    assert cli.main([*command, "data.dataset.channels=1", "backbone.in_chans=1"]) == 0
    log = (run / "log.txt").read_text()
    for text in (log, capsys.readouterr().out):
        assert text.count("48 images in 3 classes; not read: 1 hidden name") == 1
        assert text.count("18 images in 3 classes") == 1
    capsys.readouterr()
    other = [*command[:3], str(tmp_path / "other"), *command[4:], "data.dataset.channels=1"]
    assert cli.main(other) == 2
    assert "backbone.in_chans: images have 1 channels" in capsys.readouterr().err
    assert cli.main(["data", "show", str(config), "--out", str(tmp_path / "views.png")]) == 0
    assert "48 images in 3 classes; not read:" in capsys.readouterr().out


def test_a_flat_folder_trains_and_says_what_it_cannot_be_evaluated_on(root, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(root=root / "train" / "a"))
    command = ["train", str(config), "data.workers=0", "--device", "cpu", "--out"]
    assert cli.main([*command, str(tmp_path / "one"), "evaluations.knn=null"]) == 0
    assert "16 images; 16 images without a label" in capsys.readouterr().out
    assert cli.main([*command, str(tmp_path / "two")]) == 2
    assert "no val/ or test/ in " in (error := capsys.readouterr().err)
    assert "take NAME out by evaluations.NAME=null" in error
    assert (tmp_path / "two" / "metrics.jsonl").read_text() == ""  # before the first step
