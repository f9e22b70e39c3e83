"""Data sets from tiny files in the official layouts."""

import gzip
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import cifar, stl10

from ssl_zoo.config import DATASETS, bind
from ssl_zoo.data import ImageSet
from ssl_zoo.data.datasets import fashion_mnist
from ssl_zoo.data.image import decode


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No data but the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSL_ZOO_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "SYSTEM", tmp_path / "no-system-copy")


def build(kind, split="train", **arguments):
    return bind(DATASETS, {"type": kind, **arguments})(split=split)


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_fashion_mnist(place, zipped=True, train=6, test=4):
    place.mkdir(parents=True, exist_ok=True)
    for kind, n in (("train", train), ("t10k", test)):
        images = np.arange(n * 28 * 28).reshape(n, 28, 28).astype(np.uint8) + len(kind)
        for part, array in zip(
            fashion_mnist.PARTS, (images, np.arange(n, dtype=np.uint8)), strict=True
        ):
            data = idx_bytes(array)
            name = f"{kind}-{part}"
            if zipped:
                (place / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (place / name).write_bytes(data)


def pickled(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def images_of(n, size, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), dtype=np.uint8)
    return pixels, np.arange(n) % 10


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).exists())
    place = tmp_path / "data" / "cifar-10-batches-py"
    pixels, labels = images_of(12, 32)
    for i in range(5):
        part = slice(2 * i, 2 * i + 2)
        pickled(
            place / f"data_batch_{i + 1}",
            data=pixels[part].reshape(2, -1),
            labels=labels[part].tolist(),
        )
    pickled(place / "test_batch", data=pixels[10:].reshape(2, -1), labels=labels[10:].tolist())
    pickled(place / "batches.meta", label_names=[str(i) for i in range(10)])
    return pixels, labels, 10


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).exists())
    place = tmp_path / "data" / "cifar-100-python"
    pixels, labels = images_of(12, 32)
    for name, part in (("train", slice(10)), ("test", slice(10, 12))):
        flat = pixels[part].reshape(len(pixels[part]), -1)
        pickled(place / name, data=flat, fine_labels=labels[part].tolist())
    pickled(place / "meta", fine_label_names=[str(i) for i in range(100)])
    return pixels, labels, 100


@pytest.mark.parametrize("kind", ["Digits", "Synthetic"])
def test_bundled_sets(kind):
    train, test = build(kind), build(kind, "test")
    again = build(kind)
    assert isinstance(train, ImageSet) and train.num_classes == 10
    assert torch.equal(train.images, again.images) and torch.equal(train.labels, again.labels)
    assert train.labels.unique().tolist() == list(range(10)) == test.labels.unique().tolist()
    images = train.fetch(torch.tensor([3, 1, 3]))
    assert images.dtype == torch.uint8 and torch.equal(images[0], images[2])
    assert images.shape[1:] == {"Digits": (1, 8, 8), "Synthetic": (3, 32, 32)}[kind]
    assert train.images.max() > 200
    # The splits share no image, and what is learned from one holds on the other.
    a, b = train.images.flatten(1).float(), test.images.flatten(1).float()
    distance = torch.cdist(b, a)
    assert distance.min() > 0
    assert (train.labels[distance.argmin(1)] == test.labels).float().mean() > 0.9


def test_digits_hold_all_of_scikit_learns_and_scale_to_bytes():
    from sklearn.datasets import load_digits

    both = [build("Digits", split) for split in ("train", "test")]
    assert [len(part) for part in both] == [1437, 360]
    expected = np.sort((load_digits().data * 255 / 16).round().sum(1))
    found = torch.cat([part.images.flatten(1).sum(1) for part in both]).sort().values
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["Digits", "Photographs"])
def test_without_scikit_learn(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=f"{kind} .*pip install scikit-learn"):
        build(kind)


def test_photographs_are_patches_in_as_many_classes_as_bands():
    train, test = build("Photographs", "pretrain"), build("Photographs", "test")
    assert train.images.shape == (8910, 3, 32, 32) and test.images.shape == (2500, 3, 32, 32)
    assert train.split == "train" and train.num_classes == 12
    for part in (train, test):  # each class is as common as any, but for the bands at an edge
        assert part.labels.bincount(minlength=12).min() > len(part) / 15
    blue = train.images[:, 2].float().mean(dim=(1, 2))
    assert blue[train.labels == 0].min() > 190  # the first picture's sky
    first = build("Photographs", limit=99)
    assert torch.equal(first.images, train.images[:99]) and len(first.labels.unique()) == 12


@pytest.fixture
def maps(monkeypatch):
    """Two 'photographs' whose pixels are (column, row, picture)."""
    from sklearn import datasets

    row, column = np.mgrid[:90, :110].astype(np.uint8)
    pictures = [np.stack([column, row, np.full_like(row, i)], axis=2) for i in range(2)]
    found = type("Bunch", (), {"images": pictures})
    monkeypatch.setattr(datasets, "load_sample_images", lambda: found)


def test_photographs_train_and_test_share_no_pixel(maps):
    parts = [build("Photographs", split, size=10) for split in ("train", "test")]
    columns = [part.images[:, 0].unique().tolist() for part in parts]
    strips = [[x for x in range(100) if x // 20 % 2 == i] for i in range(2)]
    # Of a strip of 20, strides of 4 and 8 reach columns up to 8 + 10.
    assert columns == [[x for x in strip if x % 20 < 18] for strip in strips]
    for part in parts:
        top_left = part.images[:, :, 0, 0].tolist()
        assert len(set(map(tuple, top_left))) == len(part)  # no patch twice
        offset = part.images - part.images[:, :, :1, :1]  # a patch is one piece, upright
        y, x = torch.meshgrid(torch.arange(10), torch.arange(10), indexing="ij")
        assert torch.equal(offset, torch.stack([x, y, 0 * x]).expand_as(offset).to(torch.uint8))


def test_a_photographs_label_is_picture_and_band(maps):
    for split in ("train", "test"):
        part = build("Photographs", split, size=10, bands=3)
        centre, picture = part.images[:, 1, 5, 5].long(), part.images[:, 2, 5, 5].long()
        assert torch.equal(part.labels, 3 * picture + centre // 30)
        assert part.num_classes == 6 == len(part.labels.unique())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 161}, "size: too large\n.*161\n.*1 to 160"),
        ({"bands": 428}, "bands: too large\n.*428\n.*1 to 427"),
        ({"size": 0}, "size: too small"),
        ({"bands": 0}, "bands: too small"),
    ],
)
def test_photographs_say_what_fits(wrong, message):
    with pytest.raises(ValueError, match=message):
        build("Photographs", **wrong)


def test_synthetic_takes_its_shape():
    data = build("Synthetic", num_samples=7, size=9, channels=1, num_classes=3)
    assert data.images.shape == (7, 1, 9, 9) and data.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    more = build("Synthetic", num_samples=9, size=9, channels=1, num_classes=3)
    assert torch.equal(more.images[:7], data.images)


# ---------------------------------------------------------------------------- Fashion-MNIST


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", ["", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("how", ["root", "environment", "data", "system"])
def test_fashion_mnist_is_found(how, below, zipped, tmp_path, monkeypatch):
    base = tmp_path / {"data": "data", "system": "no-system-copy"}.get(how, "mine")
    write_fashion_mnist(base / below, zipped)
    if how == "environment":
        monkeypatch.setenv("SSL_ZOO_DATA", str(base))
    root = str(base) if how == "root" else None
    train, test = (build("FashionMNIST", split, root=root) for split in ("pretrain", "test"))
    assert train.images.shape == (6, 1, 28, 28) and test.images.shape == (4, 1, 28, 28)
    assert train.split == "train" and train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert train.images[0, 0, 0, :3].tolist() == [5, 6, 7]
    assert test.images[0, 0, 0, :3].tolist() == [4, 5, 6]
    assert build("FashionMNIST", root=root, limit=2).labels.tolist() == [0, 1]


def test_a_named_root_is_the_only_place_searched(tmp_path):
    write_fashion_mnist(tmp_path / "data")
    (tmp_path / "data" / "t10k-labels-idx1-ubyte.gz").rename(tmp_path / "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(FileNotFoundError, match=r"not found in data, .*no-system-copy.*data get"):
        build("FashionMNIST")
    write_fashion_mnist(tmp_path / "data")
    with pytest.raises(
        FileNotFoundError, match=r"not found in elsewhere; get.*data get fashion_mn"
    ):
        build("FashionMNIST", root="elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-9], "not a whole gzip file"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-1]), r"\[6, 28, 28\].*found 4703"),
        (lambda data: gzip.compress(b"\0\0\x0d\3" + bytes(99)), "header 00000d03, expected 000008"),
        (lambda data: gzip.compress(b""), "header , expected"),
    ],
)
def test_damaged_idx_files_are_named(damage, message, tmp_path):
    write_fashion_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        build("FashionMNIST", root=str(tmp_path))
    assert str(path) in str(error.value)


def test_as_many_labels_as_images(tmp_path):
    write_fashion_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(idx_bytes(np.zeros(5, dtype=np.uint8)))
    )
    with pytest.raises(ValueError, match=r"found \[6, 28, 28\] and \[5\]"):
        build("FashionMNIST", root=str(tmp_path))


# ------------------------------------------------------------------------------- CIFAR, STL


@pytest.mark.parametrize(("kind", "source"), [("CIFAR10", "cifar10"), ("CIFAR100", "cifar100")])
def test_cifar(kind, source, request):
    pixels, labels, num_classes = request.getfixturevalue(source)
    train, test = build(kind, "pretrain"), build(kind, "test", root="data")
    assert torch.equal(train.images, torch.from_numpy(pixels[:10]))
    assert torch.equal(test.images, torch.from_numpy(pixels[10:]))
    assert train.labels.tolist() + test.labels.tolist() == labels.tolist()
    assert (train.num_classes, train.split) == (num_classes, "train")
    assert len(build(kind, limit=3)) == 3


def test_stl10(tmp_path, monkeypatch):
    monkeypatch.setattr(stl10, "check_integrity", lambda path, md5=None: Path(path).exists())
    place = tmp_path / "data" / "stl10_binary"
    place.mkdir(parents=True)
    pixels, labels = images_of(9, 96)
    for name, part in (("train", slice(3)), ("test", slice(3, 5)), ("unlabeled", slice(5, 9))):
        # Stored column by column, labels from 1.
        pixels[part].transpose(0, 1, 3, 2).tofile(place / f"{name}_X.bin")
        if name != "unlabeled":
            (labels[part] + 1).astype(np.uint8).tofile(place / f"{name}_y.bin")
    (place / "class_names.txt").write_text("\n".join(map(str, range(10))))
    train, test = build("STL10"), build("STL10", "test")
    assert torch.equal(train.images, torch.from_numpy(pixels[:3]))
    assert test.labels.tolist() == [3, 4] and train.num_classes == 10
    everything = build("STL10", "pretrain")
    assert everything.labels.tolist() == [0, 1, 2, -1, -1, -1, -1]
    assert torch.equal(everything.images[3:], torch.from_numpy(pixels[5:]))
    assert everything.split != train.split
    labeled = build("STL10", "pretrain", unlabeled=False)
    assert torch.equal(labeled.images, train.images) and labeled.split == train.split


@pytest.mark.parametrize("kind", ["CIFAR10", "CIFAR100", "STL10"])
def test_missing_files_say_how_to_get_them(kind):
    with pytest.raises(FileNotFoundError, match=f"ssl-zoo data get {kind.lower()}"):
        build(kind)


def test_a_limit_is_positive():
    with pytest.raises(ValueError, match="limit: too small"):
        build("Digits", limit=0)
    assert build("Digits", limit=5).labels.tolist() == build("Digits").labels[:5].tolist()


@pytest.mark.parametrize(
    "kind", ["FashionMNIST", "CIFAR10", "STL10", "Digits", "Photographs", "Synthetic"]
)
def test_splits_have_names(kind):
    with pytest.raises(ValueError, match="'pretrain', 'train' or 'test', found 'val'"):
        build(kind, "val")


# ---------------------------------------------------------------------------------- folders


def save(path, size, mode="RGB", value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value, 20, 30) if mode == "RGB" else value).save(path)


@pytest.mark.parametrize(("kind", "below"), [("ImageFolder", ""), ("ImageNet", "imagenet")])
@pytest.mark.parametrize("test", ["val", "test"])
def test_folders(kind, below, test, tmp_path):
    base = tmp_path / "data" / below
    save(base / "train" / "b" / "deep" / "1.JPEG", (9, 7), value=200)
    save(base / "train" / "a" / "é 2.png", (5, 6), "L", 40)
    save(base / "train" / "loose.jpg", (4, 4))
    save(base / test / "b" / "3.jpg", (8, 8))
    (base / "train" / "a" / "notes.txt").write_text("not an image")
    train, held_out = build(kind, "pretrain"), build(kind, "test")
    assert train.varies and train.num_classes == 2
    assert train.labels.tolist() == [0, 1, -1] and held_out.labels.tolist() == [1]
    images = train.fetch(torch.tensor([1, 0]))
    assert [tuple(image.shape) for image in images] == [(3, 7, 9), (3, 6, 5)]
    assert images[0].dtype == torch.uint8 and abs(int(images[0][0].float().mean()) - 200) < 4
    assert images[1].unique().tolist() == [40]


@pytest.mark.parametrize(("kind", "below"), [("ImageFolder", ""), ("ImageNet", "imagenet")])
def test_all_splits_are_taken_from_one_place(kind, below, tmp_path, monkeypatch):
    """Else class b of the test images would be numbered by another place's training images."""
    monkeypatch.setenv("SSL_ZOO_DATA", str(tmp_path / "mine"))
    save(tmp_path / "mine" / "val" / "b" / "1.png", (4, 4))
    with_training = tmp_path / "data" / below
    for name in "ab":
        save(with_training / "train" / name / "1.png", (4, 4))
    assert build(kind).folder == Path("data") / below / "train"
    with pytest.raises(FileNotFoundError, match=f"no val/ or test/ in {Path('data') / below};"):
        build(kind, "test")
    save(with_training / "test" / "b" / "1.png", (4, 4))
    assert build(kind, "test").labels.tolist() == [1]
    save(tmp_path / "mine" / "train" / "b" / "1.png", (4, 4))
    assert build(kind).num_classes == build(kind, "test").num_classes == 1


@pytest.mark.parametrize(
    ("make", "split", "message"),
    [
        (lambda root: None, "train", r"no such folder: .*root/train/CLASS/IMAGE"),
        (lambda root: root.mkdir(parents=True), "train", r"no train/ in .*root/train/CLASS/IMAGE"),
        (lambda root: root.mkdir(parents=True), "test", r"no val/ or test/ in "),
        (lambda root: (root / "train" / "a").mkdir(parents=True), "train", r"no image \(JPEG, "),
    ],
)
def test_folders_say_what_they_expect(make, split, message, tmp_path):
    make(tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match=message) as error:
        build("ImageFolder", split, root=str(tmp_path / "mine"))
    assert str(tmp_path / "mine") in str(error.value)


def test_a_test_class_that_training_lacks_is_refused(tmp_path):
    save(tmp_path / "train" / "a" / "1.png", (4, 4))
    save(tmp_path / "val" / "z" / "1.png", (4, 4))
    with pytest.raises(ValueError, match=r"1 class that .* lacks, the first is 'z'"):
        build("ImageFolder", "test", root=str(tmp_path))


def test_files_that_cannot_be_decoded_are_named(tmp_path):
    save(tmp_path / "cut.png", (40, 40))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("cut.png", "text.jpg", "absent.png"):
        with pytest.raises(ValueError, match=f"{name}: cannot be decoded"):
            decode.pixels(str(tmp_path / name))
