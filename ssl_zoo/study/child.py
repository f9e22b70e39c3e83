"""A run of a study while it is under way."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext

from ssl_zoo import experiment
from ssl_zoo.study.grid import Run
from ssl_zoo.study.machine import child_environment, how_it_ended, process_memory
from ssl_zoo.study.progress import Progress


class Child:
    """A process that trains a run, in a session of its own: a Ctrl-C reaches it by the study.

    Args:
        environment: what the process has beside the study's own.
        alone: it writes to the screen, others to a file.

    Attributes:
        memory, peak: resident bytes, now and at the most.

    Raises:
        Held: another process holds the run's folder.
        OSError, ValueError: the folder cannot be written, or its config be read.
    """

    def __init__(
        self, title: str, run: Run, train: Sequence[str], environment: dict[str, str], alone: bool
    ):
        self.title, self.run, self.environment = title, run, environment
        self.progress = Progress(run)
        self.memory = self.peak = 0
        self.killed = ""  # why the study has killed it
        overrides = self._prepare()
        self.log = None if alone else run.files.stdout
        with open(self.log, "wb") if self.log else nullcontext() as output:
            self.process = subprocess.Popen(
                [*train, run.files.config_path, *overrides, "--out", run.folder, "--resume"],
                env=child_environment(PYTHONUNBUFFERED="1", **environment),
                start_new_session=True,
                stdout=output,
                stderr=output and subprocess.STDOUT,
            )

    def _prepare(self) -> list[str]:
        """Writes config.yaml and removes the last error; what overrides that config."""
        files, train = self.run.files, self.run.config["train"]
        files.lock.acquire()
        try:
            trained = (files.config() if self.run.trained else None) or self.run.config
            unit, number = experiment.run_length(trained["train"])
            # A run that goes on for longer sees that in what the folder holds.
            files.write_config({**self.run.config, "train": {**train, unit: number}})
            files.clear_error()
        finally:
            files.lock.release()
        return [] if number == train[unit] else [f"train.{unit}={train[unit]}"]

    def look(self) -> None:
        self.progress.look()
        self.memory, peak = process_memory(self.process.pid)
        self.peak = max(self.peak, peak)  # the process resets the kernel's own mark

    def kill(self, why: str) -> None:
        """At once, with the processes that it has started itself."""
        self.killed = why
        os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> str:
        """'finished', 'interrupted', 'left to whom' or 'failed: why', which error.txt has too."""
        code, files = self.process.returncode, self.run.files
        if code == 0 and self.run.finished:
            return "finished"
        if code in (-signal.SIGINT, 128 + signal.SIGINT):
            return "interrupted"
        if holder := files.lock.holder():  # who was faster than this process
            return left_to(holder)
        told = files.error()
        if not told:
            text = self.log.read_bytes().decode("utf-8", "backslashreplace") if self.log else ""
            told = "\n".join([self.killed or how_it_ended(code), *text.splitlines()[-20:]])
            files.write_error(told)
        return f"failed: {told.partition(chr(10))[0]}"


def left_to(holder: str) -> str:
    """How a run ends that another process trains."""
    return f"left to {holder or 'another process'}, which runs it"
