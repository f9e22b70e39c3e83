"""A study's runs, each in a process of its own.

A run that fails or is interrupted leaves the others alone, and a study that was stopped goes on
where it stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ssl_zoo import experiment
from ssl_zoo.config import ConfigError, closest
from ssl_zoo.runs.lock import Lock
from ssl_zoo.study import division, machine, report
from ssl_zoo.study.baselines import Baselines
from ssl_zoo.study.division import Jobs
from ssl_zoo.study.grid import Run, Study, expand, slug
from ssl_zoo.study.progress import Progress, Screen
from ssl_zoo.system import distributed

TRAIN = (sys.executable, "-m", "ssl_zoo.cli", "train", "--no-baselines")
SECONDS_TO_STOP = 60.0  # what runs get to leave a checkpoint behind
POLL_S = 0.1
MEMORY_RESERVE = 0.5e9  # bytes
STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_study(
    grid_path: str | Path,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    only: Sequence[str] | None = None,
    report_only: bool = False,
    base: str | Path | None = None,
    jobs: Jobs = "auto",
    train: Sequence[str] = TRAIN,
) -> int:
    """Runs what a grid still lacks, and rewrites the report after each run.

    Args:
        grid_path: the grid file, see `Grid`.
        out: the study's folder; None: runs/ablation/<name of the grid file>.
        overrides: 'key=value' for every arm.
        only: names of the arms to run; None: all.
        report_only: run nothing.
        base: a config in place of the grid's own base.
        jobs: runs side by side; auto: one on each GPU, or what `division.settle` finds.
        train: the command that trains; it gets a config, `--out FOLDER` and `--resume`.

    Returns:
        0; 1 if a run failed; 130 if the study or a run was stopped.

    Raises:
        ConfigError: the grid, an arm's config, a name in `only` or `jobs` is wrong, or a folder
            holds a run of another config. Nothing has been run then.
        FileExistsError: another process runs this study.
    """
    if jobs != "auto" and jobs < 1:
        raise ConfigError("--jobs", "too small", found=repr(jobs), expected="at least 1, or auto")
    study = expand(grid_path, out, overrides, base)
    arms = _chosen(only, list(study.blocks))
    console = Console()
    if not console.is_terminal:
        console.width = 140  # of a log file; rich would wrap the table at 80
    ends: set[str] = set()
    if not report_only:
        for run in study.runs:
            if run.arm in arms:
                _check_unchanged(run)
    study.out.mkdir(parents=True, exist_ok=True)
    try:
        with Lock(study.out / "study.lock"):
            if not report_only:
                study, ends = _run(study, arms, jobs, train, console)
            report.write(study)
    except FileExistsError:
        if not report_only:
            raise  # else who holds it writes the report
    report.show(study, console)
    if ends & {"stopped", "interrupted"}:
        console.print("stopped; the same command goes on from here")
    return 130 if "stopped" in ends else 1 if "failed" in ends else 130 if ends else 0


def _chosen(only: Sequence[str] | None, arms: list[str]) -> list[str]:
    if only is None:
        return arms
    by_name = {name: arm for arm in arms for name in (arm, slug(arm))}
    for name in only:
        if name not in by_name:
            raise ConfigError(
                "only",
                "no arm of this name",
                found=repr(name),
                expected=f"one of {', '.join(arms)}",
                nearest=closest(name, arms),
                where="command line",
            )
    return [by_name[name] for name in only]


def _check_unchanged(run: Run) -> None:
    """A folder in which something was trained belongs to the config that it was trained with."""
    written = run.files.config() if run.trained else None
    changed = experiment.changes(written, run.config) if written is not None else []
    if changed:
        raise ConfigError(
            "",
            f"the folder holds a run of another config: {run}",
            found="; ".join(changed),
            expected="the same config, another --out, or the folder removed",
            where=str(run.folder),
        )


def _run(
    study: Study, arms: list[str], jobs: Jobs, train: Sequence[str], console: Console
) -> tuple[Study, set[str]]:
    """Runs the arms; the study with its threads settled, and how runs ended that did not finish."""
    gpus = machine.gpus()
    try:
        settled = division.kept(study.out) if study.trained else None
        if settled is None:
            configs = [run.config for run in study.runs]
            settled = division.settle(configs, jobs, distributed.cores(), len(gpus))
            division.keep(study.out, settled)
        study = study.with_threads(settled.threads)
        runs = [run for run in study.runs if run.arm in arms]
        count = min(settled.jobs if jobs == "auto" else jobs, len(runs))
        screen = Screen(console, alone=count == 1)
        threads = sorted({str(division.threads_of(run.config)) for run in runs})
        screen.say(f"runs side by side: {count}; threads: {', '.join(threads)} ({settled.why})")
        Baselines(study.out / "baselines.json").measure(runs, screen.say)
    except KeyboardInterrupt:
        return study, {"stopped"}
    launcher = Launcher(runs, count, train, gpus, screen, lambda: report.write(study))
    return study, launcher.run()


class Launcher:
    """Keeps so many runs under way.

    Args:
        gpus: names for CUDA_VISIBLE_DEVICES; a run gets the one that fewest others use.
        ended: called after a run has ended.
        available: bytes of memory that new processes may take, or None.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        jobs: int,
        train: Sequence[str],
        gpus: Sequence[str],
        screen: Screen,
        ended: Callable[[], None],
        available: Callable[[], int | None] = machine.available_memory,
    ):
        self.jobs, self.train, self.gpus = jobs, train, gpus
        self.screen, self.ended, self.available = screen, ended, available
        self.queue = [(f"{i}/{len(runs)}  {run}", run) for i, run in enumerate(runs, 1)]
        self.children: list[Child] = []
        self.ends: set[str] = set()
        self.said = ""
        # Bytes that a run takes at the most, of training; on a GPU a result tells the GPU's.
        peaks = [run.files.result().get("peak_memory_gb") or 0.0 for run in runs if not gpus]
        self.peak = max(peaks, default=0.0) * 1e9
        self.peak_known = self.peak > 0

    def run(self) -> set[str]:
        """Until all have ended, or a signal says stop.

        Returns:
            How runs ended that did not finish: 'failed', 'interrupted', 'stopped'.
        """
        with _signals() as received, self.screen:
            while (self.queue or self.children) and not received:
                some_ended = self._reap()
                while self.queue and len(self.children) < self.jobs and self._has_room():
                    self._start(*self.queue.pop(0))
                if some_ended:
                    self.ended()
                self.screen.show(child.progress for child in self.children)
                time.sleep(POLL_S)
            if received:
                self.ends.add("stopped")
                self._stop(received)
        return self.ends

    def _start(self, title: str, run: Run) -> None:
        if run.files.finished:
            self.screen.say(f"{title}  (finished)")
        elif holder := run.files.holder():
            self.screen.say(f"{title}  left to {holder}, which runs it")
            self.ends.add("failed")
        else:
            self.screen.say(title, style="bold")
            used = [child.gpu for child in self.children]
            gpu = min(self.gpus, key=used.count) if self.gpus else None
            self.children.append(Child(title, run, self.train, gpu, self.screen.alone))

    def _reap(self) -> bool:
        """Notes progress and memory; takes out the children that have ended."""
        ended = [child for child in self.children if child.process.poll() is not None]
        for child in ended:
            self.children.remove(child)
            end, reason = child.end()
            if not self.screen.alone:
                self.screen.say(f"{child.title}  {end}{': ' if reason else ''}{reason}")
            if end != "finished":
                self.ends.add(end)
        for child in self.children:
            child.look()
            self.peak = max(self.peak, child.peak)
            self.peak_known |= child.progress.step > 0
        return bool(ended)

    def _has_room(self) -> bool:
        """Whether one more run fits beside those under way, which may still grow to the peak."""
        if not self.children or self.queue[0][1].files.finished:
            return True
        title, free = self.queue[0][0], self.available()
        needed = self.peak + sum(max(0.0, self.peak - child.memory) for child in self.children)
        if free is None or (self.peak_known and free >= needed + MEMORY_RESERVE):
            return True
        why = (
            f"{free / 1e9:.1f} GB are free; a run takes up to {self.peak / 1e9:.1f} GB"
            if self.peak_known
            else "the first run has to show how much it takes"
        )
        if self.said != f"{title} {self.peak_known}":
            self.said = f"{title} {self.peak_known}"
            self.screen.say(f"{title}  waits for memory: {why}")
        return False

    def _stop(self, received: list[int]) -> None:
        """Asks all children to save and end; a second signal, or the time, ends them at once."""
        for child in self.children:
            child.process.send_signal(signal.SIGINT)
        asked, deadline = len(received), time.monotonic() + SECONDS_TO_STOP
        while any(child.process.poll() is None for child in self.children):
            if len(received) > asked or time.monotonic() > deadline:
                for child in self.children:
                    child.kill()
                break
            time.sleep(POLL_S)


class Child:
    """A run that is under way, in a session of its own: a Ctrl-C reaches it through the study.

    Attributes:
        memory, peak: resident bytes, now and at the most.
    """

    def __init__(self, title: str, run: Run, train: Sequence[str], gpu: str | None, alone: bool):
        self.title, self.run, self.gpu = title, run, gpu
        self.progress = Progress(run)
        self.memory = self.peak = 0
        run.folder.mkdir(parents=True, exist_ok=True)
        run.files.clear_error()
        run.files.write_config(run.config)
        self.output = None if alone else run.folder / "stdout.txt"
        env = {"PYTHONUNBUFFERED": "1"} | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
        written = str(run.folder / "config.yaml")
        with open(self.output or os.devnull, "wb") as output:
            self.process = subprocess.Popen(
                [*train, written, "--out", str(run.folder), "--resume"],
                env=machine.environment(**env),
                start_new_session=True,
                stdout=output if self.output else None,
                stderr=subprocess.STDOUT if self.output else None,
            )

    def look(self) -> None:
        self.progress.look()
        self.memory, peak = machine.process_memory(self.process.pid)
        self.peak = max(self.peak, peak)  # the process resets the kernel's own mark

    def end(self) -> tuple[str, str]:
        """'finished', 'failed' or 'interrupted', and the reason's first line."""
        code, files = self.process.returncode, self.run.files
        if code == 0 and files.finished:
            return "finished", ""
        if code in (-signal.SIGINT, 128 + signal.SIGINT):
            return "interrupted", ""
        if not files.error():
            text = self.output.read_text(errors="replace") if self.output else ""
            files.write_error("\n".join([_why(code), *text.splitlines()[-20:]]) + "\n")
        return "failed", files.error().partition("\n")[0]

    def kill(self) -> None:
        """With the processes that it has started itself."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _why(code: int) -> str:
    if code == 0:
        return "the run ended without a result"
    if code == -signal.SIGKILL:
        return "killed (SIGKILL); most often the machine ran out of memory"
    if code < 0:
        return f"killed by signal {signal.Signals(-code).name}"
    return f"ended with exit code {code} and left no message"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list of the signals that have asked to stop; what `nohup` has ignored stays ignored."""
    received: list[int] = []
    numbers = [number for number in STOP if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {n: signal.signal(n, lambda number, _: received.append(number)) for n in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
