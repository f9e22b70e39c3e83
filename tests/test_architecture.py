"""Imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ssl_zoo"
FOUNDATION = {
    "precision",
    "registry",
    "rng",
    "distributed",
    "batchnorm",
    "files",
    "memory_use",
    "health",
    "patches",
    "colour",
    "sinkhorn",
}
MAY_IMPORT = {
    "registry": set(),
    "rng": set(),
    "distributed": set(),
    "batchnorm": set(),
    "memory_use": set(),
    "cpu_bf16": {"precision"},
    "files": set(),
    "precision": set(),
    "config": {"registry", "files"},
    "health": set(),
    "patches": {"rng"},
    "colour": set(),
    "sinkhorn": {"distributed"},
    "method": {"rng"},
    "encoder": FOUNDATION,
    "kmeans": {"distributed", "encoder", "rng"},
    "memory": FOUNDATION | {"encoder"},
    "heads": FOUNDATION,
    "backbones": FOUNDATION | {"cpu_bf16"},
    "losses": FOUNDATION | {"memory"},
    "methods": FOUNDATION
    | {"method", "encoder", "heads", "memory", "losses", "backbones", "kmeans"},
    "optimizers": {"registry", "method"},
    "data": FOUNDATION | {"method"},
    "evaluation": FOUNDATION | {"encoder", "kmeans"},
    "checkpoint": {"distributed", "files"},
    "hooks": FOUNDATION | {"checkpoint", "evaluation"},
    "trainer": FOUNDATION | {"method", "encoder", "hooks", "checkpoint"},
    "build": None,  # everything below the command line
    "baselines": {"files"},
    "report": {"baselines", "config", "files"},
    "ablation": {
        "baselines",
        "build",
        "checkpoint",
        "config",
        "distributed",
        "evaluation",
        "registry",
        "report",
    },
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
        allowed = (
            set(MAY_IMPORT)
            - {"cli"}
            - ({"ablation", "baselines", "report"} if layer == "build" else set())
        )
    extra = imports(path) - allowed - {layer}
    assert not extra, f"{layer} may not import {', '.join(sorted(extra))}"


def test_the_trainer_knows_no_particular_method():
    assert not imports(PACKAGE / "trainer.py") & {"methods", "memory", "losses", "data"}
