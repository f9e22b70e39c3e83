"""Somebody's own parts, in a file that registers them when it is imported.

    ssl-zoo train CONFIG --plugin my_parts.py

Which files are imported is said by the command line, by $SSL_ZOO_PLUGINS (separated as $PATH is)
or by installed packages (the entry-point group `ssl_zoo.plugins`); never by a config, which runs no
code, nor by a run that names what it was trained with.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from ssl_zoo.system.files import sha256

VARIABLE, GROUP = "SSL_ZOO_PLUGINS", "ssl_zoo.plugins"
# Name of the module -> its file: of files that were named, and of installed packages.
_files: dict[str, Path] = {}
_installed: dict[str, Path] = {}


def load(paths: Iterable[Path] = ()) -> None:
    """Imports these files, then those of $SSL_ZOO_PLUGINS and of installed packages.

    Their folders are put on sys.path and their names into $SSL_ZOO_PLUGINS, so that workers, the
    arms of a study and other processes that this one starts find them too.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no Python file, or one with the name of another module.
        ImportError: it cannot be imported, and why.
    """
    named = os.environ.get(VARIABLE, "")
    files = [*paths, *(Path(path) for path in named.split(os.pathsep) if path)]
    for path in dict.fromkeys(path.expanduser().resolve() for path in files):
        _import(path)
    if _files:
        os.environ[VARIABLE] = os.pathsep.join(map(str, _files.values()))
    for entry in entry_points(group=GROUP):
        module = _imported(entry.module, f"plug-in {entry.module} of {GROUP}")
        _installed[entry.module] = Path(module.__file__)


def _import(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"plug-in {path}: no such file")
    name = path.stem
    if path.suffix != ".py" or not name.isidentifier():
        raise ValueError(f"plug-in {path}: expected NAME.py, with a name that Python can import")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: what lies beside it hides no other module
    module = _imported(name, f"plug-in {path}")
    if Path(getattr(module, "__file__", None) or "").resolve() != path:
        taken = getattr(module, "__file__", None) or "a module of Python's own"
        raise ValueError(f"plug-in {path}: its name is that of {taken}; give it another")
    _files[name] = path


def _imported(name: str, shown: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever somebody's code raises
        raise ImportError(f"{shown}: {type(error).__name__}: {error}") from error


def loaded() -> dict[str, dict[str, Any]]:
    """By module: file, version (`__version__`, if it has one) and SHA-256, as plain values."""
    return {
        name: {
            "path": str(path),
            "version": getattr(sys.modules.get(name), "__version__", None),
            "sha256": sha256(path),
        }
        for name, path in {**_installed, **_files}.items()
    }


def changed(recorded: dict[str, dict[str, Any]]) -> list[str]:
    """In words, how what is loaded differs from what a run has recorded."""
    found, now = [], loaded()
    for name, was in recorded.items():
        if name not in now:
            found.append(f"plug-in {name} is not loaded: --plugin {was['path']}")
        elif now[name]["sha256"] != was["sha256"]:
            found.append(f"plug-in {name} has changed since: {now[name]['path']}")
    return found
