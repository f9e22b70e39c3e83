"""Textures: what is cut of them, whence they are got, what happens to damaged files, baselines."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import http.server
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ssl_zoo import cli
from ssl_zoo.config import DATASETS, EVALUATIONS, ConfigError, bind
from ssl_zoo.data import Splits, debian, fetch
from ssl_zoo.data.datasets import textures
from ssl_zoo.evaluation.features import Labeled
from ssl_zoo.evaluation.knn import Pixels
from ssl_zoo.evaluation.monitor import baselines_for

NAMES = {
    "ufoai": ["textures/b.png", "textures/a.png"],
    "openarena": ["c/d.png"],
    "nexuiz": ["e.png"],
}
ORDER = ["b", "a", "d", "e"]  # classes, of all packages


def texture(number: int) -> np.ndarray:
    """uint8 [256, 256, 3]: red tells the texture, green the tile, blue the pixel in it."""
    tile, pixel = np.divmod(np.arange(256), 32)
    green = 8 * tile[:, None] + tile
    blue = (7 * pixel[:, None] + pixel) % 251
    return np.stack([np.full_like(green, 60 * number), green, blue], axis=-1).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


@functools.cache
def pk3(package: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("readme.txt", "no texture")
        for name in NAMES[package]:
            archive.writestr(name, png(texture(ORDER.index(Path(name).stem))))
    return out.getvalue()


@functools.cache
def debian_package(package: str) -> bytes:
    return deb({textures.DEBIAN[package].file: pk3(package)})


def deb(files: dict[str, bytes], kind: str = "xz") -> bytes:
    """A Debian package, with one member of odd length before its data."""
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode=f"w:{kind}") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    members = {"debian-binary": b"2.0\n", "control.tar.gz": b"odd", f"data.tar.{kind}": None}
    out = b"!<arch>\n"
    for name, data in members.items():
        data = tarred.getvalue() if data is None else data
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        out += data + b"\n" * (len(data) % 2)
    return out


class World:
    """Sources under the test's control: what of `works` is there, and what was `called`."""

    def __init__(self, root: Path, system: Path, archives: list[Path]):
        self.root, self.system, self.archives = root, system, archives
        self.works, self.called, self.said = set(), [], []

    def get(self, *packages: str) -> Path:
        return fetch.get("textures", self.root, self.said.append, packages or None)

    def left(self) -> list[str]:
        """Files below the root."""
        return sorted(str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_file())

    def place(self, path: Path, data: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def serve(self, archive: int, package: str, data: bytes | None = None) -> None:
        data = debian_package(package) if data is None else data
        self.place(self.archives[archive] / textures.DEBIAN[package].pool, data)

    def run(self, command, cwd, **_):
        """apt-get and dpkg."""
        self.called.append(command[0])
        name = command[-1]
        package = next((p for p, d in textures.DEBIAN.items() if d.name == name), None)
        if command[0] == "dpkg":
            name = command[2].partition("_")[0]
            (package,) = (p for p, d in textures.DEBIAN.items() if d.name == name)
            data = pk3(package) if "apt" in self.works else b"of another version"
            self.place(cwd / "unpacked" / textures.DEBIAN[package].file, data)
        elif package and self.works & {"apt", "another version by apt"}:
            (cwd / f"{name}_1.0_all.deb").write_text("package")
        else:
            error = "E: Unable to locate package"
            return subprocess.CompletedProcess(command, 100, "", error)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def world(tmp_path, monkeypatch):
    listed, packages = {}, {}
    for package, names in NAMES.items():
        digest = hashlib.sha256(pk3(package)).hexdigest()
        listed[package] = {"sha256": digest, "textures": names}
        found = textures.DEBIAN[package]
        digest = hashlib.sha256(debian_package(package)).hexdigest()
        packages[package] = replace(found, sha256=digest)
    monkeypatch.setattr(textures, "listed", lambda: listed)
    monkeypatch.setattr(textures, "DEBIAN", packages)
    monkeypatch.setattr(debian, "ROOT", tmp_path / "system")
    monkeypatch.delenv("SSL_ZOO_DATA", raising=False)
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    archives = [tmp_path / "archives" / str(i) for i in range(2)]
    world = World(tmp_path / "root", tmp_path / "system", archives)
    monkeypatch.setattr(subprocess, "run", world.run)
    for path in archives:
        path.mkdir(parents=True)
    with serving(tmp_path / "archives") as url:
        monkeypatch.setattr(debian, "ARCHIVES", (f"{url}/0", f"{url}/1"))
        yield world


@contextlib.contextmanager
def serving(folder: Path):
    """The address of a web server of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


# ------------------------------------------------------------------------------- what is cut


@pytest.fixture
def packs(world):
    world.works.add("apt")
    world.get(*NAMES)
    return str(world.root)


def build(split: str, root: str, **arguments) -> textures.Textures:
    return bind(DATASETS, {"type": "Textures", "root": root, **arguments})(split=split)


@pytest.mark.parametrize(
    ("stage", "split", "columns"),
    [
        ("choose", "train", range(5)),
        ("choose", "test", [5]),
        ("verdict", "train", range(6)),
        ("verdict", "test", [6, 7]),
    ],
)
@pytest.mark.parametrize("packages", [["ufoai"], ["openarena", "ufoai"], [*NAMES]])
def test_columns_of_tiles_make_the_splits(stage, split, columns, packages, packs):
    """Tile by tile: class after class, rows from the top, columns from the left."""
    data = build(split, packs, stage=stage, packages=packages)
    names = [Path(name).stem for package in packages for name in NAMES[package]]
    expected = [
        (
            label,
            texture(ORDER.index(name))[32 * row : 32 * row + 32, 32 * column : 32 * column + 32],
        )
        for label, name in enumerate(names)
        for row in range(8)
        for column in columns
    ]
    assert len(data) == len(expected) and data.num_classes == len(names) and data.split == split
    assert data.images.dtype == torch.uint8 and data.images.shape[1:] == (3, 32, 32)
    assert data.labels.tolist() == [label for label, _ in expected]
    tiles = torch.from_numpy(np.stack([tile for _, tile in expected])).permute(0, 3, 1, 2)
    assert torch.equal(data.fetch(torch.arange(len(data))), tiles)


@pytest.mark.parametrize("stage", ["choose", "verdict"])
def test_splits_share_no_tile_and_the_verdicts_tiles_are_in_no_stage_of_choice(stage, packs):
    def tiles(split: str, stage: str) -> set[tuple[int, int]]:
        images = build(split, packs, stage=stage).images
        return {tuple(x) for x in images[:, :2, 0, 0].tolist()}  # texture and tile

    train, test = tiles("train", stage), tiles("test", stage)
    assert len(train) + len(test) == len(train | test)
    assert tiles("pretrain", stage) == train
    verdict = tiles("test", "verdict")
    assert not verdict & (tiles("train", "choose") | tiles("test", "choose"))


def test_the_default_is_the_set_and_its_verdict(packs):
    whole = build("test", packs)
    assert whole.num_classes == 3 and len(whole) == 3 * 8 * 2
    splits = bind(Splits, {"dataset": {"type": "Textures", "root": packs}, "clean": {"ops": {}}})()
    identity = splits.identity()
    described = {"type": "Textures", "packages": ["ufoai", "openarena"], "stage": "verdict"}
    assert identity["dataset"] == described
    assert (identity["train_images"], identity["test_images"]) == (144, 48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"packages": []},
            r"packages: no package, or a repeat\n.*\[\]\n.*each of them at most once",
        ),
        ({"packages": ["ufoai", "ufoai"]}, r"packages: no package, or a repeat"),
        ({"packages": ["ufoa"]}, r"packages\[0\]: .*\n.*'ufoa'\n.*\n.*nearest:  ufoai"),
        ({"packages": "ufoai"}, r"packages: value of the wrong type"),
        ({"stage": "final"}, r"stage.*\n.*'final'\n.*choose.*verdict"),
        ({"limit": 5}, r"limit"),
    ],
)
def test_wrong_arguments_are_refused_before_any_file_is_looked_for(arguments, message):
    with pytest.raises(ConfigError, match=message):
        bind(DATASETS, {"type": "Textures", **arguments})
    with pytest.raises(ValueError, match="'pretrain', 'train' or 'test', found 'val'"):
        bind(DATASETS, {"type": "Textures"})(split="val")


def test_the_list_is_the_one_that_the_studies_ran_on():
    """Classes are numbered by it: another order is another data set."""
    listed = textures.listed()
    counts = {package: len(of["textures"]) for package, of in listed.items()}
    assert counts == {"ufoai": 592, "openarena": 215, "nexuiz": 309}
    assert all(len(set(of["textures"])) == len(of["textures"]) for of in listed.values())
    text = "\n".join(name for of in listed.values() for name in of["textures"])
    assert hashlib.sha256(text.encode()).hexdigest() == LIST_SHA256
    assert listed.keys() == textures.DEBIAN.keys()
    made = {key: of["sha256"] for key, of in listed.items()}
    assert all(len(digest) == 64 for digest in made.values()) and len(set(made.values())) == 3


LIST_SHA256 = "8b251726c5b49cf699c1f3989f815894ed48017d62afff1ca9f54de17e3a94cb"


@pytest.mark.parametrize("size", [(256, 256), (300, 256), (512, 600)])
def test_a_texture_is_the_middle_of_its_file(size):
    width, height = size
    side = min(size)
    pixels = np.zeros((height, width, 3), np.uint8)  # red but for its middle
    pixels[..., 0] = 255
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = (0, 0, 200)
    middle = textures.square(Image.fromarray(pixels))
    inner = middle if side == 256 else middle[4:-4, 4:-4]  # a filter reaches beyond the edge
    assert middle.shape == (256, 256, 3) and (inner == (0, 0, 200)).all()
    gray = textures.square(Image.new("L", size, 70))
    assert gray.shape == (256, 256, 3) and (gray == 70).all()


# --------------------------------------------------------------------------- whence they come


PK3 = textures.DEBIAN["openarena"].file
APT = ["apt-get", "apt-get"]  # a download that fails, and then an update that does


@pytest.mark.parametrize(
    ("there", "called", "said"),
    [
        ("pack", [], "found, whole"),
        ("pk3 in the root", [], "reading {root}/pak4-textures.pk3"),
        ("pk3 in textures/", [], "reading {root}/textures/pak4-textures.pk3"),
        ("an unpacked package", [], "reading {root}/usr/share/games/openarena/baseoa/pak4"),
        ("a game's folder", [], "reading {root}/openarena/baseoa/pak4-textures.pk3"),
        ("installed game", [], "reading {system}/usr/share/games/openarena/baseoa/pak4"),
        ("deb in the root", [], "unpacking {root}/openarena-081-textures_0.8.5split-14_all.deb"),
        ("apt", ["apt-get", "dpkg"], "(94 MB) by apt-get"),
        ("first archive", APT, "from http://127.0.0.1:{port}/0"),
        ("second archive", APT, "from http://127.0.0.1:{port}/1"),
    ],
)
def test_sources_in_order(there, called, said, world):
    root = world.root
    if there == "pack":
        world.works.add("apt")
        world.get("openarena")
        world.works.clear(), world.called.clear(), world.said.clear()
    archive = pk3("openarena")
    package = deb({PK3: archive}, kind="gz")
    places = {
        "pk3 in the root": (root / "pak4-textures.pk3", archive),
        "pk3 in textures/": (root / "textures" / "pak4-textures.pk3", archive),
        "an unpacked package": (root / PK3, archive),
        "a game's folder": (root / "openarena" / "baseoa" / "pak4-textures.pk3", archive),
        "installed game": (world.system / PK3, archive),
        "deb in the root": (root / "openarena-081-textures_0.8.5split-14_all.deb", package),
    }
    if there in places:
        world.place(*places[there])
    if there == "apt":
        world.works.add("apt")
    if there in ("first archive", "second archive"):
        world.serve(("first archive", "second archive").index(there), "openarena")
    before = world.left() if root.is_dir() else []
    assert world.get("openarena") == root
    assert world.called == called
    port = debian.ARCHIVES[0].rpartition(":")[2].partition("/")[0]
    expected = said.format(root=root, system=world.system, port=port)
    assert any(expected in line for line in world.said), world.said
    assert world.left() == sorted({*before, "textures/openarena.npz"})
    data = build("train", str(root), packages=["openarena"])
    assert data.images[0, 0, 0, 0] == 60 * ORDER.index("d")
    world.called.clear()
    stamp = (root / "textures" / "openarena.npz").stat().st_mtime_ns
    world.get("openarena")  # it is there now, and kept
    assert world.called == [] and world.said[-1] == "  found, whole"
    assert (root / "textures" / "openarena.npz").stat().st_mtime_ns == stamp


def test_what_is_got_is_the_same_whencever_it_comes(world):
    world.works.add("apt")
    world.get("ufoai")
    first = (world.root / "textures" / "ufoai.npz").read_bytes()
    world.works.clear()
    (world.root / "textures" / "ufoai.npz").unlink()
    world.serve(1, "ufoai")
    world.get("ufoai")
    assert (world.root / "textures" / "ufoai.npz").read_bytes() == first


@pytest.mark.parametrize(
    "broken", ["another version by apt", "half", "nothing", "another", "no apt"]
)
def test_a_source_of_something_else_is_passed_over_and_named(broken, world, monkeypatch):
    world.works.add(broken)
    if broken == "half":
        world.serve(0, "nexuiz", debian_package("nexuiz")[:-20])
    elif broken == "nothing":
        world.serve(0, "nexuiz", b"")
    elif broken == "another":
        world.place(world.root / "textures.pk3", pk3("openarena"))
    elif broken == "no apt":
        monkeypatch.setattr(shutil, "which", lambda tool: None)
    world.serve(1, "nexuiz")
    world.get("nexuiz")
    failed = "\n".join(line for line in world.said if "failed" in line)
    message = {
        "another version by apt": "textures.pk3: found sha256",
        "half": f"expected sha256 {textures.DEBIAN['nexuiz'].sha256}",
        "nothing": "found 0 bytes of sha256",
        "another": f"{world.root}/textures.pk3: found sha256",
        "no apt": "apt-get is not there",
    }[broken]
    assert message in failed
    assert ("404" in failed) == (broken not in ("half", "nothing"))
    assert build("test", str(world.root), packages=["nexuiz"]).num_classes == 1


def test_when_nothing_works_it_is_said_what_was_tried_and_how_to_supply_the_file(world):
    with pytest.raises(FileNotFoundError) as error:
        world.get("ufoai")
    for part in (
        "textures of ufoai could not be obtained",
        f"{world.root / 'textures' / 'ufoai.npz'}: not there",
        "E: Unable to locate package",
        f"from {debian.ARCHIVES[0]}: HTTP Error 404",
        f"from {debian.ARCHIVES[1]}: HTTP Error 404",
        "Put 0textures.pk3 (of the game, or of Debian's ufoai-textures_2.5-2_all.deb) or that .deb",
        f"{world.root / 'textures'} by hand",
    ):
        assert part in str(error.value)
    assert world.left() == [] and not list(world.root.glob(".incomplete-*"))


def test_an_archive_that_does_not_answer_is_no_more_than_a_source_that_fails(world, monkeypatch):
    monkeypatch.setattr(debian, "ARCHIVES", ("http://127.0.0.1:1/debian", debian.ARCHIVES[1]))
    world.serve(1, "nexuiz")
    world.get("nexuiz")
    assert any("failed" in line and "refused" in line for line in world.said)


def test_the_default_packages_and_the_command_line(world, capsys):
    world.works.add("apt")
    assert cli.main(["data", "get", "textures", "--root", str(world.root)]) == 0
    assert world.left() == ["textures/openarena.npz", "textures/ufoai.npz"]
    words = ["data", "get", "textures", "--packages", "nexuiz", "--root", str(world.root)]
    assert cli.main(words) == 0
    assert world.left() == [f"textures/{name}.npz" for name in sorted(NAMES)]
    assert f"textures is in {world.root}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["textures", "--packages", "openarna"], "nearest:  openarena"),
        (["textures", "--packages", "ufoai", "doom"], "one of ufoai, openarena, nexuiz"),
        (["cifar10", "--packages", "ufoai"], "cifar10 is not made of packages; textures is"),
        (["texture"], "nearest: textures"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_got(words, message, world, capsys):
    world.works.add("apt")
    assert cli.main(["data", "get", *words, "--root", str(world.root)]) == 2
    assert message in capsys.readouterr().err
    assert not world.root.exists() and world.called == []


# -------------------------------------------------------------------------- nothing by halves


@pytest.mark.parametrize(
    "end",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EFBIG, "too large"), KeyboardInterrupt()],
)
def test_a_full_disk_or_a_kill_in_the_middle_leaves_nothing(end, world, monkeypatch):
    world.works.add("apt")

    def half(file, **_):
        file.write(b"half of a pack")
        raise end

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(type(end)):
        world.get("ufoai")
    assert world.left() == [] and not list(world.root.glob("**/.incomplete-*"))
    assert world.called == ["apt-get", "dpkg"]  # no other source makes room
    monkeypatch.undo()


def test_what_a_kill_without_notice_left_is_named(world):
    left = world.place(world.root / ".incomplete-x" / "ufoai.npz", b"half").parent
    world.works.add("apt")
    world.get("ufoai")
    assert any(f"{left}: of a call that is at work now, or was killed" in x for x in world.said)
    textures.load("ufoai", [world.root])


def test_a_root_that_cannot_be_written_is_named(world, capsys):
    world.works.add("apt")
    world.place(world.root, b"a file and no folder")
    assert cli.main(["data", "get", "textures", "--root", str(world.root)]) == 2
    assert str(world.root) in capsys.readouterr().err


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_root_without_the_right_to_write_is_named(world, capsys):
    world.works.add("apt")
    world.root.mkdir()
    world.root.chmod(0o500)
    assert cli.main(["data", "get", "textures", "--root", str(world.root)]) == 2
    assert "Permission denied" in capsys.readouterr().err


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def packed(names: list[str], side: int = 256) -> bytes:
    return npz(pixels=np.zeros((len(names), side, side, 3), np.uint8), names=np.array(names))


DAMAGES = {
    "empty": lambda whole: b"",
    "cut short": lambda whole: whole[: len(whole) // 2],
    "its end lost": lambda whole: whole[:-30],
    "a byte of a pixel": lambda whole: whole[:90000] + bytes([whole[90000] ^ 1]) + whole[90001:],
    "something else": lambda whole: b"<html>no such page</html>",
    "another .npz": lambda whole: npz(other=np.zeros(3)),
    "an older list": lambda whole: packed(["textures/b.png"]),
    "another order": lambda whole: packed(NAMES["ufoai"][::-1]),
    "another size": lambda whole: packed(NAMES["ufoai"], side=64),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_outdated_packs_are_named_and_not_replaced_behind_anybodys_back(damage, packs):
    path = Path(packs) / "textures" / "ufoai.npz"
    bad = DAMAGES[damage](path.read_bytes())
    path.write_bytes(bad)
    outdated = damage in ("an older list", "another order", "another size")
    message = "of another list" if outdated else "damaged"
    again = "delete it and run `ssl-zoo data get textures --packages ufoai`"
    for use in (
        lambda: build("train", packs),
        lambda: fetch.get("textures", packs, lambda _: None),
    ):
        with pytest.raises(ValueError, match=message) as error:
            use()
        assert str(path) in str(error.value) and again in str(error.value)
    assert path.read_bytes() == bad


def test_any_changed_byte_is_found_or_changes_nothing(packs):
    path = Path(packs) / "textures" / "openarena.npz"
    whole = path.read_bytes()
    before = textures.load("openarena", [Path(packs)])
    ends = [*range(300), *range(len(whole) - 300, len(whole))]
    refused = 0
    for position in [*ends[::5], *range(300, len(whole) - 300, 20011)]:
        changed = bytes([whole[position] ^ (255 if position % 2 else 1)])
        path.write_bytes(whole[:position] + changed + whole[position + 1 :])
        try:
            assert np.array_equal(textures.load("openarena", [Path(packs)]), before)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 20


def test_missing_packs_say_where_they_were_looked_for_and_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_ZOO_DATA", str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError) as error:
        bind(DATASETS, {"type": "Textures", "packages": ["nexuiz"]})(split="train")
    for part in (
        str(tmp_path / "mine" / "textures" / "nexuiz.npz"),
        str(Path("data", "textures", "nexuiz.npz")),
        "`ssl-zoo data get textures --packages nexuiz`",
        "data.dataset.root",
    ):
        assert part in str(error.value)


# -------------------------------------------------------------------------- Debian's packages


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2"])
def test_a_file_comes_out_of_a_debian_package_in_python(kind, tmp_path):
    big = np.random.default_rng(0).bytes(300_001)
    path = tmp_path / "a.deb"
    path.write_bytes(deb({"usr/other": b"1", "usr/share/b.pk3": big, "usr/b.pk3": b"2"}, kind))
    out = debian.extract(path, "usr/share/b.pk3", tmp_path)
    assert out == tmp_path / "b.pk3" and out.read_bytes() == big


def test_a_folder_comes_out_of_a_debian_package_in_python(tmp_path):
    path = tmp_path / "a.deb"
    inside = {"usr/share/b/x": b"1", "usr/share/b/c/y": b"2"}
    path.write_bytes(deb({**inside, "usr/share/bc": b"3", "usr/share/b/../../../z": b"4"}))
    out = debian.extract(path, "usr/share/b", tmp_path / "to")
    found = [at for at in (tmp_path / "to").rglob("*") if at.is_file()]
    assert out == tmp_path / "to" / "b"
    assert {f"usr/share/b/{at.relative_to(out)}": at.read_bytes() for at in found} == inside


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb")
def test_a_package_as_dpkg_itself_makes_it(tmp_path):
    (tmp_path / "tree" / "DEBIAN").mkdir(parents=True)
    control = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    (tmp_path / "tree" / "DEBIAN" / "control").write_text(control)
    (tmp_path / "tree" / "usr").mkdir()
    (tmp_path / "tree" / "usr" / "b.pk3").write_bytes(b"textures")
    command = ["dpkg-deb", "-Zxz", "--build", tmp_path / "tree", tmp_path / "x.deb"]
    subprocess.run(command, check=True, capture_output=True)
    assert debian.extract(tmp_path / "x.deb", "usr/b.pk3", tmp_path).read_bytes() == b"textures"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "not a Debian package"),
        (lambda: b"<html>", "not a Debian package"),
        (lambda: b"!<arch>\n", "no data.tar in it"),
        (lambda: deb({"usr/b.pk3": b"1"})[:100], "no data.tar in it"),
        (lambda: deb({"usr/b.pk3": os.urandom(9000)})[:-5000], "data.tar.xz cannot be unpacked"),
        (lambda: deb({"usr/b.pk3": os.urandom(9000)}, "gz")[:-5000], "data.tar.gz cannot be unpac"),
        (
            lambda: deb({"usr/b.pk3": b"1"}).replace(b"data.tar.xz", b"data.tar.zst")[:-4],
            "cannot be unpacked",
        ),
        (lambda: deb({"usr/other": b"1"}), "has no usr/b.pk3|cannot be unpacked"),
        (lambda: b"!<arch>\n" + b"x" * 60, "cannot be unpacked"),
    ],
)
def test_broken_packages_are_named(make, message, tmp_path):
    path = tmp_path / "broken.deb"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=message) as error:
        debian.extract(path, "usr/b.pk3", tmp_path)
    assert str(path) in str(error.value)


def test_debians_archives_are_asked_by_https():
    assert len(debian.ARCHIVES) == 2 and all(x.startswith("https://") for x in debian.ARCHIVES)


# --------------------------------------------------------------------------------- baselines


def test_colors_alone_are_a_baseline_that_the_set_offers():
    images = torch.rand(5, 3, 8, 8)
    found = textures.ColorStatistics()(images)
    expected = np.concatenate(
        [images.numpy().mean(axis=(2, 3)), images.numpy().std(axis=(2, 3), ddof=1)], axis=1
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    splits = bind(Splits, {"dataset": {"type": "Textures"}, "clean": {"ops": {}}})()
    knn = bind(EVALUATIONS, {"type": "KNN"})()
    offered = baselines_for(knn, splits)
    assert list(offered) == ["raw pixels", "random backbone", "color statistics"]
    assert offered["color statistics"] is textures.ColorStatistics


def plain_vote(bank: torch.Tensor, labels: np.ndarray, queries: torch.Tensor, k: int) -> np.ndarray:
    """The kNN vote, a query at a time: arXiv:1805.01978 with T 0.07; the classes that win."""
    bank, queries = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (bank, queries))
    nearest = (queries @ bank.T).topk(k, dim=1)
    winners = []
    for similarity, neighbors in zip(*(x.numpy() for x in nearest), strict=True):
        winners.append(np.bincount(labels[neighbors], np.exp(similarity / 0.07)).argmax())
    return np.array(winners)


@pytest.fixture(scope="module")
def openarena(root_of_data):
    """Of the packed openarena: (pixels float64 [n, 3, 32, 32] in [0, 1], labels [n]) by split."""
    load = bind(
        DATASETS, {"type": "Textures", "root": str(root_of_data), "packages": ["openarena"]}
    )
    splits = {split: load(split=split) for split in ("train", "test")}
    return {split: (x.images.double() / 255, x.labels.numpy()) for split, x in splits.items()}


@pytest.fixture(scope="module")
def root_of_data():
    found = os.environ.get("SSL_ZOO_DATA") or Path(__file__).parents[1] / "data"
    if not (Path(found) / "textures" / "openarena.npz").is_file():
        pytest.skip("openarena is not here: `ssl-zoo data get textures --packages openarena`")
    return found


@pytest.mark.parametrize(("name", "every"), [("color statistics", 1), ("raw pixels", 40)])
def test_baselines_equal_a_plain_vote_on_openarena(name, every, openarena, root):
    """Through the evaluation, and as they are kept, which is of all test images."""
    (bank, labels), (queries, true) = openarena["train"], openarena["test"]
    queries, true = queries[::every], true[::every]
    if name == "raw pixels":
        network, features = Pixels(), [x.float().flatten(1) for x in (bank, queries)]
    else:
        network = textures.ColorStatistics()
        features = [torch.cat([x.mean((2, 3)), x.flatten(2).std(2)], 1) for x in (bank, queries)]
    train, test = (
        Labeled(network(x.float()), torch.as_tensor(y))
        for x, y in ((bank, labels), (queries, true))
    )
    kept = json.loads((root / "results" / "textures_baselines.json").read_text())["found"]
    for k in (20, 1):
        right = plain_vote(features[0], labels, features[1], k) == true
        plain, tie = 100 * right.mean(), 100 / len(true)
        outcome = bind(EVALUATIONS, {"type": "KNN", "k": k})().judge(train, test)
        assert outcome.metrics["top1"] == pytest.approx(plain, abs=5.1 * tie)
        of_all = kept[f"small_{k}"]
        assert of_all["protocol"]["queries"] == "test split, clean views, 3440 images"
        error = 0 if every == 1 else 100 * (0.25 / len(true)) ** 0.5
        assert of_all[name]["top1"] == pytest.approx(plain, abs=5.1 * tie + 3 * error)


# -------------------------------------------------------------------- the pages and the tools


def module(path: Path):
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"a_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_benchmark_measures_each_network_on_each_set(packs, root, monkeypatch):
    bench = module(root / "benchmarks" / "textures.py")
    monkeypatch.setenv("SSL_ZOO_DATA", packs)
    found = bench.measure(torch.device("cpu"))
    assert found.keys() == {f"{name}_{k}" for name in bench.IMAGES for k in bench.K}
    for name, of in found.items():
        assert of.keys() == {"protocol", *bench.NETWORKS}
        assert of["protocol"]["k"] == int(name.rpartition("_")[2])
        if name.startswith(("unseen", "small")):  # a single texture
            assert all(of[network]["top1"] == 100 for network in bench.NETWORKS)
    assert found["all_1"]["color statistics"]["top1"] > found["gray_1"]["color statistics"]["top1"]
    assert found["all_1"]["protocol"]["classes"] == 3


@pytest.fixture(scope="module")
def choose(root_of_code):
    return module(root_of_code / "tools" / "choose_textures.py")


@pytest.fixture(scope="module")
def root_of_code():
    return Path(__file__).resolve().parents[1]


def noise(seed: int, low: int = 0, high: int = 256) -> np.ndarray:
    """Blocks of 16 x 16, so that thumbnails differ too; uint8 [256, 256, 3]."""
    draw = np.random.default_rng(seed)
    blocks = draw.integers(low, high, (16, 16, 3)).repeat(16, 0).repeat(16, 1)
    return (blocks * 0.7 + 0.3 * draw.integers(low, high, (256, 256, 3))).astype(np.uint8)


def test_what_is_flat_and_what_looks_alike(choose):
    pixels = noise(0)
    assert choose.flat_share(pixels) == 0
    half = pixels.copy()
    half[:, :128] = 90
    assert choose.flat_share(half) == 0.5 and choose.flat_share(half * 0) == 1
    look, darker = choose.thumbnail(pixels), choose.thumbnail(pixels // 2)
    assert look @ look == pytest.approx(1) and look @ darker > 0.99
    assert abs(look @ choose.thumbnail(noise(1))) < 0.3
    assert choose.coarse(pixels) == choose.coarse(pixels) != choose.coarse(noise(1))


def test_the_choice_among_three_archives(choose, tmp_path, monkeypatch, capsys):
    alpha = np.dstack([noise(9), np.full((256, 256), 100, np.uint8)])
    opaque = np.dstack([noise(10), np.full((256, 256), 255, np.uint8)])
    archives = {
        "ufoai": {
            "a/wall.png": noise(1),
            "a/wall_norm.png": noise(2),
            "a/wall_gloss2.png": noise(3),
            "a/sky.png": noise(4),
            "env/hill.png": noise(5),
            "common/caulk.png": noise(6),
            "a/small.png": noise(7)[:128],
            "a/flat.png": noise(8) * 0 + 7,
            "a/glass.png": alpha,
            "a/opaque.png": opaque,
            "a/notes.txt": None,
            "a/same.png": noise(1) // 2,  # darker, but alike
        },
        "openarena": {"b/other.png": noise(11), "b/copy_of_wall.png": noise(1)},
        "nexuiz": {"c/z.png": noise(13), "c/a.png": noise(12)},
    }
    paths = []
    for package, files in archives.items():
        paths.append(tmp_path / f"{package}.pk3")
        with zipfile.ZipFile(paths[-1], "w") as archive:
            for name, pixels in files.items():
                archive.writestr(name, b"" if pixels is None else png(pixels))
    monkeypatch.setattr(textures, "LIST", tmp_path / "list.yaml")
    monkeypatch.setattr(sys, "argv", ["choose_textures.py", *map(str, paths)])
    choose.main()
    chosen = yaml.safe_load((tmp_path / "list.yaml").read_text())
    assert {package: of["textures"] for package, of in chosen.items()} == {
        "ufoai": ["a/opaque.png", "a/same.png"],  # in order of names: same before wall
        "openarena": ["b/other.png"],
        "nexuiz": ["c/a.png", "c/z.png"],
    }
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert [of["sha256"] for of in chosen.values()] == digests
    assert "openarena: 1 textures" in capsys.readouterr().out
