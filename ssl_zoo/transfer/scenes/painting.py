"""A scene: stamps over a background, with what each of them covers.

Every number is a hash of (seed, split, scene, what for), and arithmetic on pixels is Pillow's own
or on integers, so a scene is the same wherever Pillow is.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from ssl_zoo.system import rng
from ssl_zoo.transfer.scenes.parts import Parts

MOST = 8  # objects in a scene
TRIES = 8  # places for one object
SIDE = (0.15, 0.6)  # of an object, its longer one, of the scene's shorter one
ENLARGED = 2  # times a stamp's own size, at most
TURN = 25  # degrees, either way
LEAST_SEEN = 0.4  # of an object, that neither others nor the border hide
LEAST_PIXELS = 60  # of it
SHADOW = 0.35  # of the light

Draw = Callable[..., float]  # what a number is for -> the number, in [0, 1)


class Scene(NamedTuple):
    """A composed picture.

    Attributes:
        image: uint8 [H, W, 3].
        masks: what is seen of each object, bool [n, H, W]; no pixel is in two.
        labels: [n], from 1 on.
        whole: how much of each is seen, [n] in (0, 1]: of what it covers, beyond the border too.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: list[int]
    whole: list[float]


def paint(parts: Parts, size: tuple[int, int], seed: int, split: str, number: int) -> Scene:
    """A scene of (width, height) pixels out of a split's parts; its number names it."""
    keys = ("scene", seed, split, number)
    uniform = partial(_uniform, *keys)
    canvas = _background(parts, size, uniform)
    width, height = size
    categories = list(parts.stamps)
    masks, labels, areas = [], [], []
    for i in range(1 + int(uniform("objects") * MOST)):
        of = partial(uniform, "object", i)
        label = int(of("category") * len(categories))
        stamps = parts.stamps[categories[label]]
        stamp = _stamp(stamps[int(of("stamp") * len(stamps))], min(size), of)
        area = int(_covers(stamp).sum())
        for attempt in range(TRIES):
            left = round(of("x", attempt) * width - stamp.width / 2)
            top = round(of("y", attempt) * height - stamp.height / 2)
            layer = Image.new("RGBA", size)
            layer.paste(stamp, (left, top))
            cover = _covers(layer)
            left_over = [mask & ~cover for mask in masks]
            seen = zip([*left_over, cover], [*areas, area], strict=True)
            if all(_is_seen(mask, whole) for mask, whole in seen):
                canvas = Image.alpha_composite(_shaded(canvas, layer, of), layer)
                masks = [*left_over, cover]
                labels.append(label + 1)
                areas.append(area)
                break
    image = _lit(canvas.convert("RGB"), uniform)
    whole = [int(mask.sum()) / area for mask, area in zip(masks, areas, strict=True)]
    none = np.zeros((0, height, width), bool)
    return Scene(np.asarray(image), np.stack(masks) if masks else none, labels, whole)


def _uniform(*keys: int | str) -> float:
    return float(rng.uniform(*keys))


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _background(parts: Parts, size: tuple[int, int], uniform: Draw) -> Image.Image:
    """A part of a photograph, or a texture, repeated; RGBA."""
    width, height = size
    if uniform("kind") < 0.5:
        path = parts.photographs[int(uniform("photograph") * len(parts.photographs))]
        image = _photograph(path, 4 * width, 4 * height)
        share = _between(0.4, 1.0, uniform("share"))
        scale = share * min(image.width / width, image.height / height)
        part = round(width * scale), round(height * scale)
        left = round(uniform("left") * (image.width - part[0]))
        top = round(uniform("top") * (image.height - part[1]))
        box = (left, top, left + part[0], top + part[1])
        image = image.resize(size, Image.Resampling.LANCZOS, box=box)
    else:
        texture = parts.textures[int(uniform("texture") * len(parts.textures))]
        side = round(_between(0.4, 1.0, uniform("share")) * max(size))
        tile = Image.fromarray(texture).resize((side, side), Image.Resampling.LANCZOS)
        image = Image.new("RGB", size)
        start = [-round(uniform(name) * side) for name in ("left", "top")]
        for left in range(start[0], width, side):
            for top in range(start[1], height, side):
                image.paste(tile, (left, top))
    if uniform("mirror") < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.convert("RGBA")


@cache
def _photograph(path: Path, width: int, height: int) -> Image.Image:
    """RGB, at least that large if the file is; kept, since decoding is most of the work."""
    with Image.open(path) as image:
        image.draft("RGB", (width, height))
        return image.convert("RGB")


@cache
def _cut_out(path: Path, most: int) -> Image.Image:
    """A stamp without its empty border, RGBA, its longer side at most that; kept as well."""
    with Image.open(path) as image:
        image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return image


def _stamp(path: Path, shorter: int, of: Draw) -> Image.Image:
    """An object as it will be pasted, RGBA: scaled, mirrored, turned, in a light of its own."""
    low, high = SIDE
    image = _cut_out(path, round(2 * high * shorter))
    side = shorter * _between(low, high, of("side") ** 2)  # small ones are more frequent
    scale = min(side / max(image.size), ENLARGED)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    if of("mirror") < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turn = round(_between(-TURN, TURN, of("turn")))
    image = image.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    gains = [
        round(256 * _between(0.75, 1.2, of("light")) * _between(0.94, 1.06, of(c))) for c in "rgb"
    ]
    table = [min(255, value * gain >> 8) for gain in gains for value in range(256)]
    return image.point([*table, *range(256)])


def _covers(layer: Image.Image) -> np.ndarray:
    """Where it hides what is behind it, bool [H, W]."""
    return np.asarray(layer.getchannel("A")) >= 128


def _is_seen(mask: np.ndarray, whole: int) -> bool:
    return mask.sum() >= max(LEAST_PIXELS, LEAST_SEEN * whole)


def _shaded(canvas: Image.Image, layer: Image.Image, of: Draw) -> Image.Image:
    """The canvas with a soft shadow of the layer on it."""
    shift = max(2, min(canvas.size) // 40)
    alpha = layer.getchannel("A").filter(ImageFilter.GaussianBlur(shift))
    moved = Image.new("L", canvas.size)
    moved.paste(alpha, (round(_between(-shift, shift, of("shadow"))), shift))
    shadow = Image.new("RGBA", canvas.size)
    shadow.putalpha(moved.point([round(SHADOW * value) for value in range(256)]))
    return Image.alpha_composite(canvas, shadow)


def _lit(image: Image.Image, uniform: Draw) -> Image.Image:
    """Under a light that changes from corner to corner."""
    corners = [round(_between(150, 255, uniform("corner", i))) for i in range(4)]
    light = Image.new("L", (2, 2))
    light.putdata(corners)
    light = light.resize(image.size, Image.Resampling.BILINEAR)
    return ImageChops.multiply(image, Image.merge("RGB", [light] * 3))
