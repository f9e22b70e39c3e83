"""A study's runs, each in a process of its own.

A run that fails or is interrupted leaves the others alone, and a study that was stopped goes on
where it stopped.
"""

import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ssl_zoo import experiment
from ssl_zoo.config import ConfigError, not_among
from ssl_zoo.runs import Held, Lock
from ssl_zoo.study import costs
from ssl_zoo.study.baselines import Baselines, one_by_one, side_by_side
from ssl_zoo.study.child import Child, left_to
from ssl_zoo.study.division import divide
from ssl_zoo.study.grid import Run, Study, expand, slug
from ssl_zoo.study.machine import available_memory, gpus
from ssl_zoo.study.measurer import Failed, Measurer
from ssl_zoo.study.progress import Screen
from ssl_zoo.study.report import kept, print_report, read_report, write_report
from ssl_zoo.system import hardware
from ssl_zoo.system.text import PlainConsole

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
    jobs: int | str = "auto",
    seeds: int | None = None,
    aa: bool = False,
    keep: Path | None = None,
    train: Sequence[str] = TRAIN,
) -> int:
    """Runs what a grid still lacks, and rewrites the report after each run.

    Args:
        grid_path, out, overrides, base, seeds, aa: as of `expand`.
        only: names of the arms to run; None: all.
        report_only: run nothing.
        jobs: runs side by side, no more than there are GPUs; auto: one on each GPU, or what
            `divide` finds.
        keep: where to write the study as one small file, when it ends; see `report.kept`.
        train: the command that trains; it gets a config, `--out FOLDER` and `--resume`.

    Returns:
        0; 1 if a run failed or was left to another process; 130 if the study or a run was stopped.

    Raises:
        ConfigError: the grid, an arm's config, a name in `only` or `jobs` is wrong, or a folder
            holds a run of another config, unless that differs in fewer epochs. Nothing has been
            run then.
        FileExistsError: another process runs this study.
    """
    given_jobs = None if jobs == "auto" else _number(jobs, len(gpus()))
    study = expand(grid_path, out, overrides, base, seeds, aa)
    arms = _chosen(only, list(study.blocks))
    console = PlainConsole()
    if not console.is_terminal:
        console.width = 140  # of a log file; rich would wrap the table at 80
    chosen = [run for run in study.runs if run.arm in arms and not report_only]
    for remark in dict.fromkeys(filter(None, map(_goes_on, chosen))):
        console.print(f"runs go on for longer: {remark}", soft_wrap=True)
    ends: set[str] = set()
    lock = Lock(study.out / "study.lock")
    if report_only and lock.holder():  # who runs the study writes its report
        print_report(read_report(study), console)
        if keep:
            kept.write(study, keep)
        return 0
    lock.acquire()
    try:
        if not report_only:
            study, ends = _run(study, arms, given_jobs, train, console)
            ends |= _measure_costs(study, arms, console) if not ends - {"failed"} else set()
        print_report(write_report(study), console)
        if keep and not ends - {"failed"}:
            kept.write(study, keep)
    finally:
        lock.release()
    if ends & {"stopped", "interrupted"}:
        console.print("stopped; the same command goes on from here")
    if "left" in ends:
        console.print("runs were left to other processes; the same command reports them later")
    if keep and ends - {"failed"}:
        console.print(f"{keep} is as it was: a study is kept when it ends", soft_wrap=True)
    return 130 if "stopped" in ends else 1 if ends & {"failed", "left"} else 130 if ends else 0


def _number(jobs: int | str, gpus: int) -> int:
    if not (str(jobs).isdecimal() and int(jobs) > 0):
        expected = "a number of runs, at least 1, or auto"
        raise ConfigError("--jobs", "no such number", found=repr(jobs), expected=expected)
    if 0 < gpus < int(jobs):
        problem = "more runs than GPUs: how much of a GPU's memory is free is not watched"
        raise ConfigError("--jobs", problem, found=str(jobs), expected=f"at most {gpus}, or auto")
    return int(jobs)


def _chosen(only: Sequence[str] | None, arms: list[str]) -> list[str]:
    by_name = {name: arm for arm in arms for name in (arm, slug(arm))}
    for name in only or ():
        if name not in by_name:
            error = not_among("only", "no arm of this name", name, arms)
            error.where = "command line"
            raise error
    return arms if only is None else [by_name[name] for name in only]


def _goes_on(run: Run) -> str:
    """What a person should know of a run that was trained for fewer epochs; '' of all others.

    Else a folder in which something was trained belongs to the config that it was trained with.
    """
    written = run.files.config() if run.trained else None
    changed = experiment.changes(written, run.config) if written is not None else []
    remark = experiment.longer(written, run.config) if changed else ""
    if changed and not remark:
        problem = f"the folder holds a run of another config: {run}"
        expected = "the same config, another --out, or the folder removed"
        found, where = "; ".join(changed), str(run.folder)
        raise ConfigError("", problem, found=found, expected=expected, where=where)
    return remark


def _run(
    study: Study, arms: list[str], jobs: int | None, train: Sequence[str], console: PlainConsole
) -> tuple[Study, set[str]]:
    """Runs the arms; returns the study with its threads settled, and `Launcher.run`'s answer."""
    cores, devices, environment = hardware.cores(), gpus(), {}
    try:
        division = study.division()
        if division is None:
            configs = [run.config for run in study.runs]
            division = divide(configs, cores, len(devices))
            division.write(study.out)
        study = study.with_threads(division.threads)
        runs = [run for run in study.runs if run.arm in arms]
        runs.sort(key=lambda run: not study.planned(run.point))  # what was planned first
        # A study may go on where there are other GPUs than at its start.
        count = min(jobs or len(devices) or division.jobs, len(runs))
        threads = sorted({run.config["train"]["threads"] for run in runs})
        screen = Screen(console, alone=count == 1)
        of_each = ", ".join(map(str, threads))
        screen.say(f"runs at once: {count}; threads of each: {of_each}; {division.why}")
        if count > 1 and count * threads[-1] > cores:
            screen.say(f"{count} runs of {threads[-1]} threads take turns on {cores} cores")
            # Threads that spin while they wait would keep those that work from the cores.
            environment = {"OMP_WAIT_POLICY": "PASSIVE"}
        places = [{"CUDA_VISIBLE_DEVICES": name} for name in devices] or [{}] * count
        log = study.out / "baselines.log"
        measurers = [Measurer(log, environment | place) for place in places[:count]]
        how = side_by_side(measurers) if count > 1 else one_by_one
        failed = Baselines(study.out / "baselines.json").measure(runs, screen.say, how)
        able = _without(failed, runs, screen)
    except KeyboardInterrupt:
        return study, {"stopped"}
    ends = {"failed"} if len(able) < len(runs) else set()
    after_each = partial(write_report, study)
    launcher = Launcher(able, count, train, devices, environment, screen, after_each)
    return study, ends | launcher.run()


def _measure_costs(study: Study, arms: list[str], console: PlainConsole) -> set[str]:
    """Last, when no run is under way that would share the machine."""
    try:
        worked = costs.measure(study, arms, partial(console.print, soft_wrap=True))
        return set() if worked else {"failed"}
    except KeyboardInterrupt:
        return {"stopped"}


def _without(failed: list[tuple[Run, Failed]], runs: list[Run], screen: Screen) -> list[Run]:
    """The runs for which baselines could be measured; like one of training, a failure is theirs."""
    for run, failure in failed:
        screen.say(f"{run}  failed: {failure.why}")
        if not (run.finished or run.files.lock.holder()):
            run.files.write_error(f"{failure.why}\n\n{failure.trace}")
    return [run for run in runs if not any(run is other for other, _ in failed)]


@dataclass
class Launcher:
    """Keeps so many runs under way."""

    runs: Sequence[Run]
    jobs: int
    train: Sequence[str]  # the command, see `run_study`
    devices: Sequence[str]  # GPUs by CUDA_VISIBLE_DEVICES' names; a run gets the least used one
    environment: dict[str, str]  # what they have beside the study's own
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
            How runs ended that did not finish: 'failed', 'interrupted', 'left' to another process;
            'stopped' if a signal was received.
        """
        for title, run in self.queue:
            if run.finished:
                self.screen.say(f"{title}  (finished)")
        self.queue = [(title, run) for title, run in self.queue if not run.finished]
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
            self.ends |= self._say_end(child.title, child.end()) - {"finished"}
        for child in self.children:
            child.look()
            if child.progress.step:
                self.peak = max(self.peak, child.peak)
        return bool(ended)

    def _start(self, title: str, run: Run) -> None:
        environment = dict(self.environment)
        if self.devices:
            used = [child.environment["CUDA_VISIBLE_DEVICES"] for child in self.children]
            environment["CUDA_VISIBLE_DEVICES"] = min(self.devices, key=used.count)
        self.screen.say(title, style="bold")
        try:
            self.children.append(Child(title, run, self.train, environment, self.screen.alone))
        except Held:
            self.ends |= self._say_end(title, left_to(run.files.lock.holder()))
        except (OSError, ValueError) as error:  # of its folder, which is the run's alone
            self.ends |= self._say_end(title, f"failed: {error}")
            with suppress(OSError):
                run.files.write_error(f"{error}\n\n{traceback.format_exc()}")

    def _say_end(self, title: str, end: str) -> set[str]:
        """Says what `Child.end` says, unless a run alone has said so itself; its first word."""
        how = end.split()[0].rstrip(":")
        if how in ("failed", "left") or not self.screen.alone:
            self.screen.say(f"{title}  {end}")
        return {how}

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
            why = "at the second signal" if len(received) > asked else ""
            if time.monotonic() > deadline:
                why = f"it had {SECONDS_TO_STOP:g} s to save and end"
            for child in running if why else ():
                child.kill(f"killed by the study: {why}")
            time.sleep(POLL_S)
        for child in self.children:
            self._say_end(child.title, child.end())


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
