"""Chooses the textures of `Textures` from the packages' archives, and writes their names.

    python tools/choose_textures.py UFOAI.pk3 OPENARENA.pk3 NEXUIZ.pk3

Left out: maps of other kinds (normals, gloss, ...), skies and what tools of map makers use, sides
under 256, alpha that shows, textures of which more than a quarter is flat, and those that look like
one before them in this order: either's gray thumbnail tells. The list is kept, so that no decoder
changes the classes.
"""

import hashlib
import io
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from ssl_zoo.data.datasets import textures

NAMES = ("ufoai", "openarena", "nexuiz")
KINDS = "alpha blend bump gloss glow h height light local luma mask n nm nmap norm normal pants"
KINDS += " reflect rm s shirt sm spec trans dtrans"
OTHER_MAP = re.compile(rf"_({'|'.join(KINDS.split())})\d*$")
NO_TEXTURE = re.compile(r"sk(y|ies)|env|nebula|cloud|common/|system/")
FLAT = 8  # the standard deviation of a flat tile's colors is below, in levels of 255
MOST_FLAT = 0.25  # of a texture's tiles
ALIKE = 0.8  # correlation of two textures, gray, at 16 x 16


def candidates(archive: zipfile.ZipFile):
    """(name, pixels uint8 [256, 256, 3]) of each image that may be a texture."""
    for name in sorted(archive.namelist()):
        stem, _, suffix = name.lower().rpartition(".")
        if suffix not in ("jpg", "jpeg", "png", "tga"):
            continue
        if OTHER_MAP.search(stem) or NO_TEXTURE.search(stem):
            continue
        image = Image.open(io.BytesIO(archive.read(name)))
        if min(image.size) < textures.SIDE:
            continue
        has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        if has_alpha and np.asarray(image.convert("RGBA"))[..., 3].min() < 250:
            continue
        yield name, textures.square(image)


def flat_share(pixels: np.ndarray) -> float:
    n = textures.TILES
    tiles = pixels.reshape(n, textures.SIDE // n, n, textures.SIDE // n, 3).swapaxes(1, 2)
    spread = tiles.reshape(n * n, -1, 3).std(axis=1).mean(axis=1)  # [n * n]
    return (spread < FLAT).mean()


def coarse(pixels: np.ndarray) -> bytes:
    """Gray, 8 x 8, in 16 levels: for textures too even to correlate."""
    small = Image.fromarray(pixels).convert("L").resize((8, 8), Image.Resampling.BOX)
    return (np.asarray(small) // 16).tobytes()


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """[256], of unit length around its mean: products are correlations."""
    small = Image.fromarray(pixels).convert("L").resize((16, 16), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32).ravel()
    values -= values.mean()
    return values / max(np.linalg.norm(values), 1e-6)


def main() -> None:
    seen = np.zeros((0, 256), np.float32)
    seen_coarse = set()
    chosen = {}
    for package, path in zip(NAMES, map(Path, sys.argv[1:]), strict=True):
        names = []
        with zipfile.ZipFile(path) as archive:
            for name, pixels in candidates(archive):
                if flat_share(pixels) > MOST_FLAT:
                    continue
                look = thumbnail(pixels)
                if coarse(pixels) in seen_coarse or (seen @ look).max(initial=-1) > ALIKE:
                    continue
                seen_coarse.add(coarse(pixels))
                seen = np.vstack([seen, look])
                names.append(name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        chosen[package] = {"sha256": digest, "textures": names}
        print(f"{package}: {len(names)} textures")
    text = "# Written by tools/choose_textures.py: archives' hashes, and which files are classes.\n"
    text += yaml.safe_dump(chosen, sort_keys=False)
    textures.LIST.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
