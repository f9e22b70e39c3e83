"""A look at every image of a data set beforehand: which are damaged, tiny, or there twice."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from ssl_zoo.data.datasets.folder import ImageFolder
from ssl_zoo.data.image.decode import BadImage
from ssl_zoo.data.source import ImageSet
from ssl_zoo.data.workers import Workers
from ssl_zoo.system.text import one_line

CHUNK = 32  # images a process looks at before it tells
UNDECODABLE, DAMAGED = "not to be decoded", "cut short or damaged: the header is read, no more"
TWICE, LEAKS = "the same contents more than once", "the same contents in the test split as well"


class Look(NamedTuple):
    """What one image is: its shorter side in pixels and its contents, or why it cannot be read."""

    side: int = 0
    digest: bytes = b""
    kind: str = ""
    problem: str = ""


class Looking:
    """Of a data set's images, by positions; what a worker does."""

    def __init__(self, dataset: ImageSet):
        self.dataset = dataset
        self.files = isinstance(dataset, ImageFolder)

    def __call__(self, positions: list[int]) -> list[Look]:
        return [self._look(torch.tensor([i])) for i in positions]

    def _look(self, one: torch.Tensor) -> Look:
        try:
            pixels = self.dataset.fetch(one)[0]  # [C, H, W]
        except BadImage as error:
            return Look(kind=self._kind(one), problem=str(error))
        if self.files:
            contents = Path(self.dataset.paths(one)[0]).read_bytes()
        else:
            contents = repr(pixels.shape).encode() + pixels.contiguous().numpy().tobytes()
        return Look(min(pixels.shape[1:]), hashlib.blake2b(contents, digest_size=16).digest())

    def _kind(self, one: torch.Tensor) -> str:
        try:
            self.dataset.shapes(one)
        except (BadImage, NotImplementedError):
            return UNDECODABLE
        return DAMAGED


def inspect(
    splits: dict[str, ImageSet],
    smallest: int,
    processes: int,
    shown: Callable[[Iterable[list[Look]], str, int], Iterable[list[Look]]],
) -> dict[str, list[str]]:
    """What is wrong -> a line for each image, or for images of the same contents.

    Args:
        splits: by name, the one that tests as 'test'; whether the others overlap is not looked at.
        smallest: a shorter side of fewer pixels is told.
        processes: 0: this one.
        shown: shows the progress of (an iterable, of what, of how many items).
    """
    workers, looks = Workers(), {name: Looking(dataset) for name, dataset in splits.items()}
    for look in looks.values():
        workers.add(look)
    tiny = f"smaller than {smallest} pixels"
    found: dict[str, list[str]] = {k: [] for k in (UNDECODABLE, DAMAGED, tiny, TWICE, LEAKS)}
    digests: dict[str, list[bytes]] = {}
    for name, look in looks.items():
        chunks = [c.tolist() for c in torch.arange(len(look.dataset)).split(CHUNK)]
        seen = workers.map(look, chunks, processes) if processes else map(look, chunks)
        digests[name] = []
        for i, one in enumerate(_flat(shown(seen, name, len(chunks)))):
            digests[name].append(one.digest)
            if one.problem:
                found[one.kind].append(one_line(f"{name}: {one.problem}"))
            elif one.side < smallest:
                found[tiny].append(f"{_named(name, look.dataset, [i])} ({one.side})")
    count = Counter(digest for of in digests.values() for digest in of if digest)
    members = {name: _repeated(of, count) for name, of in digests.items()}
    for digest in dict.fromkeys(d for of in members.values() for d in of):
        groups = {n: _named(n, splits[n], of[digest]) for n, of in members.items() if digest in of}
        if "test" in groups and len(groups) > 1:
            found[LEAKS].append(" = ".join(groups.values()))
        for name, text in groups.items():
            if len(members[name][digest]) > 1:
                found[TWICE].append(text)
    return {kind: lines for kind, lines in found.items() if lines}


def _flat(chunks: Iterable[list[Look]]) -> Iterator[Look]:
    for chunk in chunks:
        yield from chunk


def _repeated(digests: list[bytes], count: Counter[bytes]) -> dict[bytes, list[int]]:
    """Positions by contents, of those that are counted more than once."""
    positions: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests):
        if count[digest] > 1:
            positions.setdefault(digest, []).append(i)
    return positions


def _named(split: str, dataset: ImageSet, positions: list[int]) -> str:
    names = map(one_line, dataset.names(torch.tensor(positions)))
    return " = ".join(f"{split}: {name}" for name in names)
