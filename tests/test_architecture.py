"""Imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ssl_zoo"
LOWEST = {"system", "config", "ops"}
PARTS = LOWEST | {"core"}
MAY_IMPORT = {
    "system": set(),
    "config": {"system"},
    "ops": {"config", "system"},
    "core": LOWEST,
    "backbones": PARTS,
    "heads": PARTS,
    "memory": PARTS,
    "losses": PARTS | {"memory"},
    "methods": PARTS | {"backbones", "heads", "losses", "memory"},
    "data": PARTS,
    "runs": LOWEST,
    "engine": PARTS | {"runs"},
    "evaluation": PARTS | {"data", "engine", "runs"},
    "experiment": PARTS
    | {"backbones", "data", "engine", "evaluation", "heads", "losses", "memory", "methods", "runs"},
    "study": LOWEST | {"engine", "evaluation", "experiment", "runs"},
    "cli": None,
}


def imports(path: Path) -> set[str]:
    """First-level names of ssl_zoo that a file imports when it is imported."""
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            parts = (node.module or "").split(".")
            if parts[0] == "ssl_zoo":
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {parts[1] for parts in names if parts[0] == "ssl_zoo" and len(parts) > 1}
    return found


def files() -> list[Path]:
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE or path.stem != "__init__"
    ]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = MAY_IMPORT[layer]
    if allowed is None:
        return
    extra = imports(path) - allowed - {layer}
    assert not extra, f"{layer} may not import {', '.join(sorted(extra))}"


def test_the_trainer_knows_no_particular_method():
    assert not imports(PACKAGE / "engine" / "trainer.py") & {"methods", "memory", "losses", "data"}
