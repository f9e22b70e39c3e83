"""Decoding: simplejpeg against Pillow, files that only Pillow takes, decoding at a fraction."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from ssl_zoo.config import bind
from ssl_zoo.data import Data, ImageFolder, Views
from ssl_zoo.data.image import Samples, decode
from ssl_zoo.system import rng

pytest.importorskip("simplejpeg")


def photograph(height=75, width=101):
    """Edges, gradients and some noise: [H, W, 3] of bytes."""
    y, x = np.mgrid[:height, :width] / 40
    planes = [np.sin(6 * x + y), np.cos(5 * y) * x, np.sign(np.sin(3 * x * y))]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    return np.clip(128 + 80 * np.stack(planes, -1) + noise, 0, 255).astype(np.uint8)


def write(path, mode="RGB", height=75, width=101, **options):
    Image.fromarray(photograph(height, width)).convert(mode).save(path, **options)
    return str(path)


def by_pillow(path):
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


KINDS = {
    "444": {"subsampling": 0},
    "422": {"subsampling": 1},
    "420": {"subsampling": 2},
    "progressive": {"progressive": True},
    "gray": {"mode": "L"},
    "odd": {"height": 33, "width": 47},
}


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_simplejpeg_and_pillow_give_the_same_bytes(kind, shrink, tmp_path, monkeypatch):
    path = write(tmp_path / "a.jpg", quality=90, **KINDS[kind])
    image = decode.pixels(path, shrink)
    _, height, width = decode.shape(path)
    assert image.shape == (3, -(-height // shrink), -(-width // shrink))
    assert decode._by_simplejpeg((tmp_path / "a.jpg").read_bytes(), shrink) is not None
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert torch.equal(image, decode.pixels(path, shrink))
    if shrink == 1:
        assert torch.equal(image, by_pillow(path))


@pytest.mark.parametrize("shrink", [1, 2])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cmyk.jpg", {"mode": "CMYK"}),
        ("a.png", {}),
        ("palette.png", {"mode": "P"}),
        ("alpha.png", {"mode": "RGBA"}),
        ("a.webp", {"lossless": True}),
    ],
)
def test_what_simplejpeg_does_not_take_is_pillows(name, options, shrink, tmp_path):
    path = write(tmp_path / name, **options)
    assert decode._by_simplejpeg((tmp_path / name).read_bytes(), 1) is None
    image, whole = decode.pixels(path, shrink), by_pillow(path)
    if shrink == 1:
        assert torch.equal(image, whole)
    else:
        blocks = F.pad(whole, [0, 0, 1, 1], padding_mode="edge").float().unfold(1, 2, 2)
        expected = blocks.unfold(2, 2, 2).mean((3, 4))
        assert image.shape == expected.shape == (3, 38, 51)
        # A CMYK JPEG is averaged before its colors are converted.
        assert (image - expected).abs().mean() < (3 if name == "cmyk.jpg" else 0.6)


def test_orientation_tags_are_left_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = write(tmp_path / "turned.jpg", exif=exif)
    assert torch.equal(decode.pixels(turned), decode.pixels(write(tmp_path / "plain.jpg")))


def test_a_jpeg_under_another_name_is_a_by_simplejpeg(tmp_path):
    data = io.BytesIO()
    Image.fromarray(photograph()).save(data, "jpeg")
    (tmp_path / "a.png").write_bytes(data.getvalue())
    assert decode._by_simplejpeg(data.getvalue(), 1) is not None
    assert torch.equal(decode.pixels(str(tmp_path / "a.png")), by_pillow(tmp_path / "a.png"))


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("cut", [3, 300, 2000])
def test_a_cut_jpeg_is_named(cut, installed, tmp_path, monkeypatch):
    path = tmp_path / "cut.jpg"
    write(path)
    path.write_bytes(path.read_bytes()[:cut])
    if not installed:
        monkeypatch.setattr(decode, "simplejpeg", None)
    with pytest.raises(ValueError, match=r"cut\.jpg: cannot be decoded"):
        decode.pixels(str(path))


def test_which_file_is_bad_survives_the_way_between_processes(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(decode.BadImage) as caught:
        decode.pixels(str(tmp_path / "text.jpg"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.path == caught.value.path == str(tmp_path / "text.jpg")
    assert str(again) == str(caught.value) and again.path in str(again)


# -------------------------------------------------------------------- decoding at a fraction


def views_of(*sizes, kind="RandomResizedCrop"):
    """A view for each size."""
    ops = {f"v{i}": {"type": kind, "size": s, "views": [i]} for i, s in enumerate(sizes)}
    return bind(Views, {"ops": ops, "count": len(sizes)})()


@pytest.mark.parametrize("sizes", [(16, 16), (16, (8, 24)), (40,)])
def test_no_view_gets_fewer_pixels_than_it_makes(sizes):
    views, n = views_of(*sizes), 400
    index = torch.arange(n)
    shapes = torch.stack([torch.full((n,), 3), 40 + index, 500 - index], dim=1)
    shrink = views.shrink_factors(shapes, Samples(0, 3, index))
    assert len(shrink.unique()) >= 3
    room = torch.full((n,), torch.inf)
    for view in range(len(sizes)):
        op = views.ops[f"v{view}"]
        key = rng.hashed(rng.hashed(0, 3, index, view), f"v{view}")
        box = op.draw(key, (3, shapes[:, 1], shapes[:, 2]))["box"]
        room = torch.minimum(room, (box[:, 2:] / torch.tensor(op.size)).amin(1))
        scaled = op.scale_params({"box": box}, shrink)["box"]
        large = shrink > 1
        assert (scaled[large, 2:] >= torch.tensor(op.size)).all()
        # Inside what is decoded, and where the box is, to one decoded pixel.
        decoded = (shapes[:, 1:] + shrink[:, None] - 1) // shrink[:, None]
        assert (scaled[:, :2] >= 0).all() and (scaled[:, :2] + scaled[:, 2:] <= decoded).all()
        off = (scaled * shrink[:, None] - box).abs() / shrink[:, None]
        assert (off[:, 2:] <= 0.5).all() and (off[:, :2] <= 1).all()
        assert torch.equal(scaled[~large], box[~large])
    assert ((room >= shrink) | (shrink == 1)).all()
    assert ((room < 2 * shrink) | (shrink == 8)).all()  # and no larger than need be


@pytest.mark.parametrize(
    ("op", "height", "width", "expected"),
    [
        ({"type": "Resize", "size": 32}, 64, 300, 2),
        ({"type": "Resize", "size": 32}, 63, 300, 1),
        ({"type": "Resize", "size": [32, 64]}, 300, 300, 4),
        ({"type": "CenterCrop", "size": 8}, 300, 300, 1),
    ],
)
def test_how_far_evaluation_may_shrink(op, height, width, expected):
    views = bind(Views, {"ops": {"op": op, "crop": {"type": "CenterCrop", "size": 8}}})()
    shapes = torch.tensor([[3, height, width]])
    assert views.shrink_factors(shapes, Samples(0, 0, torch.tensor([0]))).tolist() == [expected]


def smooth(height, width):
    """A picture without detail below a few pixels, as large photographs are: [H, W, 3]."""
    small = Image.fromarray(photograph(height // 8, width // 8))
    return np.array(small.resize((width, height), Image.BICUBIC))


@pytest.fixture
def large(tmp_path):
    for split in ("train", "val"):
        for i in range(4):
            path = tmp_path / split / "a" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(smooth(240 + 17 * i, 401 - 11 * i)).save(path, quality=95)
    write(tmp_path / "train" / "a" / "small.jpg", height=30, width=40)
    return tmp_path


def data_of(root, **arguments):
    crop = {"crop": {"type": "RandomResizedCrop", "size": 24, "scale": [0.2, 1.0]}}
    clean = {"resize": {"type": "Resize", "size": 32}, "crop": {"type": "CenterCrop", "size": 28}}
    block = {
        "dataset": {"type": "ImageFolder", "root": str(root), **arguments},
        "views": {"ops": crop},
        "clean": {"ops": clean},
        "batch_size": 5,
        "workers": 0,
    }
    return bind(Data, block, "data")(run_seed=0, views_needed=2)


def decibels(a, b):
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


def test_scaled_decoding_stays_close_to_decoding_the_whole(large, monkeypatch):
    whole, scaled = data_of(large), data_of(large, scaled=True)
    asked = []
    real = decode.pixels
    monkeypatch.setattr(decode, "pixels", lambda path, k: asked.append(k) or real(path, k))
    some, others = next(scaled.batches(0, 1, "cpu")), next(whole.batches(0, 1, "cpu"))
    assert sorted(asked)[-1] >= 4 and sorted(asked)[5] == 1  # scaled first, then all whole
    for view, expected in zip(some.views, others.views, strict=True):
        for i, (a, b) in enumerate(zip(view, expected, strict=True)):
            if some.index[i] == 4:  # the small one: nothing to save, not a bit changes
                assert torch.equal(a, b)
            assert (a - b).abs().mean() < 0.02 and decibels(a, b) > 28
    (a, *_), (b, *_) = (
        next(scaled.splits.clean_batches("test", "cpu")),
        next(whole.splits.clean_batches("test", "cpu")),
    )
    assert not torch.equal(a, b)
    assert (a - b).abs().mean() < 0.02 and decibels(a, b) > 30


def test_scaled_views_are_those_of_the_moved_box(large):
    """What differs from whole decoding is the box's rounding and the JPEG's own averaging."""
    data = data_of(large, scaled=True)
    index = torch.tensor([0])
    shapes = data.dataset.shapes(index)
    samples = Samples(0, 0, index)
    shrink = data.views.shrink_factors(shapes, samples)
    (image,) = data.dataset.fetch(index, shrink)
    out = data.views.bring_to_one_size(1, [image], samples, shapes, shrink)
    op = data.views.ops["crop"]
    key = rng.hashed(rng.hashed(0, 0, index, 1), "crop")
    box = op.draw(key, (3, shapes[:, 1], shapes[:, 2]))
    box = op.scale_params(box, shrink)["box"][0].tolist()
    assert torch.equal(out[0], F.resized_crop(image, *box, [24, 24], antialias=True))


def test_the_lack_of_simplejpeg_is_said_where_there_are_jpegs(tmp_path, monkeypatch, recwarn):
    (tmp_path / "train" / "a").mkdir(parents=True)
    write(tmp_path / "train" / "a" / "1.png")
    monkeypatch.setattr(decode, "simplejpeg", None)
    ImageFolder("train", root=str(tmp_path))
    assert not recwarn.list
    write(tmp_path / "train" / "a" / "2.jpg")
    with pytest.warns(UserWarning, match="ImageFolder: Pillow decodes .* pip install simplejpeg"):
        ImageFolder("train", root=str(tmp_path))
