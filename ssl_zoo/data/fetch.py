"""Getting a data set: whatever is at hand first, the network last."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torchvision

from ssl_zoo.config import closest
from ssl_zoo.data.datasets import fashion_mnist
from ssl_zoo.data.source import roots

PACKAGE = "dataset-fashion-mnist"
Log = Callable[[str], object]


def get(name: str, root: str | os.PathLike | None = None, log: Log = print) -> Path:
    """Obtains one of SOURCES, and returns the folder to give as `root`.

    Args:
        root: where to look first and to put the files; None: $SSL_ZOO_DATA or else ./data.

    Raises:
        ValueError: no such data set, or a file that is there is damaged.
        FileNotFoundError: no source worked; lists them, and how to supply the files by hand.
    """
    if name not in SOURCES:
        nearest = closest(name, SOURCES)
        hint = f"; nearest: {nearest}" if nearest else ""
        raise ValueError(f"no data set {name!r} to get; there are {', '.join(SOURCES)}{hint}")
    return SOURCES[name](roots(root)[0], log)


def _fashion_mnist(root: Path, log: Log) -> Path:
    """An existing copy, Debian's copy, Debian's package, torchvision's mirror."""
    log(f"fashion_mnist: looking in {root}")
    files = fashion_mnist.find([root])
    if files is not None:
        fashion_mnist.verify(files)
        log("  found, checksums agree")
        return root
    tried = [f"{root}: the four files are not there"]
    root.mkdir(parents=True, exist_ok=True)
    for say, source in (
        (f"copying from {fashion_mnist.SYSTEM}", _from_system),
        (f"unpacking the Debian package {PACKAGE}", _from_debian),
        ("downloading from torchvision's mirror", _from_mirror),
    ):
        log(f"fashion_mnist: {say}")
        # Beside the target, so that a file gets its final name whole or not at all.
        with tempfile.TemporaryDirectory(dir=root, prefix=".incomplete-") as folder:
            try:
                files = source(Path(folder))
                fashion_mnist.verify(files)
            except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
                tried.append(f"{say}: {str(error).strip()}")
                log(f"  failed: {str(error).strip()}")
                continue
            target = root / "fashion-mnist"
            target.mkdir(exist_ok=True)
            for path in files.values():
                os.replace(path, target / path.name)
        log(f"  done, checksums agree: {target}")
        return root
    names = ", ".join(f"{name}.gz" for name in fashion_mnist.SHA256)
    raise FileNotFoundError(
        "\n  ".join(["fashion_mnist could not be obtained. Tried:", *tried])
        + f"\nPut {names} in {root} by hand (gzipped or not) and try again."
    )


def _four_files(folder: Path) -> dict[str, Path]:
    files = fashion_mnist.find([folder])
    if files is None:
        raise FileNotFoundError(f"the four files are not in {folder}")
    return files


def _from_system(folder: Path) -> dict[str, Path]:
    for path in _four_files(fashion_mnist.SYSTEM).values():
        shutil.copy(path, folder)
    return _four_files(folder)


def _from_debian(folder: Path) -> dict[str, Path]:
    """Needs neither root's rights nor an installation: the package is only unpacked."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} is not there (not a Debian or Ubuntu system)")
    try:
        _run(["apt-get", "download", PACKAGE], folder)
    except RuntimeError:
        # Minimal images come without package lists. A private copy needs no root's rights either.
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True)
        private = ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
        _run(["apt-get", *private, "update"], folder)
        _run(["apt-get", *private, "download", PACKAGE], folder)
    (package,) = folder.glob(f"{PACKAGE}_*.deb")
    _run(["dpkg", "-x", package.name, "unpacked"], folder)
    return _four_files(folder / "unpacked" / fashion_mnist.SYSTEM.relative_to("/"))


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or 'failed'}")


def _from_mirror(folder: Path) -> dict[str, Path]:
    torchvision.datasets.FashionMNIST(folder, download=True)
    return _four_files(folder)


def _from_torchvision(source: type) -> Callable[[Path, Log], Path]:
    """torchvision downloads, verifies and unpacks; what is whole already is left as it is."""

    def obtain(root: Path, log: Log) -> Path:
        log(f"{source.__name__}: looking in {root}, else downloading there")
        root.mkdir(parents=True, exist_ok=True)
        try:
            source(root, download=True)
        except (OSError, RuntimeError) as error:
            failed = f"{source.__name__} could not be downloaded to {root}: {error}"
            by_hand = "Unpack its official archive there by hand and try again."
            raise FileNotFoundError(f"{failed}\n{by_hand}") from error
        log(f"  done, checksums agree: {root}")
        return root

    return obtain


SOURCES: dict[str, Callable[[Path, Log], Path]] = {
    "fashion_mnist": _fashion_mnist,
    "cifar10": _from_torchvision(torchvision.datasets.CIFAR10),
    "cifar100": _from_torchvision(torchvision.datasets.CIFAR100),
    "stl10": _from_torchvision(torchvision.datasets.STL10),
}
