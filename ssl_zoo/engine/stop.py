"""Being asked to stop."""

from __future__ import annotations

import signal


class Interrupted(Exception):
    """The run was asked to stop, and has saved itself."""


class StopSignal:
    """Listens, inside `with`, for SIGINT and SIGTERM (Ctrl-C, a scheduler's preemption).

    The first only sets `asked`; a second ends the process at once. What trains inside a run shares
    the run's signal: entering it again changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._depth = 0
        self._handlers: dict = {}

    def __enter__(self) -> StopSignal:
        if self._depth == 0:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)
        self._depth += 1
        return self

    def __exit__(self, *_) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers = {}

    def _on_signal(self, number, frame) -> None:
        self.asked = True
        signal.signal(number, self._handlers[number])
