"""Files that are whole or not there."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside, to be written; it takes `path`'s place whole if nothing was raised."""
    staged = path.with_name(path.name + ".tmp")
    yield staged
    os.replace(staged, path)


def write_text(path: str | Path, text: str) -> None:
    with replacing(Path(path)) as staged:
        staged.write_text(text, encoding="utf-8")


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
