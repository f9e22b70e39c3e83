"""Being asked to stop, and having to."""

from __future__ import annotations

import signal
import threading


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

    def __enter__(self) -> StopSignal:
        if self._depth == 0 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)
        self._depth += 1
        return self

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
