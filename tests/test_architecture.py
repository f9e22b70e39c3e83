"""Imports point one way."""

from __future__ import annotations

import ast
import re
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
    "transfer": PARTS | {"backbones", "data", "engine", "evaluation", "experiment", "runs"},
    "weights": LOWEST | {"backbones", "data", "engine", "evaluation", "experiment"},
    "study": LOWEST | {"engine", "evaluation", "experiment", "runs"},
    "api": LOWEST | {"data", "engine", "experiment", "runs", "weights"},
    "search": LOWEST | {"data", "evaluation", "engine", "runs"},
    "testing": None,
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


def test_no_module_imports_itself_in_a_circle_not_even_for_types():
    graph = {path: set(module_imports(path)) for path in files()}
    seen: dict[Path, int] = {}  # 1 while its imports are followed, then 2

    def follow(path: Path, way: list[Path]) -> None:
        assert seen.get(path) != 1, " -> ".join(p.name for p in [*way, path])
        if path in seen:
            return
        seen[path] = 1
        for other in graph.get(path, ()):
            follow(other, [*way, path])
        seen[path] = 2

    for path in graph:
        follow(path, [])


def module_imports(path: Path) -> set[Path]:
    """Files of the package that a file imports, at its top or for types.

    A name out of a package counts as the module of that name, else as the package's own file. What
    functions import when they are called, and what packages import by listing their folder, is
    not seen: such modules import nothing of their package by its own name.
    """
    found = set()
    for node in ast.parse(path.read_text()).body:
        inside = node.body if isinstance(node, ast.If) else [node]
        for statement in inside:
            if not isinstance(statement, ast.ImportFrom) or not statement.module:
                continue
            parts = statement.module.split(".")
            if parts[0] != "ssl_zoo":
                continue
            place = PACKAGE.joinpath(*parts[1:])
            for alias in statement.names:
                module = place / f"{alias.name}.py"
                if module.exists():
                    found.add(module)
                elif place.with_suffix(".py").exists():
                    found.add(place.with_suffix(".py"))
                elif place != PACKAGE:
                    found.add(place / "__init__.py")
    return found - {path}


def test_nobody_looks_into_a_backbones_model():
    """What others may use of a backbone stands in backbones/base.py."""
    users = ("core", "evaluation", "heads", "losses", "memory", "methods")
    inside = re.compile(r"""\.model\b|["']model["']|\._pos_embed\b|feature_info""")
    assert inside.search("backbone.model.blocks") and inside.search('getattr(network, "model")')
    reaching = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in files()
        if path.relative_to(PACKAGE).parts[0] in users
        for line in path.read_text().splitlines()
        if inside.search(line)
    ]
    assert not reaching
