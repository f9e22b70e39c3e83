"""Image files to pixels: simplejpeg for JPEGs, Pillow for everything else.

Both give libjpeg-turbo's bytes, one faster. A file that cannot be decoded is a `BadImage`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

SIMPLEJPEG_SPACES = ("YCbCr", "Gray", "RGB")  # CMYK needs Pillow's conversion
MANY_PIXELS = 80_000_000  # whether such a file is decoded or refused as a bomb is Pillow's decision


class BadImage(ValueError):
    """A file that is no image, or not a whole one; its `path` travels between processes too."""

    def __init__(self, message: str, path: str = ""):
        super().__init__(message)
        self.path = path


def pixels(path: str, shrink: int = 1) -> Tensor:
    """An image file as RGB, uint8 [3, H, W]; its memory is that of [H, W, 3], which crops fastest.

    With shrink 2, 4 or 8 [3, ceil(H / shrink), ceil(W / shrink)] instead, averages over blocks
    that a JPEG gives for less work. Orientation tags (EXIF) are not applied.
    """
    with _naming(path):
        data = Path(path).read_bytes()
        pixels = _by_simplejpeg(data, shrink)  # [H, W, 3]
        pixels = _by_pillow(data, shrink) if pixels is None else pixels
    return torch.from_numpy(pixels).permute(2, 0, 1)


def shape(path: str) -> tuple[int, int, int]:
    """(3, H, W) of an image file, from its header."""
    with _naming(path), Image.open(path) as image:
        return 3, image.height, image.width


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Raises BadImage, with the file's name, for whatever an undecodable file raises inside."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"{path}: cannot be decoded as an image ({error})", path) from error


def _by_simplejpeg(data: bytes, shrink: int) -> np.ndarray | None:
    """[H, W, 3], or None for what is Pillow's: other formats, CMYK, what is damaged."""
    if simplejpeg is None or not data.startswith(b"\xff\xd8"):
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


def _by_pillow(data: bytes, shrink: int) -> np.ndarray:
    """[H, W, 3]."""
    with Image.open(BytesIO(data)) as image:
        if image.mode[0] in "IF":  # Pillow would clip these, not scale them
            raise ValueError(f"its mode is {image.mode}, expected 8 bits a channel")
        if shrink == 1:
            return np.array(image.convert("RGB"))
        whole = image.size
        image.draft(image.mode, (image.width // shrink, image.height // shrink))  # JPEGs alone
        scaled = image.convert("RGB")
        return np.array(scaled.reduce(shrink) if scaled.size == whole else scaled)
