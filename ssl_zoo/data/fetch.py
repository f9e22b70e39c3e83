"""Getting a data set: whatever is at hand first, the network last."""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torchvision

from ssl_zoo.config import closest, not_among
from ssl_zoo.data import debian
from ssl_zoo.data.datasets import fashion_mnist, textures
from ssl_zoo.data.source import roots
from ssl_zoo.system.files import made_folder
from ssl_zoo.system.text import show

Log = Callable[[str], object]
# What a source does, in words, and a function that leaves whole and verified files in the empty
# folder it is given; their paths.
Source = tuple[str, Callable[[Path], Iterable[Path]]]
FAILURES = (OSError, HTTPException, RuntimeError, ValueError, subprocess.SubprocessError)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no other source mends it


def get(
    name: str,
    root: str | os.PathLike | None = None,
    log: Log = show,
    packages: Sequence[str] | None = None,
) -> Path:
    """Obtains one of SOURCES, and returns the folder to give as `root`.

    Args:
        root: where to look first and to put the files; None: $SSL_ZOO_DATA or else ./data.
        packages: of textures, which; None: those of the data set's default.

    Raises:
        ValueError: no such data set or package, or a file that is there is damaged.
        FileNotFoundError: no source worked; lists them, and how to supply the files by hand.
        OSError: the folder cannot be written, or the disk is full.
    """
    if name not in SOURCES:
        nearest = closest(name, SOURCES)
        hint = f"; nearest: {nearest}" if nearest else ""
        raise ValueError(f"no data set {name!r} to get; there are {', '.join(SOURCES)}{hint}")
    if packages is None:
        return SOURCES[name](roots(root)[0], log)
    if name != "textures":
        raise ValueError(f"{name} is not made of packages; textures is")
    return _textures(roots(root)[0], log, packages)


def first_that_works(
    what: str, target: Path, sources: Iterable[Source], tried: list[str], by_hand: str, log: Log
) -> None:
    """Moves the files of the first source that works to `target`; errors as those of `get`."""
    # Made beside their place (a link to another disk, perhaps), so that a file gets its final name
    # whole or not at all.
    beside = target if target.is_dir() else target.parent
    with made_folder(beside):
        for left in beside.glob(".incomplete-*"):
            log(f"  {left}: of a call that is at work now, or was killed; then it can be removed")
        for say, source in sources:
            log(f"{what}: {say}")
            with tempfile.TemporaryDirectory(dir=beside, prefix=".incomplete-") as folder:
                try:
                    made = list(source(Path(folder)))
                except FAILURES as error:
                    if getattr(error, "errno", None) in NO_SPACE:
                        raise
                    tried.append(f"{say}: {str(error).strip()}")
                    log(f"  failed: {str(error).strip()}")
                    continue
                target.mkdir(exist_ok=True)
                for path in made:
                    os.replace(path, target / path.name)
            log(f"  done, checksums agree: {target}")
            return
        raise FileNotFoundError(
            "\n  ".join([f"{what} could not be obtained. Tried:", *tried]) + f"\n{by_hand}"
        )


# ---------------------------------------------------------------------------- Fashion-MNIST


def _fashion_mnist(root: Path, log: Log) -> Path:
    """An existing copy, Debian's copy, Debian's package, torchvision's mirror."""
    log(f"fashion_mnist: looking in {root}")
    files = fashion_mnist.find([root])
    if files is not None:
        fashion_mnist.verify(files)
        log("  found, checksums agree")
        return root
    sources = [
        (f"copying from {fashion_mnist.SYSTEM}", _copied),
        (f"unpacking the Debian package {fashion_mnist.DEBIAN}", _from_debian),
        ("downloading from torchvision's mirror", _from_mirror),
    ]
    names = ", ".join(f"{name}.gz" for name in fashion_mnist.SHA256)
    by_hand = f"Put {names} in {root} by hand (gzipped or not) and try again."
    tried = [f"{root}: the four files are not there"]
    first_that_works("fashion_mnist", root / "fashion-mnist", sources, tried, by_hand, log)
    return root


def _four_files(folder: Path) -> Iterable[Path]:
    files = fashion_mnist.find([folder])
    if files is None:
        raise FileNotFoundError(f"the four files are not in {folder}")
    fashion_mnist.verify(files)
    return files.values()


def _copied(folder: Path) -> Iterable[Path]:
    return [Path(shutil.copy(path, folder)) for path in _four_files(fashion_mnist.SYSTEM)]


def _from_debian(folder: Path) -> Iterable[Path]:
    unpacked = debian.by_apt(fashion_mnist.DEBIAN, folder)
    return _four_files(unpacked / fashion_mnist.SYSTEM.relative_to("/"))


def _from_mirror(folder: Path) -> Iterable[Path]:
    torchvision.datasets.FashionMNIST(folder, download=True)
    return _four_files(folder)


# --------------------------------------------------------------------------------- textures


def _textures(root: Path, log: Log, packages: Sequence[str] = textures.DEFAULT) -> Path:
    for package in packages:
        if package not in textures.DEBIAN:
            raise not_among("packages", "no package of textures", package, textures.DEBIAN)
    for package in packages:
        _package_of_textures(package, root, log)
    return root


def _package_of_textures(package: str, root: Path, log: Log) -> None:
    """Its pack: the one that is there, or built from an archive that `archives_of` finds."""
    target, deb = root / "textures", textures.DEBIAN[package]
    pack = target / f"{package}.npz"
    log(f"textures: looking for {pack}")
    if pack.is_file():
        textures.load(package, [root])
        log("  found, whole")
        return

    def built(archive: Callable[[Path], Path], folder: Path) -> Iterable[Path]:
        path = folder / pack.name
        textures.build(package, archive(folder), path, log)
        return [path]

    found = archives_of(deb, [root, target], log)
    sources = [(say, partial(built, archive)) for say, archive in found]
    file, of_package = (Path(path).name for path in (deb.file, deb.pool))
    by_hand = (
        f"Put {file} (of the game, or of Debian's {of_package}) or that .deb itself in {target}"
    )
    by_hand += " by hand and try again."
    tried = [f"{pack}: not there"]
    first_that_works(f"textures of {package}", target, sources, tried, by_hand, log)


def archives_of(
    deb: debian.Package, places: Sequence[Path], log: Log
) -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """(in words, a function that puts what is wanted in a folder or finds it), in order.

    Args:
        places: folders in which a user may have put it, or the package.
    """
    parts = Path(deb.file).parts
    tails = [Path(*parts[start:]) for start in range(len(parts))]  # from the whole to the name
    for path in [debian.ROOT / deb.file, *(place / tail for place in places for tail in tails)]:
        if path.exists():
            yield f"reading {path}", lambda _, path=path: path
    for path in (path for place in places for path in sorted(place.glob(f"{deb.name}_*.deb"))):
        yield f"unpacking {path}", partial(debian.extract, path, deb.file)
    about = f"the Debian package {deb.name} ({deb.megabytes} MB)"
    yield f"downloading {about} by apt-get", lambda to: debian.by_apt(deb.name, to) / deb.file

    def downloaded(archive: str, folder: Path) -> Path:
        package = debian.download(deb, archive, folder, log)
        return debian.extract(package, deb.file, folder)

    for archive in debian.ARCHIVES:
        yield f"downloading {about} from {archive}", partial(downloaded, archive)


# ------------------------------------------------------------------------------ torchvision


def _from_torchvision(source: type) -> Callable[[Path, Log], Path]:
    """torchvision downloads, verifies and unpacks; what is whole already is left as it is."""

    def obtain(root: Path, log: Log) -> Path:
        log(f"{source.__name__}: looking in {root}, else downloading there")
        try:
            with made_folder(root):
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
    "textures": _textures,
    "cifar10": _from_torchvision(torchvision.datasets.CIFAR10),
    "cifar100": _from_torchvision(torchvision.datasets.CIFAR100),
    "stl10": _from_torchvision(torchvision.datasets.STL10),
}
