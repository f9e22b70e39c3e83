"""Checkpoints: complete, atomic, and safe to load."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_zoo.system import distributed
from ssl_zoo.system.files import replacing

FORMAT = 1


def saved(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted((folder / "checkpoints").glob("step_*.pt"))


def save(trainer) -> Path:
    """Writes all that a bitwise resume needs; every rank calls it, rank 0 writes.

    What differs between ranks (random states, BatchNorm statistics) is stored for each.
    """
    ranks = distributed.collect(_rank_state(trainer))
    path = trainer.folder / "checkpoints" / f"step_{trainer.step:08d}.pt"
    if distributed.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "format": FORMAT,
            "step": trainer.step,
            "seconds": trainer.seconds,
            "peak_bytes": trainer.peak_memory.peak(),
            "config": trainer.config_text,
            "method": trainer.method.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "precision": trainer.precision,
            "ranks": ranks,
        }
        write_atomically(state, path)
    distributed.barrier()
    return path


def write_atomically(state: Any, path: Path) -> None:
    """A reader finds the old file or the whole new one, also after a kill or a power cut."""
    with replacing(path) as staged, open(staged, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def read(path: Path) -> dict[str, Any]:
    """Loads a checkpoint onto the CPU; tensors and plain values only, no code runs.

    Raises:
        ValueError: not a checkpoint of ours, of another format, or not whole.
    """
    with path.open("rb") as file:  # that it is missing or forbidden is said as it is
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # each of torch's readers has its own
            raise ValueError(
                f"{path}: not a checkpoint, or not a whole one; expected a file step_*.pt of a "
                "run. Without it --resume goes on from the one before."
            ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path}: not an ssl_zoo checkpoint of format {FORMAT}; found {found!r}")
    return state


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """All of a module's weights.

    Raises:
        ValueError: a weight is missing, one too many, or of another shape.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        problems = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(
            f"{path}: weights of another config\n  " + "\n  ".join(problems[:3])
        ) from error


def restore(trainer, path: Path) -> None:
    """Puts a trainer where the checkpoint was taken.

    On another number of processes weights, memory and optimiser are restored and rank 0's random
    state and BatchNorm statistics go to all; bitwise is only promised on the same number.
    """
    state = read(path)
    load_weights(trainer.method, state["method"], path)
    _load_optimizer(trainer.optimizer, state["optimizer"])
    begun = state.get("precision", trainer.precision)
    if begun != trainer.precision:  # `auto`, on a machine that has something else
        trainer.precision, trainer.precision_reason = begun, "as the run began"
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.step, trainer.seconds = state["step"], state["seconds"]
    trainer.peak_memory.bytes = state["peak_bytes"]
    ranks = state["ranks"]
    if len(ranks) != distributed.world():
        trainer.say(
            f"saved by {len(ranks)} processes, resumed on {distributed.world()}: not bitwise"
        )
    mine = ranks[distributed.rank()] if len(ranks) == distributed.world() else ranks[0]
    trainer.method.load_state_dict(mine["batchnorm"], strict=False)
    _set_random_state(mine["random"], trainer.device)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Its state and settings; but which kernel is fast is this machine's business."""
    kernels = [{k: group.get(k) for k in ("fused", "foreach")} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, kernels, strict=True):
        group.update({k: v for k, v in own.items() if k in group})


def _rank_state(trainer) -> dict[str, Any]:
    return {"random": _random_state(trainer.device), "batchnorm": _batchnorm_state(trainer.method)}


def _batchnorm_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{buffer}": value.cpu()
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm)
        for buffer, value in child.named_buffers(recurse=False)
    }


def _random_state(device: torch.device) -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [str(kind), keys.tolist(), int(position), int(has_gauss), float(cached)],
        "python": [version, list(words), gauss],
    }


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
