"""Which files of a folder are images: one set of rules for all that reads folders."""

import heapq
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ssl_zoo.data.image import decode


@dataclass
class Found:
    """What lies below a folder; paths are relative to it.

    Attributes:
        images: files that decoding is for, sorted.
        hidden: what begins with a dot, and macOS's __MACOSX: not looked into.
        repeated: links to folders that are read elsewhere or hold `folder` itself: not followed.
        others: how many files of other kinds there are, by the ends of their names.
    """

    images: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def ignored(self) -> list[str]:
        """What was not read, a phrase a kind."""
        phrases = []
        if self.hidden:
            phrases.append(f"{counted(len(self.hidden), 'hidden name')} ({some(self.hidden)})")
        if self.repeated:
            links = counted(len(self.repeated), "link")
            phrases.append(f"{links} to folders that are read already ({some(self.repeated)})")
        kinds = sorted(self.others.items(), key=lambda kind: (-kind[1], kind[0]))
        for suffix, count in kinds[:5]:
            phrases.append(f"{counted(count, 'file')} {suffix or 'without a suffix'}")
        if more := sum(count for _, count in kinds[5:]):
            phrases.append(f"{counted(more, 'file')} of other kinds")
        return phrases


def scan(folder: Path) -> Found:
    """Every image below `folder`; each real folder is entered once, whatever links lead there.

    Links are followed last, in the order of their names, so an image that really lies below
    `folder` is found where it lies. A folder that cannot be read is an OSError.
    """
    found, seen, suffixes = Found(), _above(folder), decode.suffixes()
    pending, links = [""], []  # the links are a heap
    while pending or links:
        place = pending.pop() if pending else heapq.heappop(links)
        if (identity := _identity(folder / place)) in seen:
            found.repeated.append(place)
            continue
        seen.add(identity)
        for entry in os.scandir(folder / place):
            path = os.path.join(place, entry.name)
            if _is_hidden(entry.name):
                found.hidden.append(path)
            elif _is_folder(entry):
                heapq.heappush(links, path) if entry.is_symlink() else pending.append(path)
            elif (suffix := _suffix(entry.name)) in suffixes:
                found.images.append(path)
            else:
                found.others[suffix] += 1
    for paths in (found.images, found.hidden, found.repeated):
        paths.sort()
    return found


def class_names(folder: Path) -> list[str]:
    """The folders directly in `folder`, sorted, but for those that `scan` never enters."""
    above = _above(folder) | {_identity(folder)}
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if not _is_hidden(entry.name) and _is_folder(entry) and _identity(entry.path) not in above
    )


def holds_images(folder: Path) -> bool:
    """Whether images lie directly in it."""
    return folder.is_dir() and any(
        _suffix(entry.name) in decode.suffixes()
        for entry in os.scandir(folder)
        if not _is_hidden(entry.name) and not _is_folder(entry)
    )


def alike(names: Iterable[str], others: Collection[str]) -> str:
    """The first of `names` that is one of `others` but for what most eyes do not see, or ''."""
    for difference, fold in (("unicode normalization", _normal), ("case", _caseless)):
        folded = {fold(other): other for other in others}
        for name in names:
            other = folded.get(fold(name), name)
            if other != name:
                return f"{name!a} and {other!a} differ in {difference} alone"
    return ""


def counted(count: int, what: str, plural: str = "s") -> str:
    return f"{count:,} {what}{plural if count != 1 else ''}"


def some(names: Collection[str], most: int = 3) -> str:
    """The first of some names, quoted."""
    shown = ", ".join(repr(name) for name, _ in zip(names, range(most), strict=False))
    return shown + (", ..." if len(names) > most else "")


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return _normal(_normal(name).casefold())


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_folder(entry: os.DirEntry) -> bool:
    """Or a link to one; of a link in a circle `entry.is_dir` would raise an error."""
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _above(folder: Path) -> set[tuple[int, int]]:
    """The folders that hold `folder`, however far up."""
    return {_identity(parent) for parent in folder.resolve().parents}
