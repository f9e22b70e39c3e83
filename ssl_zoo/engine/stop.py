"""Being asked to stop, and having to."""

from __future__ import annotations

import signal
import threading
import time

from ssl_zoo.system import distributed

ASK_EVERY_SECONDS = 5.0  # torchrun kills a process 30 s after the signal


class Interrupted(Exception):
    """The run was asked to stop, and has saved itself."""


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number."""


class StopSignal:
    """Listens, inside `with`, for SIGINT and SIGTERM (Ctrl-C, a scheduler's preemption).

    The first only sets `asked`; a second ends the process at once. Entered again, by what trains
    inside a run, it changes nothing; nor in a thread, where Python hands over no signals.
    """

    def __init__(self) -> None:
        self.asked = False
        self._depth = 0
        self._handlers: dict = {}  # of before, while we listen
        # Steps between two questions among ranks, steps since the last one, and when it was.
        self._interval, self._steps, self._since = 1, 0, time.perf_counter()

    def __enter__(self) -> StopSignal:
        if self._depth == 0 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)
        self._depth += 1
        return self

    def asked_of_some_rank(self, most: int) -> bool:
        """Whether one was asked, as far as ranks have told each other; all call it at each step.

        They get a signal at different steps, and ask each other rarely: after so many steps as
        take the slowest 5 s, `most` at the most.
        """
        if distributed.world() == 1:
            return self.asked
        self._steps += 1
        if self._steps < self._interval:
            return False
        now = time.perf_counter()
        took, asked = zip(*distributed.collect((now - self._since, self.asked)), strict=True)
        steps = int(ASK_EVERY_SECONDS * self._steps / max(took))
        self._interval, self._steps, self._since = min(max(steps, 1), most), 0, now
        return any(asked)

    def __exit__(self, *_) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._restore()

    def _on_signal(self, number, frame) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())
