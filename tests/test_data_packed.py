"""Packed sets: the same images as the folder's, and files that are something else."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_zoo import cli
from ssl_zoo.config import ConfigError, bind
from ssl_zoo.data import Data, ImageFolder, Packed
from ssl_zoo.data.datasets import packed
from ssl_zoo.data.image import decode

SIZES = ((40, 60), (70, 33), (32, 32), (20, 50))  # height, width; the last is small


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for i in range(count):
            path = tmp_path / "images" / split / f"class {i % 2}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            height, width = SIZES[i % 4]
            Image.fromarray(small).resize((width, height), Image.BICUBIC).save(path)
    return tmp_path


@pytest.fixture
def pack(root):
    for split in ("train", "test"):
        folder = ImageFolder(split, root=str(root / "images"))
        packed.pack(folder, root / "pack" / f"{split}.pack", 32, log=lambda text: None)
    return root / "pack"


def data_of(dataset, **arguments):
    ops = {"crop": {"type": "RandomResizedCrop", "size": 16}}
    clean = {"resize": {"type": "Resize", "size": 32}, "crop": {"type": "CenterCrop", "size": 24}}
    block = {"dataset": dataset, "views": {"ops": ops}, "clean": {"ops": clean}, "batch_size": 4}
    return bind(Data, block | arguments, "data")(run_seed=0)


def test_round_trip(root, pack):
    for split in ("train", "test"):
        folder, copy = ImageFolder(split, root=str(root / "images")), Packed(split, path=str(pack))
        assert torch.equal(copy.labels, folder.labels) and copy.split == folder.split
        assert copy.num_classes == 2 and copy.classes == ["class 0", "class 1"]
        index = torch.arange(len(folder)).flip(0)
        assert copy.names(index) == folder.names(index)
        assert "size 32, channels 3, exif True, background 255" in copy.found
        for image, whole in zip(copy.fetch(index), folder.fetch(index), strict=True):
            side = min(whole.shape[1:])
            assert image.dtype == torch.uint8 and min(image.shape[1:]) == min(side, 32)
            if side <= 32:
                assert torch.equal(image, whole)


def test_a_gray_pack_is_gray(root):
    folder = ImageFolder("train", root=str(root / "images"), channels=1)
    packed.pack(folder, root / "gray" / "train.pack", 99, log=lambda text: None)
    index = torch.arange(8)
    images = Packed("train", path=str(root / "gray")).fetch(index)
    for image, expected in zip(images, folder.fetch(index), strict=True):
        assert len(image) == 1 and torch.equal(image, expected)


def test_packing_takes_the_files_that_the_folder_takes_and_says_so(root):
    copies = root / "images" / "train" / ".ipynb_checkpoints"
    copies.mkdir()
    (copies / "0.jpg").write_bytes((root / "images/train/class 0/0.jpg").read_bytes())
    folder, said = ImageFolder("train", root=str(root / "images")), []
    packed.pack(folder, root / "p" / "train.pack", 32, log=said.append)
    assert said[0] == folder.found and ".ipynb_checkpoints" in said[0]
    assert len(Packed("train", path=str(root / "p"))) == 8


def test_evaluation_sees_the_very_images(root, pack):
    """Resize to what was packed is the step that packing took."""
    folder = data_of({"type": "ImageFolder", "root": str(root / "images")}, workers=0).splits
    copy = data_of({"type": "Packed", "path": str(pack)}, workers=0).splits
    for split in ("train", "test"):
        (a, labels, _), (b, same, _) = (next(d.clean_batches(split, "cpu")) for d in (folder, copy))
        assert torch.equal(a, b) and torch.equal(labels, same)


def test_workers_change_nothing_and_nothing_is_written(pack):
    before = (pack / "train.pack").read_bytes()
    one, two = (data_of({"type": "Packed", "path": str(pack)}, workers=n) for n in (0, 2))
    for a, b in zip(one.batches(0, 4, "cpu"), two.batches(0, 4, "cpu"), strict=True):
        assert torch.equal(torch.stack(a.views), torch.stack(b.views))
    one.dataset.fetch(torch.tensor([0]))[0].zero_()
    assert (pack / "train.pack").read_bytes() == before


def test_pixels_do_not_travel_to_other_processes(pack):
    data = Packed("train", path=str(pack))
    images = data.fetch(torch.arange(8))
    sent = pickle.dumps(data)
    assert len(sent) < sum(image.numel() for image in images) / 4
    for image, other in zip(images, pickle.loads(sent).fetch(torch.arange(8)), strict=True):
        assert torch.equal(image, other)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "damaged: [0-9]+ bytes, expected [0-9]+"),
        (lambda data: data[:2000], "damaged: 2000 bytes"),
        (lambda data: data + b"x", "damaged: "),
        (lambda data: b"", "not written by `ssl-zoo data pack`; begins b''"),
        (lambda data: b"\xff\xd8" + data[2:], "not written by `ssl-zoo data pack`"),
        (lambda data: bytes(packed.HEADER.size) + data[packed.HEADER.size :], "not written by"),
        (
            lambda data: data[:16] + b"\1" + data[17:],
            "version 1, expected 2: .*delete it, then .*`ssl-zoo data pack CONFIG --out .*pack",
        ),
        (lambda data: data[:-400] + bytes(400), "damaged: its index cannot be read"),
    ],
)
def test_wrong_files_are_named(damage, message, pack):
    path = pack / "train.pack"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        Packed("train", path=str(pack))
    assert str(path) in str(error.value)


def test_an_index_of_other_pixels_is_refused(pack):
    path = pack / "train.pack"
    data = path.read_bytes()
    magic, version, begin, length = packed.HEADER.unpack(data[: packed.HEADER.size])
    head = packed.HEADER.pack(magic, version, begin - 3, length)
    path.write_bytes(head + data[packed.HEADER.size + 3 :])
    with pytest.raises(ValueError, match="does not describe"):
        Packed("train", path=str(pack))


def test_a_pack_is_known_by_its_pixels_and_one_of_before_by_what_it_has(root, pack, monkeypatch):
    index = torch.arange(8)
    before = Packed("train", path=str(pack))
    folder = ImageFolder("train", root=str(root / "images"))
    again = root / "again"
    packed.pack(folder, again / "train.pack", 32, workers=1, log=lambda text: None)
    assert Packed("train", path=str(again)).identity == before.identity
    Image.open(path := folder.paths(index)[3]).rotate(180).save(path)
    (again / "train.pack").unlink()
    packed.pack(folder, again / "train.pack", 32, log=lambda text: None)
    after = Packed("train", path=str(again))
    assert after.names(index) == before.names(index)
    assert after.file_sizes(index) == before.file_sizes(index)
    assert (after.fingerprint != before.fingerprint).nonzero().tolist() == [[3]]
    assert after.identity != before.identity

    savez = np.savez
    monkeypatch.setattr(np, "savez", lambda to, codes, **rest: savez(to, **rest))
    packed.pack(folder, root / "old" / "train.pack", 32, log=lambda text: None)
    old = Packed("train", path=str(root / "old"))
    assert torch.equal(old.fingerprint, super(Packed, old).fingerprint)
    assert len(old.fetch(index)) == 8


def test_files_of_the_wrong_split_or_none(pack):
    os.replace(pack / "test.pack", pack / "train.pack")
    with pytest.raises(ValueError, match=r"train\.pack: holds the test images"):
        Packed("train", path=str(pack))
    with pytest.raises(FileNotFoundError, match=r"test\.pack: no such file; `ssl-zoo data pack"):
        Packed("test", path=str(pack))


def test_an_interrupted_pack_leaves_nothing(root, tmp_path, monkeypatch):
    folder, path = ImageFolder("train", root=str(root / "images")), tmp_path / "new" / "train.pack"
    real, calls = decode.pixels, []

    def stop(file, *how):
        calls.append(file)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(file, *how)

    monkeypatch.setattr(decode, "pixels", stop)
    with pytest.raises(KeyboardInterrupt):
        packed.pack(folder, path, 32, log=lambda text: None)
    assert list(path.parent.iterdir()) == []
    monkeypatch.setattr(decode, "pixels", real)
    packed.pack(folder, path, 32, log=lambda text: None)
    assert [p.name for p in path.parent.iterdir()] == ["train.pack"]


def test_a_finished_pack_is_kept_and_another_is_not_overwritten(root, pack):
    folder, path, said = ImageFolder("train", root=str(root / "images")), pack / "train.pack", []
    before = os.stat(path).st_mtime_ns
    packed.pack(folder, path, 32, log=said.append)
    assert os.stat(path).st_mtime_ns == before and "there already" in said[1]
    with pytest.raises(FileExistsError, match="of other images, of another size"):
        packed.pack(folder, path, 16)
    stored = ImageFolder("train", root=str(root / "images"), exif=False)
    with pytest.raises(FileExistsError, match="or decoded in another way"):
        packed.pack(stored, path, 32)
    os.replace(folder.paths(torch.tensor([0]))[0], root / "images/train/class 0/renamed.jpg")
    with pytest.raises(FileExistsError, match=r"train\.pack holds a pack of other images"):
        packed.pack(ImageFolder("train", root=str(root / "images")), path, 32)


def test_a_size_is_positive(root):
    with pytest.raises(ValueError, match="at least 1, found 0"):
        packed.pack(ImageFolder("train", root=str(root / "images")), root / "x.pack", 0)


CONFIG = """
_base_: {base}
data:
  dataset: {{type: ImageFolder, root: {images}}}
  batch_size: 4
"""


def test_the_command_packs_what_a_config_names(root, capsys):
    base = Path(__file__).parents[1] / "configs" / "digits" / "moco_v2.yaml"
    config = root / "my.yaml"
    config.write_text(CONFIG.format(base=base, images=root / "images"))
    command = ["data", "pack", str(config), "--out", str(root / "out"), "--size", "32"]
    assert cli.main(command) == 0
    assert f"{{type: Packed, path: {root / 'out'}}}" in capsys.readouterr().out
    for split in ("train", "test"):
        folder = ImageFolder(split, root=str(root / "images"))
        assert torch.equal(Packed(split, path=str(root / "out")).labels, folder.labels)
    assert cli.main([*command, "data.dataset={type: Digits}"]) == 2
    assert "data.dataset is Digits: only folders of images" in capsys.readouterr().err


def test_a_missing_pack_is_reported_with_its_key(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.dataset\.path"):
        data_of({"type": "Packed", "path": 3})
    with pytest.raises(FileNotFoundError, match=r"train\.pack: no such file"):
        data_of({"type": "Packed", "path": str(tmp_path)})


def test_a_bad_file_is_named_in_one_line_whatever_the_workers(root, tmp_path):
    bad = next((root / "images" / "train").rglob("*.*"))
    bad.write_bytes(b"no image")
    folder = ImageFolder("train", root=str(root / "images"))
    for workers in (0, 1):
        with pytest.raises(ValueError, match=f"^{re.escape(str(bad))}: cannot be .*\\)$") as caught:
            packed.pack(folder, tmp_path / "train.pack", 32, workers, log=lambda text: None)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("train.pack*"))
