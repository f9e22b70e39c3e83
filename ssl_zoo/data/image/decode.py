"""Image files to pixels: simplejpeg for JPEGs, Pillow for everything else.

Both give libjpeg-turbo's bytes, one faster. A file that cannot be decoded is a `BadImage`.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from ssl_zoo.config.constraints import Range
from ssl_zoo.system.text import one_line

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# Pillow's names of the formats that sets of images are made of. It opens more: documents, films,
# fields of numbers.
KINDS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA", "DIB")
KINDS += ("ICO", "PCX", "DDS", "QOI")
SIMPLEJPEG_SPACES = ("YCbCr", "Gray", "RGB")  # CMYK needs Pillow's conversion
# How a JPEG begins; what EXIF stands in; where pixels begin; what may stand before any of them.
JPEG, APP1, SOS, FILL = b"\xff\xd8", b"\xff\xe1", b"\xff\xda", b"\xff\xff"
MANY_PIXELS = 80_000_000  # whether such a file is decoded or refused as a bomb is Pillow's decision
# What turns an image upright, by its orientation tag. From 5 on height and width change places.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# How much less a PNG's transparent level counts in the file than among Pillow's levels of gray.
GRAY_STEPS = {"L;2": 85, "L;4": 17}

Byte = Annotated[int, Range(0, 255)]
Color = Byte | tuple[Byte, Byte, Byte]  # a level of gray, or red, green, blue


class Decoding(NamedTuple):
    """What of a file becomes pixels.

    Attributes:
        channels: 3: RGB; 1: gray, as Pillow's mode L.
        exif: turn images upright, as EXIF's orientation tag says. Pillow turns a TIFF in any case.
        background: what shows where an image is transparent; 255 is white.
    """

    channels: Literal[1, 3] = 3
    exif: bool = True
    background: Color = 255


AS_USUAL = Decoding()


class BadImage(ValueError):
    """A file that is no image, or not a whole one; its `path` travels between processes too."""

    def __init__(self, message: str, path: str = ""):
        super().__init__(message)
        self.path = path


@cache
def suffixes() -> dict[str, str]:
    """What a file's name may end in, in lower case, to be taken for an image, and its format."""
    Image.init()
    known = Image.registered_extensions().items()
    return {name: kind for name, kind in known if kind in KINDS and kind in Image.OPEN}


@cache
def formats() -> list[str]:
    """Those of `KINDS` that this Pillow opens."""
    return [kind for kind in KINDS if kind in suffixes().values()]


def pixels(path: str, shrink: int = 1, how: Decoding = AS_USUAL) -> Tensor:
    """The first image of a file, uint8 [C, H, W]; its memory is [H, W, C], which crops fastest.

    With shrink 2, 4 or 8 [C, ceil(H / shrink), ceil(W / shrink)] instead, averages over blocks
    that a JPEG gives for less work; they begin at the stored image's top left corner, wherever
    that comes to lie.

    Levels of 16 bits, 0-65535, become 0-255: gray ones rounded, colors cut off, as Pillow does.

    Raises:
        BadImage: no image, not a whole one, floating-point numbers or integers of 32 bits.
    """
    with _naming(path):
        data = Path(path).read_bytes()
        rgb, info = _by_simplejpeg(data, shrink), {}  # [H, W, 3]
        if rgb is None:
            rgb, info = _by_pillow(data, shrink, how.background)
        turn = TURNS.get(_orientation(_exif(data, info))) if how.exif else None
        if turn is not None:
            rgb = np.array(Image.fromarray(rgb).transpose(turn))
        if how.channels == 1:
            rgb = np.array(Image.fromarray(rgb).convert("L"))[:, :, None]
    return torch.from_numpy(rgb).permute(2, 0, 1)


def shape(path: str, how: Decoding = AS_USUAL) -> tuple[int, int, int]:
    """(C, H, W) of an image file, from its header."""
    with _naming(path):
        data = Path(path).read_bytes()
        with _opened(data) as image:
            if image.format == "PNG" and "exif" not in image.info and b"eXIf" in data:
                image.load()  # the tags come after the pixels
            width, height = image.size
            turned = how.exif and _orientation(_exif(data, image.info)) in range(5, 9)
    return how.channels, *((width, height) if turned else (height, width))


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Raises BadImage, with the file's name, for whatever an undecodable file raises inside."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow has no one kind for files that are not what they should be
        # Pillow's own words for what it does not know name an object in memory.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no kind that is read here" if unknown else error
        problem = f"cannot be decoded as an image ({reason})"
        raise BadImage(f"{one_line(path)}: {problem}", path) from error


def _opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data), formats=formats())


def _by_simplejpeg(data: bytes, shrink: int) -> np.ndarray | None:
    """[H, W, 3], or None for what is Pillow's: other formats, CMYK, what is damaged."""
    if simplejpeg is None or not data.startswith(JPEG):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in SIMPLEJPEG_SPACES or height * width > MANY_PIXELS:
            return None
        return simplejpeg.decode_jpeg(
            data, min_height=-(-height // shrink), min_width=-(-width // shrink), min_factor=shrink
        )
    except ValueError:
        return None


def _by_pillow(data: bytes, shrink: int, background: Color) -> tuple[np.ndarray, dict]:
    """[H, W, 3], and what else Pillow has read."""
    with _opened(data) as image:
        whole = image.size
        if shrink > 1:
            image.draft(image.mode, (image.width // shrink, image.height // shrink))  # JPEGs alone
        rgb = opaque(image, background)
        rgb = rgb.reduce(shrink) if shrink > 1 and rgb.size == whole else rgb
        return np.array(rgb), image.info


def opaque(image: Image.Image, background: Color) -> Image.Image:
    """An image of any mode in RGB, transparent parts over the background.

    ValueError: floating-point numbers or integers of 32 bits.
    """
    stored = image.tile[0][3] if image.format == "PNG" and image.tile else ""
    steps = GRAY_STEPS.get(stored, 1)
    image.load()
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = _in_8_bits(image)
    elif image.mode[0] in "IF":
        kind = "floating-point numbers" if image.mode[0] == "F" else "integers of 32 bits"
        raise ValueError(f"its pixels are {kind}, expected 8 or 16 bits a channel")
    elif steps > 1 and clear is not None and clear < 16:  # as it stands in the file
        image.info["transparency"] = clear * steps
    elif stored == "RGB;16B" and clear is not None:  # of 16 bits, where Pillow keeps the upper 8
        image.info["transparency"] = tuple(level >> 8 for level in clear)
    if not image.has_transparency_data:
        return image.convert("RGB")
    color = (background,) * 3 if isinstance(background, int) else tuple(background)
    behind = Image.new("RGBA", image.size, (*color, 255))
    return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Gray levels of 16 bits (in a TIFF perhaps 12) in mode L, or LA where one is transparent."""
    levels = np.asarray(image).astype(np.int64)  # [H, W]
    bits = image.tag_v2[258][0] if image.format == "TIFF" else 16
    most = 2**bits - 1
    gray = Image.fromarray(((2 * 255 * levels + most) // (2 * most)).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        gray.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    return gray


def _exif(data: bytes, info: dict) -> bytes:
    """A file's block of EXIF, b'' if it has none; not every JPEG has been opened by Pillow."""
    if not data.startswith(JPEG):
        return info.get("exif", b"")
    at = len(JPEG)
    while data[at : at + 2] not in (SOS, b""):
        if data[at : at + 2] == FILL:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at : at + 2] == APP1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 4 : end]
        at = end
    return b""


def _orientation(exif: bytes) -> int:
    """The orientation tag of a block of EXIF; 1, upright, if it has none or cannot be read.

    To ask Pillow takes a third of the time in which a small JPEG is decoded.
    """
    start = 6 if exif.startswith(b"Exif\0\0") else 0
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[start : start + 4])
    if order is None:
        return 1
    try:
        at = start + struct.unpack_from(f"{order}I", exif, start + 4)[0]
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for place in range(at + 2, at + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
            if tag == ExifTags.Base.Orientation:
                return value
    except struct.error:  # cut short
        pass
    return 1
