"""Features of all images below a folder: in bounded memory, and what is done survives a kill."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.config import differences
from ssl_zoo.data.files import counted, scan
from ssl_zoo.data.image import Samples, Views, decode
from ssl_zoo.data.image.decode import BadImage, Decoding
from ssl_zoo.data.loader import WorkerCount, automatic_workers
from ssl_zoo.data.workers import Workers
from ssl_zoo.engine.precision import autocast
from ssl_zoo.evaluation.features import BATCH_SIZE, Precision
from ssl_zoo.ops.weights import digest_of_weights
from ssl_zoo.runs.lock import Lock
from ssl_zoo.search import table
from ssl_zoo.search.table import Embeddings
from ssl_zoo.system import distributed
from ssl_zoo.system.files import read_lines, sha256, write_text
from ssl_zoo.system.text import show

if TYPE_CHECKING:
    from ssl_zoo.api import Embedder

FORMAT = 1
# Of a header: where things lay, which changes no feature, and how well an index happens to do.
NOT_COMPARED = ("run", "folder", "index")
UNCOMPRESSED = (".bmp", ".dib", ".pbm", ".pgm", ".ppm", ".pnm", ".tif", ".tiff")  # most of them


class Read(NamedTuple):
    """What a worker makes of some positions."""

    images: Tensor  # uint8 [n, C, h, w]
    unreadable: dict[int, str]  # why, by position, of those that are not among them


NOTHING = Read(torch.empty(0), {})


class Reading:
    """Images of a folder, brought to one size by a clean view: what a worker does.

    Where the view leaves sizes as they are, images have to have that of the first.
    """

    def __init__(self, folder: Path, names: list[str], clean: Views, how: Decoding):
        self.folder, self.clean, self.how = folder, clean, how
        # Bytes in one array, as `ImageFolder` keeps them.
        self.names = np.array([os.fsencode(name) for name in names])
        self.resizes = any(op.one_size for _, op in clean.ops_of(0))
        self.shape = None if self.resizes else self._first_shape()

    def __call__(self, positions: range) -> Read:
        images, unreadable = [], {}
        for position in positions:
            try:
                images.append(self._image(position))
            except BadImage as error:
                unreadable[position] = str(error)
        return Read(torch.cat(images) if images else NOTHING.images, unreadable)

    def views(self, images: Tensor) -> Tensor:
        """The clean view, float32 [n, C, h, w], of what was read; on any device."""
        return self.clean.make([images], self.resizes, _samples(len(images)))[0]

    def _path(self, position: int) -> str:
        return os.path.join(self.folder, os.fsdecode(bytes(self.names[position])))

    def _image(self, position: int) -> Tensor:
        """uint8 [1, C, h, w]."""
        path = self._path(position)
        image = decode.pixels(path, how=self.how)
        if self.resizes:
            return self.clean.bring_to_one_size(0, [image], _samples(1))
        if tuple(image.shape) != self.shape:
            (height, width), (h, w) = image.shape[1:], self.shape[1:]
            size = f"{width} x {height} pixels, the first {w} x {h}"
            raise BadImage(f"{path}: {size}, and the run's data.clean leaves sizes as they are")
        return image[None]

    def _first_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of the first that can be read."""
        for position in range(len(self.names)):
            try:
                return decode.shape(self._path(position), self.how)
            except BadImage:
                continue
        return None


def _samples(count: int) -> Samples:
    """Nothing of a clean view depends on whose image it is."""
    return Samples(0, 0, torch.zeros(count, dtype=torch.int64))


class Unfinished:
    """What there is of a file that is being made: in FILE.part, until the file takes its place.

    Attributes:
        done: images that were looked at, in their order.
        rows: of them, those that have features.
        unreadable: why the others have none, by name.
    """

    def __init__(self, out: Path, header: Mapping[str, Any], width: int):
        self.folder = out.with_name(f"{out.name}.part")
        self.state, self.features = self.folder / "state.json", self.folder / "features.f32"
        self.left_out = self.folder / "unreadable.jsonl"
        self.header, self.width = dict(header), width
        self.done, self.rows, self.unreadable = 0, 0, {}

    def __enter__(self) -> Unfinished:
        """FileExistsError: it is of other images or another network, or someone is at work."""
        self.lock = Lock(self.folder / ".lock")
        self.lock.acquire()
        try:
            if self.state.exists():
                self._go_on()
            # Without what came after the state.
            write_text(self.left_out, _lines(self.unreadable))
            self.file = open(self.features, "ab")
            self.file.truncate(self.rows * self.width * 4)
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        self.file.close()
        if error is not None and not self.rows:  # there is nothing to go on from
            shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()

    def add(self, features: np.ndarray, unreadable: Mapping[str, str], done: int) -> None:
        """A batch's [n, F], in order."""
        self.file.write(features.astype("<f4").tobytes())
        self.file.flush()
        os.fsync(self.file.fileno())  # before the state says that it is there
        self.done, self.rows = done, self.rows + len(features)
        self.unreadable |= unreadable
        with open(self.left_out, "a", encoding="utf-8") as file:
            file.write(_lines(unreadable))
        known = {"done": self.done, "rows": self.rows, "unreadable": len(self.unreadable)}
        write_text(self.state, json.dumps({"header": self.header, **known}))

    def _go_on(self) -> None:
        afresh = f"delete {self.folder}, which starts afresh"
        kept = table.read_json(self.state, afresh)
        check_same(self.folder, kept["header"], self.header)
        self.done, self.rows = kept["done"], kept["rows"]
        lines = read_lines(self.left_out)[: kept["unreadable"]]
        self.unreadable = {line["name"]: line["why"] for line in lines}
        there = self.features.stat().st_size // (4 * self.width), len(self.unreadable)
        if there[0] < self.rows or self.rows + there[1] != self.done:
            raise ValueError(f"{self.folder}: damaged: fewer rows than it tells of; {afresh}")

    def finish(self, out: Path, folder: Path, names: list[str]) -> dict[str, Any]:
        """Puts the file in its place; its header. ValueError where no image could be read."""
        if not self.rows:
            reason = next(iter(self.unreadable.values()))
            raise ValueError(
                f"{folder}: none of {counted(len(names), 'image')} can be read: {reason}"
            )
        header = {**self.header, "unreadable": self.unreadable}
        paths = [name for name in names if name not in self.unreadable]
        features = np.memmap(self.features, "<f4", "r", shape=(self.rows, self.width))
        table.save(out, Embeddings(header, paths, features))
        shutil.rmtree(self.folder, ignore_errors=True)  # the file is whole, whatever stays of this
        return header


def _lines(unreadable: Mapping[str, str]) -> str:
    pairs = ({"name": name, "why": why} for name, why in unreadable.items())
    return "".join(json.dumps(pair) + "\n" for pair in pairs)


def embed_images(
    embedder: Embedder,
    folder: Path,
    out: Path,
    *,
    batch_size: int | None = None,
    workers: WorkerCount = "auto",
    precision: Precision = "fp32",
    told: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = show,
) -> dict[str, Any]:
    """Writes the features of every image below `folder` to `out`, and returns the file's header.

    The same call goes on where an earlier one was ended, by whatever: with the same batch size on
    the same machine the file is the same to the bit. A finished file of the same is kept. Images
    that cannot be read are left out; the header has them under `unreadable`.

    All ranks call it. They take turns batch by batch, and rank 0 writes what they found in the
    order of the images, so the file is the same whatever the world size, also of a call that goes
    on.

    Args:
        batch_size: of a rank; None: of evaluations.
        workers: processes of a rank that read images; 0: the rank itself.
        precision: of the network's pass; what is written is float32.
        told: gets (images done, images there are), after each batch of every rank.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        FileExistsError: `out`, or what there is of it, is of other images or another network.
        ImportError: see `table.check_out`.
        ValueError: likewise; no image can be read, or the network's output is not [n, F].
    """
    device = next(embedder.parameters()).device
    about = {"run": embedder.about["path"], **identity(embedder), "precision": precision}
    names, header, kept = distributed.attempt(partial(_look, folder, out, about, log))
    if kept is not None:
        return kept
    total, size = len(names), batch_size or BATCH_SIZE[device.type]
    if workers == "auto":
        workers = automatic_workers(False, device)
    reading = Reading(folder, names, embedder.clean, embedder.decoding)
    unfinished = Unfinished(out, header, embedder.num_features)
    with ExitStack() as stack:
        done = distributed.attempt(lambda: stack.enter_context(unfinished).done)
        if done and distributed.is_main():
            log(f"{unfinished.folder}: {counted(done, 'image')} were done before")
        batches = [range(at, min(at + size, total)) for at in range(done, total, size)]
        world = distributed.world()
        share = batches[distributed.rank() :: world]
        read = Workers().map(reading, share, workers) if workers else map(reading, share)
        for first in range(0, len(batches), world):
            turn = batches[first : first + world]
            # In the last turn there may be none for this rank.
            images, unreadable = next(read) if distributed.rank() < len(turn) else NOTHING
            found = _features(embedder, reading, images.to(device), precision)
            features, reasons = distributed.to_main(found), distributed.collect(unreadable)
            if features is not None:
                why = {names[at]: reason for of in reasons for at, reason in of.items()}
                unfinished.add(features.numpy(), why, turn[-1].stop)
                told(turn[-1].stop, total)
        return distributed.attempt(partial(unfinished.finish, out, folder, names))


def _look(
    folder: Path, out: Path, about: Mapping[str, Any], log: Callable[[str], None]
) -> tuple[list[str], dict[str, Any], dict[str, Any] | None]:
    """Names of the images, the header of their features, and that of a finished file of the same.

    Raises as `embed_images`, before anything is read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = scan(folder)
    ignored = f"; not read: {', '.join(found.ignored())}" if found.ignored() else ""
    if not found.images:
        kinds = ", ".join(decode.formats())
        raise FileNotFoundError(f"{folder}: no image ({kinds}) in this folder{ignored}")
    names = found.images
    table.check_out(out, names)
    log(f"{folder}: {counted(len(names), 'image')}{ignored}")
    where = {"folder": str(folder.resolve()), "images": _digest(folder, names)}
    header = {"format": FORMAT, **about, **where}
    if not out.exists():
        return names, header, None
    kept = table.header_of(out)
    check_same(out, kept, header)
    log(f"{out}: there already")
    if kept["folder"] != header["folder"]:
        log(f"{out}: its images lie in {header['folder']} now")
        kept = {**kept, "folder": header["folder"]}
        table.save(out, table.load(out)._replace(header=_but(kept, "paths")))
    return names, header, kept


def _but(header: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in header.items() if key != name}


@torch.inference_mode()
def _features(embedder: Embedder, reading: Reading, images: Tensor, precision: Precision) -> Tensor:
    """[n, F] float32 on the CPU, of uint8 [n, C, h, w], of which there may be none."""
    if not len(images):
        return torch.empty(0, embedder.num_features)
    views = reading.views(images)
    with autocast(images.device, precision):
        features = embedder(views).float().cpu()
    if tuple(features.shape) != (expected := (len(images), embedder.num_features)):
        raise ValueError(f"a backbone must give {list(expected)}; found {list(features.shape)}")
    return features


def identity(embedder: Embedder) -> dict[str, Any]:
    """What a feature depends on besides the image, wherever the network lies: plain values."""
    about = embedder.about
    weights = digest_of_weights(embedder.backbone)
    return {"network": about["network"], "weights": weights, "clean": about["clean"]}


def check_same(path: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises FileExistsError where a header says that the features are of something else."""
    pair = [
        {key: of.get(key) for key in wanted if key not in NOT_COMPARED} for of in (kept, wanted)
    ]
    if lines := list(differences(*pair)):
        problem = "holds features of other images or of another network"
        hint = "delete it, or give another --out"
        raise FileExistsError("\n  ".join([f"{path} {problem}; {hint}:", *lines]))


def _digest(folder: Path, names: list[str]) -> str:
    """Of the images' names and sizes in bytes; where pixels are not compressed, of all bytes."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor(16) as pool:  # over a network each is a wait
        sizes = pool.map(_contents, (folder / name for name in names))
        for name, size in zip(names, sizes, strict=True):
            digest.update(os.fsencode(f"{name}\0{size}\0"))
    return digest.hexdigest()[:12]


def _contents(path: Path) -> int | str:
    """What changes with an image; -1 of a link that leads nowhere, which is told as unreadable."""
    try:
        return sha256(path) if path.suffix.lower() in UNCOMPRESSED else os.stat(path).st_size
    except OSError:
        return -1
