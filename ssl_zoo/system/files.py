"""Files that are whole or not there, and paths that a user has written."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def user_path(text: str | os.PathLike) -> Path:
    """`~` is the home folder; where nobody has that home, a name like any other."""
    return Path(os.path.expanduser(text))


def check_target(option: str, path: Path | None, *suffixes: str) -> None:
    """Raises ValueError for a file that could not be written once all else is done."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir() or (suffixes and path.suffix not in suffixes):
        ending = f" that ends in {' or '.join(suffixes)}," if suffixes else ""
        raise ValueError(f"{option} {path}: expected a file{ending} in a folder that exists")


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Makes a folder and those above it; of what is new no empty folder stays after an error."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in new:
            with suppress(OSError):  # it holds something
                folder.rmdir()
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An error of the system inside says which file it is of: of a full disk it does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside, to be written; it takes `path`'s place whole if nothing was raised."""
    staged = path.with_name(path.name + ".tmp")
    try:
        with writing(path):
            yield staged
            os.replace(staged, path)
    except BaseException:
        with suppress(OSError):  # what fills a disk would leave no room for anything else
            staged.unlink()
        raise


def write_text(path: str | Path, text: str) -> None:
    """In UTF-8, with an escape for what that cannot hold, which JSON and YAML read back."""
    with replacing(Path(path)) as staged:
        staged.write_text(text, encoding="utf-8", errors="backslashreplace")


def append_line(path: Path, line: str) -> None:
    """As `write_text` does, at the end of a file."""
    with writing(path), open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(line + "\n")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """JSON that can be read and compared: a line for each item of what a block or list holds."""
    blocks = []
    for name, value in data.items():
        text = _json(value)
        if isinstance(value, dict) and value:
            text = _on_lines("{}", [f"{_json(key)}: {_json(of)}" for key, of in value.items()])
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            text = _on_lines("[]", map(_json, value))
        blocks.append(f" {_json(name)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "{\n" + ",\n".join(blocks) + "\n}\n")


def _on_lines(brackets: str, items: Iterable[str]) -> str:
    inside = ",\n  ".join(items)
    return f"{brackets[0]}\n  {inside}\n {brackets[1]}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file; a last line that a kill cut short is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(x) for x in text.splitlines(keepends=True) if x.endswith("\n")]


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal; memory stays small."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
