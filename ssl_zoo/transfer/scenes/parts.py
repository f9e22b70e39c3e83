"""What scenes are composed of, out of Debian packages: stamps with alpha, photographs, textures."""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from ssl_zoo.data import debian, fetch
from ssl_zoo.data.datasets import textures
from ssl_zoo.data.source import roots

NAME = "scene_parts"
LIST = Path(__file__).with_name("parts.yaml")
DEBIAN = {
    "tuxpaint-stamps-default": debian.Package(
        name="tuxpaint-stamps-default",
        file="usr/share/tuxpaint/stamps",
        pool="pool/main/t/tuxpaint-stamps/tuxpaint-stamps-default_2022.06.04-1_all.deb",
        sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        megabytes=161,
    ),
    "mate-backgrounds": debian.Package(
        name="mate-backgrounds",
        file="usr/share/backgrounds/mate/nature",
        pool="pool/main/m/mate-backgrounds/mate-backgrounds_1.26.0-1_all.deb",
        sha256="7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        megabytes=47,
    ),
    "lomiri-wallpapers-16.04": debian.Package(
        name="lomiri-wallpapers-16.04",
        file="usr/share/backgrounds",
        pool="pool/main/l/lomiri-wallpapers/lomiri-wallpapers-16.04_20.04.0-2_all.deb",
        sha256="a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
        megabytes=16,
    ),
}
TEXTURES = "openarena"  # the package of textures that lies behind half of the scenes
PHOTOGRAPH = "photograph"
HELD_OUT = 3  # every so manieth part is for testing alone


class Parts(NamedTuple):
    """Of one split.

    Attributes:
        stamps: category -> files, PNG with alpha.
        photographs: files.
        textures: uint8 [n, 256, 256, 3].
    """

    stamps: dict[str, list[Path]]
    photographs: list[Path]
    textures: np.ndarray


@cache
def listed() -> dict[str, dict]:
    """Package -> sha256 of its parts, and `files`: category -> their names."""
    return yaml.safe_load(LIST.read_text(encoding="utf-8"))


def get_parts(root: Path, log: Callable[[str], object]) -> Path:
    """Puts stamps and photographs below root/scene_parts, and textures beside; as `fetch.get`."""
    for package in DEBIAN:
        _get_package(package, root, log)
    fetch.get("textures", root, log, [TEXTURES])
    return root


def _get_package(package: str, root: Path, log: Callable[[str], object]) -> None:
    deb, target = DEBIAN[package], root / NAME
    place = target / package
    log(f"{NAME}: looking for {place}")
    if place.is_dir():
        verify(package, place)
        log("  found, checksums agree")
        return

    def picked(archive: Callable[[Path], Path], folder: Path) -> Iterable[Path]:
        whole, kept = archive(folder), folder / "parts" / package
        for name in _names(package):
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(whole / name, kept / name)
        verify(package, kept)
        return [kept]

    found = fetch.archives_of(deb, [root], log)
    sources = [(say, partial(picked, archive)) for say, archive in found]
    by_hand = f"Put {Path(deb.pool).name} in {root} by hand and try again."
    fetch.first_that_works(package, target, sources, [f"{place}: not there"], by_hand, log)


def _names(package: str) -> list[str]:
    return [name for names in listed()[package]["files"].values() for name in names]


def verify(package: str, folder: Path) -> None:
    """Raises ValueError for a folder that has not the very files of the package's list."""
    digest = hashlib.sha256()
    for name in _names(package):
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path}: not there; delete {folder} and get {NAME} again")
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    if digest.hexdigest() != listed()[package]["sha256"]:
        found = f"found sha256 {digest.hexdigest()}, expected {listed()[package]['sha256']}"
        raise ValueError(f"{folder}: {found}; delete it and get {NAME} again")


def find(root: str | Path | None = None) -> dict[str, Parts]:
    """'train' and 'test' -> their parts, no file in both.

    Raises:
        FileNotFoundError: they are not there; says how to get them.
        ValueError: they are not those of the list.
    """
    places = [place / NAME for place in roots(root)]
    place = next((place for place in places if place.is_dir()), None)
    if place is None:
        tried = ", ".join(map(str, places))
        raise FileNotFoundError(f"no {tried}; get it with `ssl-zoo data get {NAME}`")
    files: dict[str, list[Path]] = {}
    for package, of in listed().items():
        verify(package, place / package)
        for category, names in of["files"].items():
            files.setdefault(category, []).extend(place / package / name for name in names)
    pictures = textures.load(TEXTURES, roots(root))
    splits = {}
    for split in ("train", "test"):
        stamps = {category: _kept(paths, split) for category, paths in files.items()}
        photographs = stamps.pop(PHOTOGRAPH)
        splits[split] = Parts(stamps, photographs, pictures[_kept(range(len(pictures)), split)])
    return splits


def _kept(items, split: str) -> list:
    """Of a list of parts, those of a split."""
    return [x for i, x in enumerate(items) if (i % HELD_OUT == HELD_OUT - 1) == (split == "test")]


fetch.SOURCES[NAME] = get_parts
