"""`ssl-zoo data compose`: a folder of scenes in a published layout."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_zoo.config import not_among
from ssl_zoo.transfer.scenes import parts
from ssl_zoo.transfer.scenes.layouts import LAYOUTS
from ssl_zoo.transfer.scenes.painting import Scene, paint

SHEET = "scenes.png"
COLUMNS, SHOWN = 6, 12  # scenes on the sheet
MOST = 100_000  # scenes


def compose_scenes(
    folder: str | os.PathLike,
    layout: str,
    *,
    train: int = 300,
    test: int = 100,
    size: tuple[int, int] = (320, 240),
    seed: int = 0,
    root: str | os.PathLike | None = None,
    shown: Callable[[Iterable, str, int], Iterable] = lambda items, what, count: items,
) -> Path:
    """Writes scenes to a folder that is not there yet, and scenes.png to look at; returns it.

    No stamp, photograph or texture is in both splits.

    Args:
        layout: one of LAYOUTS.
        train, test: how many scenes.
        size: pixels, width and height.
        root: of the parts, see `parts.find`.
        shown: shows the progress of (an iterable, of what, of how many items).

    Raises:
        ValueError: a number out of range, or the folder holds something.
        FileNotFoundError: the parts are not there.
    """
    if layout not in LAYOUTS:
        raise not_among("layout", "no layout of this name", layout, LAYOUTS)
    counts = {"train": train, "test": test}
    for name, count in counts.items():
        if not 1 <= count <= MOST:
            raise ValueError(f"{name}: found {count} scenes, expected 1 to {MOST}")
    if min(size) < 32:
        raise ValueError(f"size: found {size[0]} x {size[1]} pixels, expected at least 32")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: is not empty; name a new folder")
    splits = parts.find(root)
    written = LAYOUTS[layout](folder, list(splits["train"].stamps))
    samples = []
    for split, count in counts.items():
        for number in shown(range(count), f"{split} scenes", count):
            scene = paint(splits[split], size, seed, split, number)
            written.add(split, number, scene)
            if number < SHOWN // 2:
                samples.append(scene)
    written.close()
    contact_sheet(samples).save(folder / SHEET)
    return folder


def contact_sheet(scenes: list[Scene]) -> Image.Image:
    """Scenes in rows, each above what covers it: an object a color, the background gray."""
    pairs = [np.concatenate([scene.image, _colored(scene)]) for scene in scenes]
    rows = [pairs[i : i + COLUMNS] for i in range(0, len(pairs), COLUMNS)]
    blank = np.zeros_like(pairs[0])
    full = [np.concatenate([*row, *[blank] * (COLUMNS - len(row))], axis=1) for row in rows]
    return Image.fromarray(np.concatenate(full))


def _colored(scene: Scene) -> np.ndarray:
    """uint8 [H, W, 3]."""
    image = np.full_like(scene.image, 64)
    for i, mask in enumerate(scene.masks):
        image[mask] = [(97 * (i + 1)) % 192 + 63, (57 * (i + 3)) % 192 + 63, (151 * i) % 192 + 63]
    return image
