"""What all benchmarks share: who measured, in which order, and how it is written down."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssl_zoo.system.files import write_json
from ssl_zoo.system.hardware import bf16_unit, cores

ROOT = Path(__file__).parents[1]


def machine() -> str:
    """Processor, cores, what multiplies in bf16, GPU and versions, in one line."""
    lines = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (lines.read_text().splitlines() if lines.exists() else [])
        if line.startswith("model name")
    ]
    parts = [f"{cores()} cores of {names[0] if names else platform.processor()}"]
    parts.append(torch.backends.cpu.get_cpu_capability())
    parts.append(bf16_unit(torch.device("cpu")) or "no bf16 units")
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts += [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    return ", ".join(parts)


def commit() -> str:
    """Of this checkout, `-dirty` where code differs from it; 'unknown' on a machine without git.

    Results and pages are what benchmarks and `make pages` write: they change no figure.
    """

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    found = ""
    with suppress(OSError):
        found = git("describe", "--always")
        if git("status", "--porcelain", "--untracked-files=no", ":!results", ":!docs", ":!*.md"):
            found += "-dirty"
    return found or "unknown"


def made_by(command: str) -> dict[str, str]:
    """What a result file begins with."""
    today = str(date.today())
    return {"command": command, "commit": commit(), "date": today, "machine": machine()}


def told(made: dict[str, Any]) -> str:
    """The line below a table, of a result file: command, commit, date, machine."""
    return f"`{made['command']}`, commit {made['commit']}, {made['date']}; {made['machine']}"


class Table(NamedTuple):
    """What a benchmark has measured: for a person `str`, for a result file `kept`.

    Attributes:
        title: of what.
        columns: their names, with the unit, and how numbers are written (a format specification;
            "" for words and whole numbers).
        rows: a cell for each column, None where there is nothing.
        about: sizes, and what was observed while measuring, in sentences.
        medians: of what figures are medians, as "3 rounds"; "" where they are not.
    """

    title: str
    columns: dict[str, str]
    rows: Sequence[Sequence[Any]]
    about: str = ""
    medians: str = ""

    @property
    def words(self) -> list[list[str]]:
        forms = self.columns.values()
        return [
            ["" if x is None else format(x, form) for x, form in zip(row, forms, strict=True)]
            for row in self.rows
        ]

    def __str__(self) -> str:
        medians = f"Medians of {self.medians}." if self.medians else ""
        note = " ".join(filter(None, [self.about, medians]))
        return "\n\n".join(filter(None, [table(self.words, list(self.columns)), note]))

    def kept(self) -> dict[str, Any]:
        """Plain values; of fractions four digits, and a clock is no better than that."""
        rows = [
            [float(f"{x:.4g}") if isinstance(x, float) else x for x in row] for row in self.rows
        ]
        return self._replace(rows=rows)._asdict()


class Measured:
    """What a benchmark says on the screen as it goes, and then keeps in its result file.

    Args:
        script: its name in benchmarks/.
        words: of its command line.
    """

    def __init__(self, script: str, words: Sequence[str]):
        command = " ".join(["python benchmarks/" + script, *without_out(words)])
        self.kept: dict[str, Any] = made_by(command) | {"threads": torch.get_num_threads()}
        self.tables: dict[str, Table] = {}

    def add(self, name: str, measured: Table) -> None:
        self.tables[name] = measured
        print(f"## {measured.title}\n\n{measured}\n", flush=True)

    def finish(self, out: Path | None) -> None:
        print(told(self.kept))
        if out is not None:
            tables = {name: measured.kept() for name, measured in self.tables.items()}
            write_json(out, self.kept | {"tables": tables})


def without_out(words: Sequence[str]) -> list[str]:
    """Where a reader keeps the result is no part of how to get it."""
    words = list(words)
    if "--out" in words:
        at = words.index("--out")
        del words[at : at + 2]
    return words


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


def spread(values: Sequence[float]) -> list[float]:
    """Median, lowest and highest."""
    return [statistics.median(values), min(values), max(values)]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the rounds' ratios: what was measured side by side is compared side by side."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """A markdown table."""
    lines = [list(header), ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
