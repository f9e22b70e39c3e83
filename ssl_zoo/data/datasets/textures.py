"""Textures of three free games: many classes in color, from Debian packages."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from ssl_zoo.config import DATASETS, ConfigError, OfMachine
from ssl_zoo.data import debian
from ssl_zoo.data.source import InMemory, Split, check_split, roots
from ssl_zoo.system.files import sha256
from ssl_zoo.system.text import show

LIST = Path(__file__).with_name("textures.yaml")
SIDE, TILES = 256, 8  # pixels of a texture's side, and tiles along it
Package = Literal["ufoai", "openarena", "nexuiz"]
DEFAULT: list[Package] = ["ufoai", "openarena"]
# Whence: the archive of textures in each, a .pk3, which is a zip of PNG and JPEG.
DEBIAN = {
    "ufoai": debian.Package(
        name="ufoai-textures",
        file="usr/share/games/ufoai/base/0textures.pk3",
        pool="pool/main/u/ufoai-maps/ufoai-textures_2.5-2_all.deb",
        sha256="51c9c6a778249a3fa432c81c8c30ac5675ae5a1e675a33b0ce04545753d3218c",
        megabytes=336,
    ),
    "openarena": debian.Package(
        name="openarena-081-textures",
        file="usr/share/games/openarena/baseoa/pak4-textures.pk3",
        pool="pool/main/o/openarena-textures/openarena-081-textures_0.8.5split-14_all.deb",
        sha256="72bf05abd5286a1523b56ca04e25bceb775813d747f92ecd20749d512361a81f",
        megabytes=94,
    ),
    "nexuiz": debian.Package(
        name="nexuiz-textures",
        file="usr/share/games/nexuiz/data/textures.pk3",
        pool="pool/main/n/nexuiz-data/nexuiz-textures_2.5.2-12_all.deb",
        sha256="d1ebefbcc7c730f9b68c286f11d3430906c111a99e0c3ec60ad25a32de175510",
        megabytes=456,
    ),
}
# Columns of tiles that train, and that test.
COLUMNS = {"choose": (range(5), range(5, 6)), "verdict": (range(6), range(6, 8))}
# What reading a damaged zip raises.
DAMAGED = (ValueError, KeyError, OSError, EOFError, RuntimeError)
DAMAGED += (zipfile.BadZipFile, zlib.error, struct.error)


class ColorStatistics(nn.Module):
    """Mean and standard deviation of each channel: all that color alone tells, [n, 2 C]."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)


@DATASETS.register_module()
class Textures(InMemory):
    """Tiles of 32 x 32 from the textures of three free games; a class is a texture.

    A texture of 256 x 256 is cut into 8 x 8 tiles that share no pixel, and columns of tiles make
    the splits: six train and two test. `ssl-zoo data get textures` obtains it. What it is good for
    and where it is weak: docs/data.md.

    Args:
        root: the folder of textures/. None: $SSL_ZOO_DATA, then ./data.
        packages: ufoai (592 classes), openarena (215), nexuiz (309); together 71,424 tiles.
        stage: choose: column 6 tests and the five before it train, while anything is being chosen;
            verdict: columns 7 and 8 test, which no choice has looked at.
    """

    baselines: ClassVar = {"color statistics": ColorStatistics}

    def __init__(
        self,
        split: Split,
        *,
        root: OfMachine[str | None] = None,
        packages: list[Package] = DEFAULT,
        stage: Literal["choose", "verdict"] = "verdict",
    ):
        split = check_split(split)
        pixels = np.concatenate([load(package, roots(root)) for package in packages])
        columns = COLUMNS[stage][split == "test"]
        tile = SIDE // TILES
        tiles = torch.from_numpy(pixels).view(-1, TILES, tile, TILES, tile, 3)[:, :, :, columns]
        tiles = tiles.permute(0, 1, 3, 5, 2, 4).flatten(0, 2)  # [n, 3, tile, tile]
        labels = torch.arange(len(pixels)).repeat_interleave(TILES * len(columns))
        super().__init__(tiles, labels, len(pixels), split)

    @staticmethod
    def validate(*, packages: list, **_) -> None:
        if not packages or len(set(packages)) < len(packages):
            problem, expected = "no package, or a repeat", "each of them at most once"
            raise ConfigError("packages", problem, found=repr(packages), expected=expected)


@cache
def listed() -> dict[str, dict]:
    """Package -> the sha256 of its archive, and the names in it that are classes, in order."""
    return yaml.safe_load(LIST.read_text(encoding="utf-8"))


def load(package: str, folders: Iterable[Path]) -> np.ndarray:
    """uint8 [classes, 256, 256, 3] of a package, from the first folder that has it.

    Raises:
        FileNotFoundError: none has.
        ValueError: the file is damaged, or of another list of textures.
    """
    paths = [folder / "textures" / f"{package}.npz" for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    command = f"`ssl-zoo data get textures --packages {package}`"
    if path is None:
        raise FileNotFoundError(
            f"Textures: {package} was not found in {', '.join(map(str, paths))}; get it with "
            f"{command}, or name the folder of textures/ in data.dataset.root"
        )
    again = f"delete it and run {command}"
    with open(path, "rb") as file:
        try:
            # Checksums first: what numpy makes of a damaged header can be any exception.
            with zipfile.ZipFile(file) as members:
                if wrong := members.testzip():
                    raise ValueError(f"{wrong} has another checksum")
            file.seek(0)
            with np.load(file, allow_pickle=False) as members:
                pixels, names = members["pixels"], members["names"].tolist()
        except DAMAGED as error:
            raise ValueError(f"{path}: damaged ({error}); {again}") from error
    expected = (len(names), SIDE, SIDE, 3)
    if names != listed()[package]["textures"] or pixels.shape != expected:
        raise ValueError(f"{path}: holds {len(names)} textures of another list; {again}")
    return pixels


def square(image: Image.Image) -> np.ndarray:
    """The middle of an image, uint8 [256, 256, 3]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box))


def build(package: str, archive: Path, path: Path, log: Callable = show) -> None:
    """Writes what `load` reads, from the game's archive of textures (a .pk3).

    Raises:
        ValueError: the archive is not the one that the list was made from.
    """
    names, expected = listed()[package]["textures"], listed()[package]["sha256"]
    found = sha256(archive)
    if found != expected:
        raise ValueError(f"{archive}: found sha256 {found}, expected {expected}")
    pixels = np.empty((len(names), SIDE, SIDE, 3), np.uint8)
    with zipfile.ZipFile(archive) as files:
        for number, name in enumerate(names, start=1):
            pixels[number - 1] = square(Image.open(io.BytesIO(files.read(name))))
            if number % 200 == 0 or number == len(names):
                log(f"  {package}: {number} of {len(names)} textures")
    with open(path, "wb") as file:
        np.savez(file, pixels=pixels, names=np.array(names))
        file.flush()
        os.fsync(file.fileno())
