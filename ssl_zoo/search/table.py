"""Features of images in a file: Parquet, or .npy with a .json of their paths beside it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ssl_zoo.config import ConfigError
from ssl_zoo.system.files import check_target, replacing, write_text
from ssl_zoo.system.text import one_line

KINDS = (".npy", ".parquet")
KEY = b"ssl_zoo"  # of the header in Parquet's metadata
ROWS_AT_ONCE = 16384  # of a group of rows in Parquet
WRITTEN_BY = "expected what `ssl-zoo embed` writes"


class Embeddings(NamedTuple):
    """What a file holds.

    Attributes:
        header: which network made them of which images, plain values.
        paths: of the n images, below the folder.
        features: [n, F] float32.
    """

    header: dict[str, Any]
    paths: list[str]
    features: np.ndarray


def check_out(path: Path, names: Collection[str]) -> None:
    """Raises for a file that could not be written once all else is done.

    ValueError: another suffix, no folder, or names that Parquet cannot hold. ImportError: pyarrow
    is not there.
    """
    check_target("--out", path, *KINDS)
    if path.suffix == ".parquet":
        _parquet()
        for name in names:
            if any("\ud800" <= character <= "\udfff" for character in name):
                problem = "Parquet holds text in UTF-8, which a file's name is not"
                expected = "--out FILE.npy, or another name"
                raise ConfigError("--out", problem, found=one_line(name), expected=expected)


def save(path: Path, embeddings: Embeddings) -> None:
    """Writes a file, whole or not at all; features may be memory-mapped."""
    header, paths, features = embeddings
    if path.suffix == ".npy":
        # First: the .npy says that both are there.
        write_text(_beside(path), json.dumps({**header, "paths": paths}, indent=1) + "\n")
        with replacing(path) as staged, open(staged, "wb") as file:
            np.save(file, features)
        return
    pq = _parquet()
    import pyarrow as pa

    width = features.shape[1]
    columns = {"path": pa.string(), "features": pa.list_(pa.float32(), width)}
    schema = pa.schema(columns, metadata={KEY: json.dumps(header)})
    with replacing(path) as staged, pq.ParquetWriter(staged, schema) as writer:
        for start in range(0, len(paths), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            numbers = pa.array(np.asarray(features[rows]).reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(numbers, width)
            writer.write_table(pa.table([pa.array(paths[rows]), lists], schema=schema))


def load(path: Path) -> Embeddings:
    """What `save` wrote; of .npy the features are memory-mapped.

    Raises FileNotFoundError, or ValueError for what is damaged or is no such file.
    """
    header = header_of(path)
    with _naming(path):
        if path.suffix == ".npy":
            paths, features = header.pop("paths"), np.load(path, mmap_mode="r")
        else:
            table = _parquet().read_table(path)
            paths, lists = table["path"].to_pylist(), table["features"].combine_chunks()
            features = lists.flatten().to_numpy().reshape(len(paths), -1)
    if features.ndim != 2 or features.dtype != np.float32 or len(features) != len(paths):
        found = f"{features.dtype} {list(features.shape)} for {len(paths)} paths"
        raise ValueError(f"{path}: damaged: {found}, expected float32 [{len(paths)}, F]")
    return Embeddings(header, paths, features)


def header_of(path: Path) -> dict[str, Any]:
    """Of a file that `save` wrote; of .npy with its `paths`. Raises as `load` does."""
    if path.suffix not in KINDS:
        raise ValueError(f"{path}: {WRITTEN_BY}, {' or '.join(KINDS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `ssl-zoo embed RUN FOLDER --out {path}`")
    if path.suffix == ".npy":
        return read_json(_beside(path), WRITTEN_BY)
    with _naming(path):
        metadata = _parquet().read_schema(path).metadata or {}
    if KEY not in metadata:
        raise ValueError(f"{path}: {WRITTEN_BY}; its metadata say nothing of that")
    return json.loads(metadata[KEY])


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """A file that this package wrote. FileNotFoundError, or ValueError if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {expected}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); {expected}") from error
    if not isinstance(data, Mapping):
        raise ValueError(f"{path}: {expected}")
    return dict(data)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _parquet() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as error:
        hint = "pip install 'ssl_zoo[search]', or write a file that ends in .npy"
        raise ImportError(f"Parquet files take pyarrow: {hint}") from error
    return pyarrow.parquet


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever a damaged file raises inside is a ValueError that names it."""
    try:
        yield
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise ValueError(f"{path}: damaged ({one_line(error)}); {WRITTEN_BY}") from error
