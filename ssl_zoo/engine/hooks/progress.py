"""What a person sees while a run is under way."""

import time
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ssl_zoo.engine.hooks.base import Hook
from ssl_zoo.system import distributed
from ssl_zoo.system.text import visible


class ProgressBar(Hook):
    """A bar on a terminal if `live` (two do not go together), else a line every ten seconds.

    In a notebook one line, written over.
    """

    LINE_EVERY_S = 10.0
    DRAWN_EVERY_S = 0.5  # drawing takes milliseconds from the training thread

    def __init__(self, live: bool = True) -> None:
        self.live, self.printed = live, 0.0
        self.bar: Progress | None = None
        self.line: Any = None  # IPython's handle of what is displayed

    def before_train(self, trainer) -> None:
        if not distributed.is_main():
            return
        self.printed = time.monotonic()
        if self.live and trainer.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(),
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[text]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                console=trainer.console,
                refresh_per_second=1 / self.DRAWN_EVERY_S,
            )
            name = visible(trainer.name, trainer.console.encoding)
            done, total = trainer.step, trainer.total_steps
            self.task = self.bar.add_task(name, total=total, completed=done, text="")
            self.bar.start()
        elif self.live and trainer.console.is_jupyter:
            from IPython.display import display

            self.line = display({"text/plain": ""}, raw=True, display_id=True)

    def after_step(self, trainer, batch, out) -> None:
        is_drawn = self.bar is not None or self.line is not None
        every = self.DRAWN_EVERY_S if is_drawn else self.LINE_EVERY_S
        if time.monotonic() - self.printed >= every:
            self.printed = time.monotonic()
            self._show(trainer)

    def after_train(self, trainer) -> None:
        self._show(trainer)

    def _show(self, trainer) -> None:
        if not distributed.is_main():
            return
        text = "  ".join(trainer.status.values())
        if self.bar is not None:
            self.bar.update(self.task, completed=trainer.step, text=text)
            return
        left = trainer.seconds / max(trainer.step, 1) * (trainer.total_steps - trainer.step)
        step = f"{trainer.name}  step {trainer.step}/{trainer.total_steps}"
        line = f"{step}  {text}  left {left:.0f} s"
        if self.line is not None:
            self.line.update({"text/plain": visible(line)}, raw=True)
        else:
            trainer.console.print(line, soft_wrap=True)

    def close(self, trainer) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar = self.line = None
