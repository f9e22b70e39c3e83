"""Decoding: simplejpeg against Pillow, files that only Pillow takes, decoding at a fraction."""

import io
import os
import pickle
import struct
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps
from torchvision.transforms.v2 import functional as F

from ssl_zoo.config import DATASETS, bind
from ssl_zoo.data import Data, ImageFolder, Views
from ssl_zoo.data.image import Samples, decode
from ssl_zoo.data.loader import Batches, on_device
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


def tagged(tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    return exif


def upright(image):
    return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(
        2, 0, 1
    )


STORED = {"simplejpeg": "a.jpg", "Pillow": "a.jpg", "PNG": "a.png", "WebP": "a.webp"}
STORED |= {"TIFF": "a.tif", "AVIF": "a.avif"}


@pytest.mark.parametrize("by", STORED)
@pytest.mark.parametrize("tag", range(1, 9))
def test_an_image_is_turned_as_its_tag_says(tag, by, tmp_path, monkeypatch):
    if by == "AVIF" and ".avif" not in decode.suffixes():
        pytest.skip("this Pillow reads no AVIF")
    if by == "Pillow":
        monkeypatch.setattr(decode, "simplejpeg", None)
    path = write(tmp_path / STORED[by], height=64, width=96, exif=tagged(tag))
    image = decode.pixels(path)
    assert image.shape == ((3, 96, 64) if tag >= 5 else (3, 64, 96)) == decode.shape(path)
    assert torch.equal(image, upright(Image.open(path)))
    assert image.stride() == (1, 3 * image.shape[2], 3)
    if by != "TIFF":  # Pillow turns those by itself
        as_stored = decode.Decoding(exif=False)
        assert decode.shape(path, as_stored) == (3, 64, 96)
        assert torch.equal(decode.pixels(path, 1, as_stored), by_pillow(path))


@pytest.mark.parametrize("by", ["simplejpeg", "Pillow", "PNG"])
@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("tag", range(1, 9))
def test_an_image_decoded_smaller_is_turned_likewise(tag, shrink, by, tmp_path, monkeypatch):
    if by == "Pillow":
        monkeypatch.setattr(decode, "simplejpeg", None)
    path = write(tmp_path / STORED[by], exif=tagged(tag))  # 75 x 101
    plain = write(tmp_path / f"plain {STORED[by]}")
    small = Image.fromarray(decode.pixels(plain, shrink).permute(1, 2, 0).numpy())
    small.info["exif"] = tagged(tag).tobytes()
    image = decode.pixels(path, shrink)
    assert torch.equal(image, upright(small))
    _, height, width = decode.shape(path)
    assert image.shape == (3, -(-height // shrink), -(-width // shrink))


def test_a_tag_after_the_pixels_is_followed_too(tmp_path):
    data = Path(write(tmp_path / "a.png", exif=tagged(6))).read_bytes()
    begin = data.index(b"eXIf") - 4
    end = begin + 12 + int.from_bytes(data[begin : begin + 4], "big")
    (tmp_path / "a.png").write_bytes(data[:begin] + data[end:-12] + data[begin:end] + data[-12:])
    path = str(tmp_path / "a.png")
    assert decode.pixels(path).shape == decode.shape(path) == (3, 101, 75)


@pytest.mark.parametrize("first", [b"II*\0", b"MM\0*"])
def test_tags_are_read_in_either_byte_order(first, tmp_path):
    order = "<" if first[:1] == b"I" else ">"
    entries = [(0x010F, 2, 4, 0), (0x0112, 3, 1, 8), (0x0128, 3, 1, 2)]
    block = first + struct.pack(f"{order}IH", 8, len(entries))
    block += b"".join(struct.pack(f"{order}HHIHxx", *entry) for entry in entries) + bytes(4)
    path = write(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    assert torch.equal(decode.pixels(path), upright(Image.open(path)))
    assert decode.shape(path) == (3, 101, 75)


def test_fill_bytes_before_the_tags_hide_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    data = Path(write(path, exif=tagged(6))).read_bytes()
    expected = decode.pixels(str(path))
    at = data.index(decode.APP1)
    path.write_bytes(data[:at] + b"\xff" * 3 + data[at:])
    assert torch.equal(decode.pixels(str(path)), expected)
    assert decode.shape(str(path)) == tuple(expected.shape) == (3, 101, 75)
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert torch.equal(decode.pixels(str(path)), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0", b"Exif\0\0nonsense", b"\xff"])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_damaged_tag_costs_no_image(name, exif, tmp_path):
    path = write(tmp_path / name, exif=exif)
    assert torch.equal(decode.pixels(path), by_pillow(path))


def test_a_tag_that_is_no_orientation_turns_nothing(tmp_path):
    for tag in (0, 9, 1000):
        path = write(tmp_path / "a.jpg", exif=tagged(tag))
        assert torch.equal(decode.pixels(path), by_pillow(path))


# ------------------------------------------------------------- transparency, deep and gray pixels


def png(bits, kind, row, clear):
    """A PNG of one row of two pixels, by hand: Pillow writes no such file."""

    def chunk(name, data):
        checksum = zlib.crc32(name + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + name + data + checksum

    header = bytes([0, 0, 0, 2, 0, 0, 0, 1, bits, kind, 0, 0, 0])
    chunks = {b"IHDR": header, b"tRNS": clear, b"IDAT": zlib.compress(b"\0" + row), b"IEND": b""}
    chunks = {name: data for name, data in chunks.items() if data or name == b"IEND"}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in chunks.items())


# Two pixels, one transparent and one black.
BY_HAND = {
    "1 bit": png(1, 0, b"\x80", b"\0\1"),
    "2 bits": png(2, 0, b"\xc0", b"\0\3"),
    "4 bits": png(4, 0, b"\x70", b"\0\7"),
    "8 bits": png(8, 0, b"\x77\0", b"\0\x77"),
    "16 bits": png(16, 0, b"\x77\x01\0\0", b"\x77\x01"),
    "16 bits, gray and alpha": png(16, 4, b"\x77\x01\0\0\0\0\xff\xff", b""),
    "16 bits, RGB": png(16, 2, b"\1\2\3\4\5\6" + bytes(6), b"\1\2\3\4\5\6"),
    "8 bits, RGB": png(8, 2, b"\1\2\3\0\0\0", b"\0\1\0\2\0\3"),
}


def two_pixels(mode, **options):
    """A transparent pixel beside a black one, in a mode that says so."""
    image = Image.new("RGBA", (2, 1))
    image.putpixel((1, 0), (0, 0, 0, 255))
    data = io.BytesIO()
    image = image.convert(mode) if mode != "P" else image.quantize()
    image.save(data, **options)
    return data.getvalue()


WRITTEN = {
    "RGBA PNG": two_pixels("RGBA", format="png"),
    "LA PNG": two_pixels("LA", format="png"),
    "palette PNG": two_pixels("P", format="png"),
    "RGBA WebP": two_pixels("RGBA", format="webp", lossless=True),
    "RGBA TIFF": two_pixels("RGBA", format="tiff"),
    "GIF": two_pixels("RGBA", format="gif"),
    "ICO": two_pixels("RGBA", format="ico", sizes=[(2, 1)]),
}


@pytest.mark.parametrize("kind", BY_HAND | WRITTEN)
def test_a_transparent_pixel_shows_the_background(kind, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes((BY_HAND | WRITTEN)[kind])
    expected = {255: [255] * 3, 0: [0] * 3, (9, 200, 30): [9, 200, 30]}
    for background, color in expected.items():
        image = decode.pixels(str(path), 1, decode.Decoding(background=background))
        assert image[:, 0].T.tolist() == [color, [0, 0, 0]]


def test_a_config_says_how_files_become_pixels(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").write_bytes(WRITTEN["RGBA PNG"])

    def first(**keys):
        block = {"type": "ImageFolder", "root": str(tmp_path), **keys}
        return bind(DATASETS, block)(split="train").fetch(torch.tensor([0]))[0]

    assert first().tolist() == [[[255, 0]]] * 3
    assert first(background=9, channels=1).tolist() == [[[9, 0]]]
    assert first(background=[9, 10, 11]).tolist() == [[[9, 0]], [[10, 0]], [[11, 0]]]
    for wrong, message in (
        ({"background": 256}, "background: out of range"),
        ({"background": [0, 0, -1]}, r"background\[2\]: out of range"),
        ({"background": [0, 0]}, "background: value of the wrong type"),
        ({"channels": 2}, "channels: not one of the choices"),
    ):
        with pytest.raises(ValueError, match=message):
            first(**wrong)


def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    path = write(tmp_path / "a.png")
    for error, expected in ((RuntimeError("torn"), decode.BadImage), (MemoryError(), MemoryError)):
        monkeypatch.setattr(decode, "opaque", Mock(side_effect=error))
        with pytest.raises(expected) as caught:
            decode.pixels(path)
        assert expected is MemoryError or f"{path}: cannot be decoded" in str(caught.value)


def test_what_is_half_transparent_is_half_of_each(tmp_path):
    Image.new("RGBA", (1, 1), (0, 100, 255, 51)).save(tmp_path / "a.png")
    image = decode.pixels(str(tmp_path / "a.png"), 1, decode.Decoding(background=200))
    assert image.flatten().tolist() == [160, 180, 211]  # 0.2 of the pixel, 0.8 of 200


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_alpha_that_hides_nothing_changes_nothing(mode, tmp_path):
    path = write(tmp_path / "a.png", mode)
    assert torch.equal(decode.pixels(path), by_pillow(path))


def test_icons_drawn_on_nothing_are_told_apart_by_their_pixels(tmp_path):
    shapes = {"disc": "ellipse", "square": "rectangle", "line": "line"}
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for name, draw in shapes.items():
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                icon = Image.new("RGBA", (32, 32))
                x, y = random.integers(3, 6, 2)
                getattr(ImageDraw.Draw(icon), draw)((x, y, x + 22, y + 22), "black")
                icon.save(tmp_path / split / name / f"{i}.png")
    train, test = (ImageFolder(split, root=str(tmp_path)) for split in ("train", "test"))
    bank, queries = (
        torch.stack(part.fetch(torch.arange(len(part)))).flatten(1).float()
        for part in (train, test)
    )
    nearest = torch.cdist(queries, bank).argmin(1)
    assert torch.equal(train.labels[nearest], test.labels)


LEVELS = np.array([[0, 128, 129, 300], [32767, 32768, 65406, 65535]], np.uint16)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big endian.tif", "a.pgm", "a.jp2"])
def test_gray_of_16_bits_is_scaled_to_8(name, tmp_path):
    if os.path.splitext(name)[1] not in decode.suffixes():
        pytest.skip("this Pillow does not read it")
    levels = LEVELS.astype(">u2") if name.startswith("big") else LEVELS
    Image.fromarray(levels).save(tmp_path / name)
    image = decode.pixels(str(tmp_path / name))
    expected = np.round(LEVELS / 257)
    assert image.shape == (3, 2, 4) and (image.numpy() == expected).all()


def tiff(bits, data):
    """Gray, one row of two pixels, by hand."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 1}
    tags[279] = len(data)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + data


def test_gray_of_12_bits_is_scaled_by_its_own_range(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(12, bytes([0x80, 0x0F, 0xFF])))  # 2048, 4095
    assert decode.pixels(str(tmp_path / "a.tif"))[0].tolist() == [[128, 255]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((2, 2), np.float32), "its pixels are floating-point numbers, expected 8 or 16"),
        (np.ones((2, 2), np.int32), "its pixels are integers of 32 bits, expected 8 or 16"),
    ],
)
def test_numbers_without_a_known_range_are_refused_by_name(values, message, tmp_path):
    Image.fromarray(values).save(tmp_path / "field.tif")
    with pytest.raises(decode.BadImage, match=rf"field\.tif: .*{message} bits a channel"):
        decode.pixels(str(tmp_path / "field.tif"))


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {}), ("gray.jpg", {"mode": "L"}), ("a.png", {}), ("cmyk.jpg", {"mode": "CMYK"})],
)
def test_one_channel_is_pillows_gray(name, options, tmp_path):
    path, gray = write(tmp_path / name, **options), decode.Decoding(channels=1)
    image = decode.pixels(path, 1, gray)
    expected = np.array(Image.open(path).convert("RGB").convert("L"))
    assert image.shape == decode.shape(path, gray) == (1, 75, 101)
    assert (image[0].numpy() == expected).all()
    assert decode.pixels(path, 2, gray).shape == (1, 38, 51)


def test_what_is_no_image_format_is_not_given_to_its_interpreter(tmp_path):
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(decode.BadImage, match="of no kind that is read here"):
        decode.pixels(str(tmp_path / "a.png"))


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
    monkeypatch.setattr(decode, "pixels", lambda path, k, how: asked.append(k) or real(path, k))
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


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("tag", range(2, 9))
def test_views_and_boxes_are_those_of_the_upright_image(tag, scaled, tmp_path):
    turn_away = decode.TURNS[{6: 8, 8: 6}.get(tag, tag)]
    for i in range(5):
        image = Image.fromarray(smooth(240 + 17 * i, 401 - 11 * i))
        for name, stored, exif in (
            ("plain", image, b""),
            ("turned", image.transpose(turn_away), tagged(tag)),
        ):
            (tmp_path / name / "train" / "a").mkdir(parents=True, exist_ok=True)
            stored.save(tmp_path / name / "train" / "a" / f"{i}.jpg", quality=95, exif=exif)
    plain, turned = (data_of(tmp_path / name, scaled=scaled) for name in ("plain", "turned"))
    index = torch.arange(5)
    assert torch.equal(plain.dataset.shapes(index), turned.dataset.shapes(index))
    samples = Samples(0, 0, index)
    if scaled:
        assert plain.views.shrink_factors(plain.dataset.shapes(index), samples).min() > 1
    sources = [Batches(x.dataset, x.views, x.sampler.successors, True) for x in (plain, turned)]
    listed = samples._replace(index=index.tolist())
    some, others = (next(on_device([of(listed)], of, "cpu")) for of in sources)
    for view in range(2):
        assert torch.equal(some.boxes[view], others.boxes[view])
        assert decibels(some.views[view], others.views[view]) > (25 if scaled else 38)


def test_the_lack_of_simplejpeg_is_said_where_there_are_jpegs(tmp_path, monkeypatch, recwarn):
    (tmp_path / "train" / "a").mkdir(parents=True)
    write(tmp_path / "train" / "a" / "1.png")
    monkeypatch.setattr(decode, "simplejpeg", None)
    ImageFolder("train", root=str(tmp_path))
    assert not recwarn.list
    write(tmp_path / "train" / "a" / "2.jpg")
    with pytest.warns(UserWarning, match="ImageFolder: Pillow decodes .* pip install simplejpeg"):
        ImageFolder("train", root=str(tmp_path))
