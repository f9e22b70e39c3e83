"""Files out of Debian packages, which are unpacked and not installed: no root's rights needed."""

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote
from urllib.request import urlopen

from ssl_zoo.system.text import show

ROOT = Path("/")  # where packages are installed
# Roots of archives; the second has every version that the first ever had, and is slow.
ARCHIVES = (
    "https://deb.debian.org/debian",
    "https://snapshot.debian.org/archive/debian/20230612T000000Z",
)
TIMEOUT = 3600  # seconds for one command
SILENCE = 60  # seconds until an archive that says nothing is given up
STEP = 50_000_000  # bytes between two lines about a download


@dataclass(frozen=True)
class Package:
    """A package, and the one file or folder in it that is wanted.

    Attributes:
        file: where an installation puts it, without the leading /.
        pool: the package's path below an archive's root.
        sha256: of the package.
        megabytes: of the package.
    """

    name: str
    file: str
    pool: str
    sha256: str
    megabytes: int


def by_apt(name: str, folder: Path) -> Path:
    """The folder that holds what is in a package, in this system's version; below `folder`.

    Raises:
        FileNotFoundError: no Debian or Ubuntu system.
        RuntimeError: a command failed; says what it said.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} is not there (not a Debian or Ubuntu system)")
    try:
        _run(["apt-get", "download", name], folder)
    except RuntimeError:
        # Minimal images come without package lists. A private copy needs no root's rights either.
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True)
        private = ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
        _run(["apt-get", *private, "update"], folder)
        _run(["apt-get", *private, "download", name], folder)
    (package,) = folder.glob(f"{name}_*.deb")
    _run(["dpkg", "-x", package.name, "unpacked"], folder)
    package.unlink()
    return folder / "unpacked"


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or 'failed'}")


def download(package: Package, archive: str, folder: Path, log: Callable = show) -> Path:
    """A .deb out of an archive.

    Raises:
        OSError, http.client.HTTPException: the archive does not answer, or not to its end.
        ValueError: it sent something else.
    """
    url = f"{archive}/{quote(package.pool)}"
    path = folder / PurePosixPath(package.pool).name
    digest, done = hashlib.sha256(), 0
    with urlopen(url, timeout=SILENCE) as answer, open(path, "wb") as file:
        while block := answer.read(2**20):
            file.write(block)
            digest.update(block)
            done += len(block)
            if done // STEP > (done - len(block)) // STEP:
                log(f"  {done / 1e6:.0f} of {package.megabytes} MB")
    if digest.hexdigest() != package.sha256:
        found = f"found {done} bytes of sha256 {digest.hexdigest()}"
        raise ValueError(f"{url}: {found}, expected sha256 {package.sha256}")
    return path


def extract(deb: Path, name: str, folder: Path) -> Path:
    """One file of a .deb, or a folder with all in it, in Python alone; its path in `folder`.

    A .deb is an `ar` archive (8 bytes of magic; each member a header of 60 bytes, its bytes and
    maybe one more to make them even) whose member data.tar.* holds the files.

    Raises:
        ValueError: no .deb or a damaged one, of a compression that Python lacks (zstd, Ubuntu's),
            or one without the file.
    """
    found = folder / PurePosixPath(name).name
    with open(deb, "rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise ValueError(f"{deb}: not a Debian package")
        member = ""
        try:
            while not member.startswith("data.tar"):
                header = file.read(60)
                if len(header) < 60:
                    raise ValueError("no data.tar in it")
                member, size = header[:16].decode().rstrip(" /"), int(header[48:58])
                if not member.startswith("data.tar"):
                    file.seek(size + size % 2, 1)
            with tarfile.open(fileobj=file, mode="r|*") as files:  # a stream, from here on
                for entry in files:
                    inside = PurePosixPath(entry.name)  # ./ before it goes
                    if (
                        not entry.isfile()
                        or not inside.is_relative_to(name)
                        or ".." in inside.parts
                    ):
                        continue
                    path = found / inside.relative_to(name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with open(path, "wb") as out:
                        shutil.copyfileobj(files.extractfile(entry), out, 2**20)
                    if path == found:  # a file, and there is one of its name
                        return found
        except (ValueError, EOFError, tarfile.TarError) as error:
            raise ValueError(f"{deb}: {member} cannot be unpacked ({error})") from error
    if found.is_dir():
        return found
    raise ValueError(f"{deb}: has no {name}")
