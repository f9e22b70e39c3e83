"""A process that measures baselines, one after another, for a study that has several of them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssl_zoo import experiment
from ssl_zoo.study.machine import child_environment, how_it_ended
from ssl_zoo.system import plugins

SERVE = "from ssl_zoo.study.measurer import serve; serve()"

Answer = dict[str, dict[str, Any]]  # baseline -> its result


@dataclass(frozen=True)
class Failed:
    """Why there is no answer.

    Attributes:
        why: one sentence or more.
        trace: where it happened; '' if no error was raised.
        killed: whether the process was.
    """

    why: str
    trace: str = ""
    killed: bool = False

    @classmethod
    def of(cls, error: Exception) -> Failed:
        return cls(str(error) or type(error).__name__, "".join(traceback.format_exception(error)))


def answer_to(config: dict[str, Any], evaluation: str, names: list[str]) -> Answer | Failed:
    """What `experiment.measure_baselines` says, or why it does not."""
    try:
        return experiment.measure_baselines(config, evaluation, names)
    except Exception as error:
        return Failed.of(error)


def serve() -> None:
    """The process's side: a request a line on stdin, an answer a line on stdout.

    Whatever else is printed goes to stderr. When stdin ends, so does the process, at once: whoever
    asked is gone.
    """
    plugins.load()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[list] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        answer = answer_to(*requests.get())
        told = {"failed": asdict(answer)} if isinstance(answer, Failed) else {"answer": answer}
        answers.write(json.dumps(told) + "\n")
        answers.flush()


class Measurer:
    """The study's side. The process starts with the first request, and anew after it was killed.

    It is in a session of its own: a Ctrl-C reaches the study alone, which kills it.

    Args:
        log: file that what is printed is added to.
        environment: what the process has beside the study's own.
    """

    def __init__(self, log: Path, environment: dict[str, str]):
        self.log, self.environment = log, environment
        self.process: subprocess.Popen | None = None

    def ask(self, request: tuple[dict[str, Any], str, list[str]]) -> Answer | Failed:
        try:
            process = self.process = self.process or self._started()
        except OSError as error:  # the task's alone, like one of measuring
            return Failed.of(error)
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line.endswith("\n"):  # the process was killed before or while it answered
            code, self.process = process.wait(), None
            return Failed(how_it_ended(code), killed=code < 0)
        told = json.loads(line)
        return told["answer"] if "answer" in told else Failed(**told["failed"])

    def _started(self) -> subprocess.Popen:
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", SERVE],
                env=child_environment(PYTHONUNBUFFERED="1", **self.environment),
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
            )

    def kill(self) -> None:
        """At once, with the processes that it has started itself."""
        process, self.process = self.process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
