"""Textures of three free games: many classes in color, from Debian packages."""

import hashlib
import io
import zipfile
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
from ssl_zoo.data.source import InMemory, Split, check_split, roots
from ssl_zoo.system.files import replacing

LIST = Path(__file__).with_name("textures.yaml")
SIDE, TILES = 256, 8  # pixels of a texture's side, and tiles along it
Package = Literal["ufoai", "openarena", "nexuiz"]
# Columns of tiles that train, and that test.
COLUMNS = {"choose": (range(5), range(5, 6)), "verdict": (range(6), range(6, 8))}


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
        packages: list[Package] = ["ufoai", "openarena"],  # noqa: B006
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
    if path is None:
        raise FileNotFoundError(
            f"Textures: {package} was not found in {', '.join(map(str, paths))}; get it with "
            f"`ssl-zoo data get textures`, or name the folder of textures/ in data.dataset.root"
        )
    again = "delete it and run `ssl-zoo data get textures`"
    try:
        with np.load(path, allow_pickle=False) as file:
            pixels, names = file["pixels"], file["names"].tolist()
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged ({error}); {again}") from error
    if names != listed()[package]["textures"] or pixels.shape != (len(names), SIDE, SIDE, 3):
        raise ValueError(f"{path}: holds {len(names)} textures of another list; {again}")
    return pixels


def square(image: Image.Image) -> np.ndarray:
    """The middle of an image, uint8 [256, 256, 3]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box))


def build(package: str, archive: Path, path: Path, log: Callable = print) -> None:
    """Writes what `load` reads, from the game's archive of textures (a .pk3).

    Raises:
        ValueError: the archive is not the one that the list was made from.
    """
    with open(archive, "rb") as file:
        found, expected = hashlib.file_digest(file, "sha256").hexdigest(), listed()[package]
    if found != expected["sha256"]:
        raise ValueError(f"{archive}: sha256 {found}, expected {expected['sha256']}")
    names = expected["textures"]
    pixels = np.empty((len(names), SIDE, SIDE, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as files:
        for number, name in enumerate(names):
            pixels[number] = square(Image.open(io.BytesIO(files.read(name))))
            if number % 200 == 199:
                log(f"  {package}: {number + 1} of {len(names)} textures")
    with replacing(path) as staged, open(staged, "wb") as file:
        np.savez(file, pixels=pixels, names=np.array(names))
    log(f"{path}: {len(names)} textures, {path.stat().st_size / 1e6:.0f} MB")
