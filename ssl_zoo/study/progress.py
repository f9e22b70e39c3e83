"""What a person sees of runs side by side: a table on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ssl_zoo.study.grid import Run

BESIDE = ("kind", "name", "baseline", "step", "epoch", "seconds", "hash")  # a line's metrics


def metrics_of(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation's line; its main metric comes first."""
    return {k: v for k, v in line.items() if k not in BESIDE and isinstance(v, int | float)}


class Progress:
    """How far a run is, as its metrics say.

    Attributes:
        step: steps done; 0 until the run has written its first line.
    """

    def __init__(self, run: Run):
        self.run = run
        self.step, self.total = 0, 0
        self.score = ""
        self.left_s: float | None = None
        self.next_look = 0.0

    def look(self) -> None:
        """Reads the metrics, unless that was a moment ago."""
        began = time.monotonic()
        if began < self.next_look:
            return
        lines = self.run.files.metrics()
        took = time.monotonic() - began
        self.next_look = began + max(1.0, 50 * took)  # of a long run there is much to read
        last = next((line for line in reversed(lines) if line.get("epoch")), None)
        if last is None:
            return
        self.step = last["step"]
        self.total = max(
            self.step, round(self.step / last["epoch"] * self.run.config["train"]["epochs"])
        )
        seconds = max(line.get("seconds", 0.0) for line in lines)
        self.left_s = seconds / self.step * (self.total - self.step)
        for line in lines:
            if line["kind"] == "evaluation" and line["name"] == self.run.main:
                metric, value = next(iter(metrics_of(line).items()))
                self.score = f"{line['name']} {metric} {value:.2f}"

    def cells(self) -> list[str]:
        """Run, steps, main metric, time left; '' for what is not known yet."""
        steps = f"step {self.step}/{self.total}" if self.step else "starting"
        return [str(self.run), steps, self.score, "" if self.left_s is None else _left(self.left_s)]


def _left(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit} left"
    return f"{seconds:.0f} s left"


class Screen:
    """Progress of the runs that are under way; a run alone shows its own."""

    DRAWN_EVERY_S, LINES_EVERY_S = 0.5, 10.0

    def __init__(self, console: Console, alone: bool):
        self.console, self.alone = console, alone
        table = console.is_terminal and not alone
        self.live = Live(console=console, auto_refresh=False, transient=True) if table else None
        self.shown = time.monotonic()

    def __enter__(self) -> Screen:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def show(self, progress: Iterable[Progress]) -> None:
        every = self.LINES_EVERY_S if self.live is None else self.DRAWN_EVERY_S
        if self.alone or time.monotonic() - self.shown < every:
            return
        self.shown = time.monotonic()
        if self.live is None:
            for one in progress:
                self.say("  ".join(filter(None, one.cells())))
            return
        table = Table(box=None, pad_edge=False, show_header=False)
        for one in progress:
            table.add_row(*map(Text, one.cells()))
        self.live.update(table, refresh=True)
