"""ssl_zoo: self-supervised learning from registered parts that YAML and Python assemble."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_zoo.api import Embedder, Run, load, train

__version__ = "0.1.0"
_OF_API = ("Embedder", "Run", "load", "train")
_PACKAGES = ("backbones", "data", "evaluation", "heads", "losses", "memory", "methods")


def __getattr__(name: str) -> Any:
    """Imports what is asked for: torch and friends take seconds."""
    if name in _OF_API:
        return getattr(importlib.import_module("ssl_zoo.api"), name)
    if name in _PACKAGES:
        return importlib.import_module(f"ssl_zoo.{name}")
    raise AttributeError(f"module 'ssl_zoo' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_OF_API, *_PACKAGES])
