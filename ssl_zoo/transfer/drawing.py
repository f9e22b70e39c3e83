"""Pictures with what was found on them, beside what is annotated."""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ssl_zoo.system.files import replacing
from ssl_zoo.system.text import one_line
from ssl_zoo.transfer.judging import SURE
from ssl_zoo.transfer.source import IGNORED, Target

WIDTH, GAP, LINE, FONT = 320, 6, 16, 12  # pixels
INK, PAPER = (20, 20, 20), (255, 255, 255)
SHOWN = 20  # objects of a picture
GOLDEN = 0.618  # of a circle of hues, from one class to the next
COVER = 0.5  # of a mask's color over the picture


class Drawn(NamedTuple):
    """A picture that is shown.

    Attributes:
        image: uint8 [3, H, W].
        found, truth: a model's output and a target, or two maps.
    """

    caption: str
    image: Tensor
    found: Any
    truth: Any


def draw(best: Sequence[Drawn], worst: Sequence[Drawn], classes: Sequence[str], path: Path) -> None:
    """A PNG of two columns; of each picture what was found, and right of it what is annotated."""
    columns = [[_pair(row, classes) for row in rows] for rows in (best, worst) if rows]
    heights = [sum(pair.height + GAP for pair in column) for column in columns]
    wide = 2 * (WIDTH + GAP) + GAP
    sheet = Image.new("RGB", (GAP + wide * len(columns), GAP + max(heights)), PAPER)
    for number, column in enumerate(columns):
        top = GAP
        for pair in column:
            sheet.paste(pair, (GAP + wide * number, top))
            top += pair.height + GAP
    with replacing(path) as staged:
        sheet.save(staged, "PNG")


def _pair(row: Drawn, classes: Sequence[str]) -> Image.Image:
    """Both, below the caption."""
    cells = [_cell(row.image, of, classes) for of in (sure(row.found), row.truth)]
    pair = Image.new("RGB", (2 * WIDTH + GAP, LINE + cells[0].height), PAPER)
    text = one_line(f"{row.caption}; found, and annotated")
    ImageDraw.Draw(pair).text((0, 0), text, INK, ImageFont.load_default(FONT))
    for number, cell in enumerate(cells):
        pair.paste(cell, (number * (WIDTH + GAP), LINE))
    return pair


def sure(output: Target | Tensor) -> Target | Tensor:
    """The detections that are shown, the surest first; a map as it is."""
    if isinstance(output, Tensor):
        return output
    order = output["scores"].argsort(descending=True)
    order = order[output["scores"][order] >= SURE][:SHOWN]
    return {name: x[order] for name, x in output.items() if isinstance(x, Tensor)}


def color_of(number: int) -> tuple[int, int, int]:
    """Of a class: bright, and far from its neighbors'."""
    rgb = hsv_to_rgb(number * GOLDEN % 1, 1, 1)
    return tuple(round(255 * part) for part in rgb)


def _cell(image: Tensor, of: Target | Tensor, classes: Sequence[str]) -> Image.Image:
    pixels = image.permute(1, 2, 0).numpy().copy()  # [H, W, 3]
    if isinstance(of, Tensor):
        _cover_map(pixels, of.numpy())
    elif "masks" in of:
        for mask, label in zip(of["masks"], of["labels"].tolist(), strict=True):
            _cover(pixels, mask.bool().numpy(), color_of(label))
    scale = WIDTH / pixels.shape[1]
    cell = Image.fromarray(pixels).resize((WIDTH, max(1, round(pixels.shape[0] * scale))))
    if not isinstance(of, Tensor):
        _draw_objects(ImageDraw.Draw(cell), of, classes, scale)
    return cell


def _cover_map(pixels: np.ndarray, labels: np.ndarray) -> None:
    for number in np.unique(labels):
        if number != IGNORED:
            _cover(pixels, labels == number, color_of(int(number)))


def _cover(pixels: np.ndarray, inside: np.ndarray, of: tuple[int, int, int]) -> None:
    pixels[inside] = (1 - COVER) * pixels[inside] + COVER * np.array(of)


def _draw_objects(
    pen: ImageDraw.ImageDraw, of: Target, classes: Sequence[str], scale: float
) -> None:
    font = ImageFont.load_default(FONT)
    boxes, scores = (scale * of["boxes"]).tolist(), of.get("scores")
    for i, (box, label) in enumerate(zip(boxes, of["labels"].tolist(), strict=True)):
        ink = color_of(label)
        x0, y0, x1, y1 = box
        pen.rectangle([x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)], outline=ink, width=2)
        said = "" if scores is None else f" {scores[i]:.2f}"
        name = one_line(classes[label - 1]) + said
        pen.text((x0 + 3, y0 + 1), name, PAPER, font, stroke_width=1, stroke_fill=INK)
        for x, y, there in of["keypoints"][i].tolist() if "keypoints" in of else ():
            if there > 0:
                x, y = scale * (x + 0.5), scale * (y + 0.5)
                pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=ink)


def best_and_worst(qualities: Sequence[float | None], count: int) -> tuple[list[int], list[int]]:
    """Positions of so many pictures that are done best, and of the worst, none in both."""
    known = torch.tensor([i for i, q in enumerate(qualities) if q is not None], dtype=torch.int64)
    values = torch.tensor([qualities[i] for i in known.tolist()])
    order = known[values.argsort(descending=True, stable=True)].tolist()
    best = order[: min(count, (len(order) + 1) // 2)]
    return best, order[len(best) :][: -count - 1 : -1]
