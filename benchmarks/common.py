"""What all benchmarks share: who measured, in which order, and how it is written down."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def machine() -> str:
    """Processor, cores, GPU and versions, in one line."""
    lines = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (lines.read_text().splitlines() if lines.exists() else [])
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{cores} cores of {names[0] if names else platform.processor()}"]
    parts.append(torch.backends.cpu.get_cpu_capability())
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts += [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    return ", ".join(parts)


def commit() -> str:
    """Of this checkout, `-dirty` where files differ from it; 'unknown' on a machine without git."""
    found = ""
    with suppress(OSError):
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
    return found or "unknown"


def made_by(command: str) -> dict[str, str]:
    """What a result file begins with."""
    today = str(date.today())
    return {"command": command, "commit": commit(), "date": today, "machine": machine()}


def told(made: dict[str, Any]) -> str:
    """The line below a table, of a result file: command, commit, date, machine."""
    return f"`{made['command']}`, commit {made['commit']}, {made['date']}; {made['machine']}"


def provenance(command: str) -> str:
    """The same of what is measured now."""
    return told(made_by(command))


def finished_runs(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file to go on with; what a kill left of a line is cut off."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def add_run(path: Path, line: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def seconds(function: Callable[[], object]) -> float:
    """Of one call, work queued on a GPU included."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(
    contenders: dict[str, Callable[[], float]], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """One figure of each contender a round, in turn, so that a slow minute hits all alike.

    Args:
        contenders: each call measures once and returns its figure.
        warmup: rounds that are thrown away.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warmup + rounds):
        for name, measure in contenders.items():
            figure = measure()
            if number >= warmup:
                figures[name].append(figure)
    return figures


def spread(values: Sequence[float]) -> str:
    """'lowest to highest'."""
    digits = 0 if min(values) >= 100 else 1 if min(values) >= 10 else 2
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the rounds' ratios: what was measured side by side is compared side by side."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """A markdown table."""
    lines = [list(header), ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
