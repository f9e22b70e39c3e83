"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: str | Path, text: str) -> None:
    """Writes beside and renames, so that a reader finds the old text or the whole new one."""
    path = Path(path)
    staged = path.with_name(path.name + ".tmp")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file; a last line that a kill cut short is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(x) for x in text.splitlines(keepends=True) if x.endswith("\n")]
