"""Contact sheets: rows of pictures with a line or two below each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ssl_zoo.data.image import decode
from ssl_zoo.data.image.decode import BadImage
from ssl_zoo.system.files import replacing
from ssl_zoo.system.text import one_line

SIDE, GAP, LINE, FONT = 160, 8, 15, 12  # pixels
LINES = 2
INK, PAPER, EMPTY = (20, 20, 20), (255, 255, 255), (210, 210, 210)


class Picture(NamedTuple):
    path: Path | None  # None: none is shown
    caption: tuple[str, ...]  # lines


def write_sheet(rows: Sequence[Sequence[Picture]], out: Path) -> None:
    """A PNG of rows of pictures, each within a square; gray where one cannot be read."""
    across, cell = max(map(len, rows)), (SIDE + GAP, SIDE + LINES * LINE + GAP)
    sheet = Image.new("RGB", (GAP + across * cell[0], GAP + len(rows) * cell[1]), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            left, top = GAP + j * cell[0], GAP + i * cell[1]
            if picture.path is not None:
                small = thumbnail(picture.path)
                room = SIDE - small.width, SIDE - small.height
                sheet.paste(small, (left + room[0] // 2, top + room[1] // 2))
            for number, text in enumerate(picture.caption[:LINES]):
                at = left, top + SIDE + number * LINE
                draw.text(at, _fitted(one_line(text), font), INK, font)
    with replacing(out) as staged:
        sheet.save(staged, "PNG")


def thumbnail(path: Path) -> Image.Image:
    """An image within SIDE x SIDE pixels, never enlarged past its own."""
    try:
        pixels = decode.pixels(str(path))  # [3, H, W]
    except BadImage:
        return Image.new("RGB", (SIDE, SIDE), EMPTY)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((SIDE, SIDE))
    return image


def _fitted(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, or its end, which tells files apart, where it is wider than a picture."""
    if font.getlength(text) <= SIDE:
        return text
    while text and font.getlength(f"…{text}") > SIDE:
        text = text[1:]
    return f"…{text}"
