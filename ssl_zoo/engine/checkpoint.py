"""Checkpoint files: complete, atomic, and safe to load."""

import os
from pathlib import Path
from typing import Any

import torch

from ssl_zoo.system.files import replacing

FORMAT = 2


def write(state: dict[str, Any], path: Path) -> None:
    """A reader finds the old file or the whole new one, also after a kill or a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as staged, open(staged, "wb") as file:
        try:
            torch.save({"format": FORMAT, **state}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # a write failed, then torch's way to end it
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def read(path: Path) -> dict[str, Any]:
    """Loads a checkpoint onto the CPU; tensors and plain values only, no code runs.

    Raises ValueError for a file that is not whole, not ours, or of another format.
    """
    with path.open("rb") as file:  # that it is missing or forbidden is said as it is
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # each of torch's readers has its own
            hint = "without it --resume goes on from the one before"
            raise ValueError(f"{path}: not a checkpoint, or not a whole one; {hint}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        form = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path}: not an ssl_zoo checkpoint of format {FORMAT}; found {form!r}")
    return state
