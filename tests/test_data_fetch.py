"""The order in which sources are tried, and what is left behind when they fail."""

import gzip
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from ssl_zoo.config import DATASETS
from ssl_zoo.data import fetch
from ssl_zoo.data.datasets import fashion_mnist

CONTENTS = {name: b"\0\0\x08\1\0\0\0\3" + name[:3].encode() for name in fashion_mnist.SHA256}


def place(folder, zipped=True, contents=CONTENTS):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(data) if zipped else data)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Sources under the test's control; returns (root, calls, switch on what works)."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in CONTENTS.items()}
    monkeypatch.setattr(fashion_mnist, "SHA256", digests)
    monkeypatch.setattr(fashion_mnist, "SYSTEM", tmp_path / "usr" / "share" / "fashion-mnist")
    monkeypatch.delenv("SSL_ZOO_DATA", raising=False)
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    calls, works = [], set()

    def run(command, cwd, **_):
        calls.append(command[0])
        if command[0] == "apt-get":
            private = [word for word in command if word.startswith("Dir::")]
            if command[-1] == "update":
                assert len(private) == 2 and all(str(cwd) in word for word in private)
                return subprocess.CompletedProcess(command, 0, "", "")
            assert command[-2:] == ["download", "dataset-fashion-mnist"]
            if "debian" not in works and not (private and "debian after update" in works):
                return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package")
            (cwd / "dataset-fashion-mnist_0.0_all.deb").write_text("package")
        else:
            assert command == ["dpkg", "-x", "dataset-fashion-mnist_0.0_all.deb", "unpacked"]
            place(cwd / "unpacked" / fashion_mnist.SYSTEM.relative_to("/"))
        return subprocess.CompletedProcess(command, 0, "", "")

    def mirror(root, download):
        calls.append("mirror")
        assert download
        if "mirror" not in works:
            place(Path(root), contents={"train-images-idx3-ubyte": b"half of it"})
            raise RuntimeError("no network")
        place(Path(root) / "FashionMNIST" / "raw", zipped=False)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(fetch.torchvision.datasets, "FashionMNIST", mirror)
    return tmp_path / "root", calls, works


def files_below(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("works", "calls"),
    [
        ({"here", "system", "debian", "mirror"}, []),
        ({"system", "debian", "mirror"}, []),
        ({"debian", "mirror"}, ["apt-get", "dpkg"]),
        ({"debian after update", "mirror"}, ["apt-get", "apt-get", "apt-get", "dpkg"]),
        ({"mirror"}, ["apt-get", "apt-get", "apt-get", "mirror"]),
    ],
)
def test_sources_are_tried_in_order(works, calls, world):
    root, called, switch = world
    switch |= works
    if "here" in works:
        place(root, zipped=False)
    if "system" in works:
        place(fashion_mnist.SYSTEM)
    said = []
    assert fetch.get("fashion_mnist", root, log=said.append) == root
    assert called == calls
    assert said[0] == f"fashion_mnist: looking in {root}" and "checksums agree" in said[-1]
    fashion_mnist.verify(fashion_mnist.find([root]))
    if "here" not in works:  # whole files under their final names, and nothing else
        end = "" if works == {"mirror"} else ".gz"
        assert files_below(root) == sorted(f"fashion-mnist/{name}{end}" for name in CONTENTS)
    called.clear()
    fetch.get("fashion_mnist", root, log=said.append)
    assert called == []  # the second time it is there


def test_failure_lists_what_was_tried_and_leaves_nothing(world):
    root, calls, _ = world
    with pytest.raises(FileNotFoundError) as error:
        fetch.get("fashion_mnist", root, log=lambda _: None)
    for part in (
        f"{root}: the four files are not there",
        f"copying from {fashion_mnist.SYSTEM}",
        "E: Unable to locate package",
        "torchvision's mirror: no network",
        "train-images-idx3-ubyte.gz",
    ):
        assert part in str(error.value)
    assert calls == [*["apt-get"] * 3, "mirror"] and not root.exists()


def test_a_damaged_source_is_passed_over(world):
    root, calls, works = world
    works |= {"mirror"}
    place(fashion_mnist.SYSTEM, contents={**CONTENTS, "t10k-labels-idx1-ubyte": b"other"})
    said = []
    fetch.get("fashion_mnist", root, log=said.append)
    assert calls == [*["apt-get"] * 3, "mirror"]
    assert any(
        "failed" in line and "t10k-labels-idx1-ubyte.gz: found sha256" in line for line in said
    )


def test_the_users_damaged_file_is_not_replaced_behind_his_back(world):
    root, calls, _ = world
    place(root, contents={**CONTENTS, "t10k-labels-idx1-ubyte": b"other"})
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz: found sha256 .* delete it"):
        fetch.get("fashion_mnist", root, log=lambda _: None)
    assert calls == []


def test_systems_without_apt(world, monkeypatch):
    root, calls, works = world
    works |= {"mirror"}
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    said = []
    fetch.get("fashion_mnist", root, log=said.append)
    assert calls == ["mirror"] and any("apt-get is not there" in line for line in said)


@pytest.mark.parametrize("named", [True, False])
def test_the_default_root(named, world, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if named:
        monkeypatch.setenv("SSL_ZOO_DATA", str(tmp_path / "mine"))
    place(fashion_mnist.SYSTEM)
    root = fetch.get("fashion_mnist", log=lambda _: None)
    assert root == (tmp_path / "mine" if named else Path("data"))
    assert len(files_below(root)) == 4


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_torchvisions_downloads(name, tmp_path):
    calls = []

    class Source:
        def __init__(self, root, download):
            calls.append((root, download))
            if len(calls) > 1:
                raise RuntimeError("no network")

    obtain = fetch._from_torchvision(Source)
    said = []
    assert obtain(tmp_path / "root", said.append) == tmp_path / "root"
    assert calls == [(tmp_path / "root", True)] and len(said) == 2
    with pytest.raises(FileNotFoundError, match=r"Source could not be downloaded .* no network"):
        obtain(tmp_path / "root", said.append)
    assert name in fetch.SOURCES and name.upper() in DATASETS.module_dict


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"fashion_mnist, textures, .*nearest: fashion_mnist"):
        fetch.get("FashionMNIST")
