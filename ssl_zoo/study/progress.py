"""What a person sees of runs side by side: a table on a terminal, lines elsewhere."""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ssl_zoo import experiment
from ssl_zoo.study.grid import Run


class Progress:
    """How far a run is, as its metrics say."""

    def __init__(self, run: Run):
        self.run = run
        self.step = 0  # done; 0 until the run has written its first line
        self.cells = [str(run), "starting", "", ""]  # then steps, main metric, time left
        self.next_look = 0.0

    def look(self) -> None:
        """Reads the metrics, unless that was a moment ago."""
        began = time.monotonic()
        if began < self.next_look:
            return
        lines = self.run.files.metrics()
        # Of a long run there is much to read.
        self.next_look = began + max(1.0, 50 * (time.monotonic() - began))
        last = next((line for line in reversed(lines) if line["step"]), None)
        if last is None:
            return
        self.step = last["step"]
        unit, total = experiment.run_length(self.run.config["train"])
        if unit == "epochs":
            total = round(self.step / last["epoch"] * total)
        left = timedelta(seconds=round(last["seconds"] / self.step * max(0, total - self.step)))
        self.cells[1], self.cells[3] = f"step {self.step}/{total}", f"{left} left"
        name = self.run.main
        for line in lines:
            if line["kind"] == "evaluation" and line["name"] == name:
                metric = self.run.metric(name)
                self.cells[2] = f"{name} {metric} {line[metric]:.2f}"


class Screen:
    """Progress of the runs that are under way; a run alone shows its own.

    Attributes:
        live: to be entered while runs are under way.
    """

    DRAWN_EVERY_S, LINES_EVERY_S = 0.5, 10.0

    def __init__(self, console: Console, alone: bool):
        self.console, self.alone = console, alone
        self.table = console.is_terminal and not alone
        live = Live(console=console, auto_refresh=False, transient=True)
        self.live = live if self.table else nullcontext()
        self.shown = time.monotonic()

    def say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, soft_wrap=True)

    def show(self, progress: Iterable[Progress]) -> None:
        every = self.DRAWN_EVERY_S if self.table else self.LINES_EVERY_S
        if self.alone or time.monotonic() - self.shown < every:
            return
        self.shown = time.monotonic()
        if not self.table:
            for run in progress:
                self.say("  ".join(filter(None, run.cells)))
            return
        table = Table(box=None, pad_edge=False, show_header=False)
        for run in progress:
            table.add_row(*run.cells)
        self.live.update(table, refresh=True)
