"""A study's runs, each in a process of its own.

A run that fails or is interrupted leaves the others alone, and a study that was stopped goes on
where it stopped.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ssl_zoo import experiment
from ssl_zoo.config import ConfigError, closest
from ssl_zoo.runs import Lock
from ssl_zoo.study.baselines import Baselines
from ssl_zoo.study.division import Jobs, divide
from ssl_zoo.study.grid import Run, Study, expand, slug
from ssl_zoo.study.machine import available_memory, child_environment, gpus, process_memory
from ssl_zoo.study.progress import Progress, Screen
from ssl_zoo.study.report import print_table, write_report
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
    jobs: Jobs | str = "auto",
    train: Sequence[str] = TRAIN,
) -> int:
    """Runs what a grid still lacks, and rewrites the report after each run.

    Args:
        grid_path, out, overrides, base: as of `expand`.
        only: names of the arms to run; None: all.
        report_only: run nothing.
        jobs: runs side by side; auto: one on each GPU, or what `divide` finds.
        train: the command that trains; it gets a config, `--out FOLDER` and `--resume`.

    Returns:
        0; 1 if a run failed; 130 if the study or a run was stopped.

    Raises:
        ConfigError: the grid, an arm's config, a name in `only` or `jobs` is wrong, or a folder
            holds a run of another config. Nothing has been run then.
        FileExistsError: another process runs this study.
    """
    if jobs != "auto":
        if not (str(jobs).isdecimal() and int(jobs) > 0):
            expected = "a number of runs, at least 1, or auto"
            raise ConfigError("--jobs", "no such number", found=repr(jobs), expected=expected)
        jobs = int(jobs)
    study = expand(grid_path, out, overrides, base)
    arms = _chosen(only, list(study.blocks))
    console = Console(markup=False, emoji=False, highlight=False)  # names are shown as they are
    if not console.is_terminal:
        console.width = 140  # of a log file; rich would wrap the table at 80
    for run in study.runs:
        if run.arm in arms and not report_only:
            _check_unchanged(run)
    ends: set[str] = set()
    lock = Lock(study.out / "study.lock")
    if report_only and lock.holder():  # who runs the study writes its report
        print_table(study, console)
        return 0
    lock.acquire()
    try:
        if not report_only:
            study, ends = _run(study, arms, jobs, train, console)
        write_report(study)
    finally:
        lock.release()
    print_table(study, console)
    if ends & {"stopped", "interrupted"}:
        console.print("stopped; the same command goes on from here")
    return 130 if "stopped" in ends else 1 if "failed" in ends else 130 if ends else 0


def _chosen(only: Sequence[str] | None, arms: list[str]) -> list[str]:
    by_name = {name: arm for arm in arms for name in (arm, slug(arm))}
    for name in only or ():
        if name not in by_name:
            expected, nearest = f"one of {', '.join(arms)}", closest(name, arms)
            wrong = {"found": repr(name), "expected": expected, "nearest": nearest}
            raise ConfigError("only", "no arm of this name", where="command line", **wrong)
    return arms if only is None else [by_name[name] for name in only]


def _check_unchanged(run: Run) -> None:
    """A folder in which something was trained belongs to the config that it was trained with."""
    written = run.files.config() if run.trained else None
    changed = experiment.changes(written, run.config) if written is not None else []
    if changed:
        problem = f"the folder holds a run of another config: {run}"
        expected = "the same config, another --out, or the folder removed"
        found, where = "; ".join(changed), str(run.folder)
        raise ConfigError("", problem, found=found, expected=expected, where=where)


def _run(
    study: Study, arms: list[str], jobs: Jobs, train: Sequence[str], console: Console
) -> tuple[Study, set[str]]:
    """Runs the arms; returns the study with its threads settled, and `Launcher.run`'s answer."""
    devices = gpus()
    try:
        division = study.division()
        if division is None:
            configs = [run.config for run in study.runs]
            division = divide(configs, jobs, distributed.cores(), len(devices))
            division.write(study.out)
        study = study.with_threads(division.threads)
        runs = [run for run in study.runs if run.arm in arms]
        count = min(division.jobs if jobs == "auto" else jobs, len(runs))
        threads = ", ".join(sorted({str(run.config["train"]["threads"]) for run in runs}))
        screen = Screen(console, alone=count == 1)
        screen.say(f"runs at once: {count}; threads of each: {threads}; {division.why}")
        Baselines(study.out / "baselines.json").measure(runs, screen.say)
    except KeyboardInterrupt:
        return study, {"stopped"}
    return study, Launcher(runs, count, train, devices, screen, lambda: write_report(study)).run()


@dataclass
class Launcher:
    """Keeps so many runs under way."""

    runs: Sequence[Run]
    jobs: int
    train: Sequence[str]  # the command, see `run_study`
    devices: Sequence[str]  # GPUs by CUDA_VISIBLE_DEVICES' names; a run gets the least used one
    screen: Screen
    after_each: Callable[[], None]  # called when runs have ended
    available: Callable[[], int | None] = available_memory

    def __post_init__(self) -> None:
        runs = enumerate(self.runs, 1)
        self.queue = [(f"{i}/{len(self.runs)}  {run}", run) for i, run in runs]
        self.children: list[Child] = []
        self.ends: set[str] = set()
        self.said: tuple[str, bool] | None = None
        # Bytes of main memory that a run takes at the most; 0: none has shown it yet. The result of
        # a run on a GPU tells the GPU's.
        peaks = [r.files.result().get("peak_memory_gb") for r in self.runs if not self.devices]
        self.peak = 1e9 * max(filter(None, peaks), default=0.0)

    def run(self) -> set[str]:
        """Until all have ended, or a signal says stop.

        Returns:
            How runs ended that did not finish: 'failed', 'interrupted', 'stopped'.
        """
        for title, run in self.queue:
            if run.files.finished:
                self.screen.say(f"{title}  (finished)")
        self.queue = [(title, run) for title, run in self.queue if not run.files.finished]
        with _signals() as received, self.screen.live:
            try:
                while (self.queue or self.children) and not received:
                    some_ended = self._look()
                    while self.queue and len(self.children) < self.jobs and self._has_room():
                        self._start(*self.queue.pop(0))
                    if some_ended:
                        self.after_each()
                    self.screen.show(child.progress for child in self.children)
                    time.sleep(POLL_S)
            finally:  # also where a report could not be written: no run is left an orphan
                self._stop(received)
        return self.ends | ({"stopped"} if received else set())

    def _look(self) -> bool:
        """Notes progress and memory, and which have ended; whether any has."""
        ended = [child for child in self.children if child.process.poll() is not None]
        for child in ended:
            self.children.remove(child)
            end = child.end()
            if not self.screen.alone:
                self.screen.say(f"{child.title}  {end}")
            self.ends |= {end.partition(":")[0]} - {"finished"}
        for child in self.children:
            child.look()
            if child.progress.step:
                self.peak = max(self.peak, child.peak)
        return bool(ended)

    def _start(self, title: str, run: Run) -> None:
        if holder := run.files.lock.holder():
            self.screen.say(f"{title}  left to {holder}, which runs it")
            self.ends.add("failed")
        else:
            self.screen.say(title, style="bold")
            used = [child.device for child in self.children]
            device = min(self.devices, key=used.count) if self.devices else None
            self.children.append(Child(title, run, self.train, device, self.screen.alone))

    def _has_room(self) -> bool:
        """Whether one more run fits beside those under way, which may still grow to the peak."""
        free = self.available()
        if not self.children or free is None:
            return True
        needed = self.peak + sum(max(0.0, self.peak - child.memory) for child in self.children)
        if self.peak and free >= needed + MEMORY_RESERVE:
            return True
        title = self.queue[0][0]
        if self.said != (title, self.peak > 0):
            self.said = (title, self.peak > 0)
            why = f"{free / 1e9:.1f} GB are free, a run takes up to {self.peak / 1e9:.1f} GB"
            why = why if self.peak else "the first run has to show how much it takes"
            self.screen.say(f"{title}  waits for memory: {why}")
        return False

    def _stop(self, received: list[int]) -> None:
        """Asks all children to save and end; a second signal, or the time, ends them at once."""
        for child in self.children:
            child.process.send_signal(signal.SIGINT)
        asked, deadline = len(received), time.monotonic() + SECONDS_TO_STOP
        while running := [c for c in self.children if c.process.poll() is None]:
            if len(received) > asked or time.monotonic() > deadline:
                for child in running:  # with the processes that it has started itself
                    os.killpg(child.process.pid, signal.SIGKILL)
            time.sleep(POLL_S)


class Child:
    """A run that is under way, in a session of its own: a Ctrl-C reaches it through the study.

    Attributes:
        memory, peak: resident bytes, now and at the most.
    """

    def __init__(self, title: str, run: Run, train: Sequence[str], device: str | None, alone: bool):
        self.title, self.run, self.device = title, run, device
        self.progress = Progress(run)
        self.memory = self.peak = 0
        run.files.write_config(run.config)
        run.files.clear_error()
        self.log = None if alone else run.folder / "stdout.txt"
        visible = {"CUDA_VISIBLE_DEVICES": device} if device else {}
        with open(self.log, "wb") if self.log else nullcontext() as output:
            self.process = subprocess.Popen(
                [*train, run.folder / "config.yaml", "--out", run.folder, "--resume"],
                env=child_environment(PYTHONUNBUFFERED="1", **visible),
                start_new_session=True,
                stdout=output,
                stderr=output and subprocess.STDOUT,
            )

    def look(self) -> None:
        self.progress.look()
        self.memory, peak = process_memory(self.process.pid)
        self.peak = max(self.peak, peak)  # the process resets the kernel's own mark

    def end(self) -> str:
        """'finished', 'interrupted' or 'failed: why'; a failed one gets an error.txt."""
        code, files = self.process.returncode, self.run.files
        if code == 0 and files.finished:
            return "finished"
        if code in (-signal.SIGINT, 128 + signal.SIGINT):
            return "interrupted"
        if not files.error():
            text = self.log.read_text(encoding="utf-8", errors="replace") if self.log else ""
            files.write_error("\n".join([_why(code), *text.splitlines()[-20:]]) + "\n")
        return f"failed: {files.error().partition(chr(10))[0]}"


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
