"""A grid of training runs that differ in what the grid names and in nothing else.

Arms are paired: with the same seed they see the same images in the same order through the same
views, and start from the same weights. Each run is a process of its own, so one that fails leaves
the others alone, and a study that was stopped goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ssl_zoo import config
from ssl_zoo.config import ConfigError, Part, bind, closest
from ssl_zoo.engine import checkpoint
from ssl_zoo.evaluation import knn
from ssl_zoo.experiment import build
from ssl_zoo.study import report
from ssl_zoo.study.baselines import RANDOM, Baselines, depends_on
from ssl_zoo.system import distributed

TRAIN = (sys.executable, "-m", "ssl_zoo.cli", "train")
SECONDS_TO_STOP = 60.0  # what a run gets to leave a checkpoint behind


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of a grid.

    Args:
        base: a config in place of the grid's base, relative to the grid file.
        set: dotted keys and their values.
        sweep: `{key: [value, ...]}`, or `{label: {key: value, ...}, ...}` where several keys move
            together.
    """

    base: str | None = None
    set: dict = field(default_factory=dict)
    sweep: dict = field(default_factory=dict)

    @staticmethod
    def validate(*, sweep: dict | None = None, **others) -> None:
        points = list((sweep or {}).values())
        one_key = len(points) == 1 and isinstance(points[0], list) and points[0]
        if not one_key and not all(isinstance(point, dict) for point in points):
            raise ConfigError(
                "sweep",
                "neither one key with a list of values nor labels with blocks of keys",
                found=repr(sweep),
                expected="{key: [value, ...]} or {label: {key: value, ...}, ...}",
            )

    def points(self) -> Iterator[tuple[str | None, dict[str, Any]]]:
        """(label on the swept axis, dotted keys that the point sets)."""
        if not self.sweep:
            yield None, {}
        for name, point in self.sweep.items():
            if isinstance(point, dict):
                yield name, point
            else:
                for value in point:
                    yield value if isinstance(value, str) else json.dumps(value), {name: value}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid file.

    Args:
        base: the config that arms start from, relative to the grid file; not needed if every arm
            has a base of its own.
        seeds: each arm runs once with each.
        set: dotted keys for every arm.
        x: name of the swept quantity, for the figure.
        arms: by name; differences are taken against the first.
    """

    arms: dict[str, Part[Arm]]
    base: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    set: dict = field(default_factory=dict)
    x: str | None = None

    @staticmethod
    def validate(
        *, arms: dict, base: str | None = None, seeds: Sequence[int] = (0,), **others
    ) -> None:
        if not arms:
            raise ConfigError("arms", "no arms", found="an empty block", expected="at least one")
        if not seeds or len(set(seeds)) < len(seeds):
            raise ConfigError("seeds", "none, or one twice", found=repr(seeds), expected="a list")
        without = [name for name, arm in arms.items() if arm.kwargs.get("base") is None]
        if base is None and without:
            raise ConfigError(
                "base",
                "neither the grid nor every arm has one",
                found=f"none for {', '.join(without)}",
                expected="a config for the grid, or one for each arm",
            )


@dataclass(frozen=True)
class Run:
    """One training run: an arm at one point of its sweep with one seed."""

    arm: str
    x: str | None
    seed: int
    folder: Path
    config: dict[str, Any]

    def __str__(self) -> str:
        return ", ".join(filter(None, [self.arm, self.x, f"seed {self.seed}"]))


@dataclass(frozen=True)
class Study:
    """A grid's runs and what the report says of them as a whole.

    Attributes:
        runs: seed by seed, so that a study that was stopped has compared its arms.
        common: what all arms have in common, as the grid has it.
        blocks: what each arm sets, as the grid has it.
        command: what the user types to run or continue the study.
    """

    name: str
    out: Path
    x: str
    runs: list[Run]
    common: dict[str, Any]
    blocks: dict[str, dict[str, Any]]
    command: str


def slug(name: str) -> str:
    """A folder name for an arm or a point: 'memory bank' -> 'memory-bank'."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "arm"


def expand(
    grid_path: str | Path,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    base: str | Path | None = None,
) -> Study:
    """Reads a grid file and resolves the config of every run.

    A key is set by, from weak to strong: the base, the grid's `set`, `overrides`, the arm.

    Raises:
        ConfigError: the grid is wrong, an arm's config is wrong, an override sets what the arms
            differ in, or `base` is given to arms with bases of their own.
    """
    grid_path, overrides = Path(grid_path), list(overrides)
    file = config.load(grid_path)
    try:
        grid: Grid = bind(Grid, file.data)()
        arms: dict[str, Arm] = {name: part() for name, part in grid.arms.items()}
        _check_overrides(overrides, arms)
        _check_base(base, arms)
    except ConfigError as error:
        error.where = error.where or file.where(error.key) or str(grid_path)
        raise
    command = ["ssl-zoo", "ablate", str(grid_path), *overrides]
    name = grid_path.stem
    if base is None:
        base = grid_path.parent / grid.base if grid.base is not None else None
    else:
        command += ["--base", str(base)]
        name += f"-{Path(base).stem}"
    if out is not None:
        command += ["--out", str(out)]
    out = Path(out) if out is not None else Path("runs", "ablation", name)

    runs = []
    for arm_name, arm in arms.items():
        start = grid_path.parent / arm.base if arm.base is not None else base
        for label, point in arm.points():
            settings = [*grid.set.items(), *overrides, *arm.set.items(), *point.items()]
            folder = out / slug(arm_name) / slug(label) if label else out / slug(arm_name)
            for seed in grid.seeds:
                try:
                    resolved = config.load(start, [*settings, ("seed", seed)])
                    if resolved.data.get("knn") is not None:  # the study's, see `measure_baselines`
                        resolved.data["knn"]["baselines"] = False
                    resolved = build.parse(resolved).spelled_out()
                except ConfigError as error:
                    error.where = f"{grid_path}, arm {arm_name!r}: {error.where}".rstrip(": ")
                    raise
                runs.append(Run(arm_name, label, seed, folder / f"seed{seed}", resolved))
    by_folder: dict[Path, Run] = {}
    for run in runs:
        other = by_folder.setdefault(run.folder, run)
        if other is not run:
            raise ConfigError(
                "arms", "two runs with one folder", found=f"{other}; {run}", where=str(grid_path)
            )
    runs.sort(key=lambda run: grid.seeds.index(run.seed))
    swept = (key for arm in arms.values() for key, at in arm.sweep.items() if isinstance(at, list))
    x = grid.x or next(swept, "point").rpartition(".")[2]
    common = {"base": str(base or ""), "seeds": grid.seeds, "set": grid.set, "overrides": overrides}
    common = {name: value for name, value in common.items() if value}
    blocks = {name: {k: v for k, v in vars(arm).items() if v} for name, arm in arms.items()}
    return Study(name, out, x, runs, common, blocks, shlex.join(command))


def _check_base(base: str | Path | None, arms: dict[str, Arm]) -> None:
    own = [name for name, arm in arms.items() if arm.base is not None]
    if base is not None and own:
        raise ConfigError(
            "base",
            "another base for arms that have bases of their own",
            found=f"--base {base}; bases of {', '.join(own)}",
            expected="no --base, or a grid whose arms share one base",
            where="command line",
        )


def _check_overrides(overrides: list[str], arms: dict[str, Arm]) -> None:
    """An override of a key that the arms set would be lost or would level the arms."""
    keys = [key for arm in arms.values() for key in arm.set]
    keys += [key for arm in arms.values() for _, point in arm.points() for key in point]
    for override in overrides:
        dotted = override.partition("=")[0]
        for key in [*keys, "seed"]:
            if f"{dotted}.".startswith(f"{key}.") or f"{key}.".startswith(f"{dotted}."):
                raise ConfigError(
                    dotted,
                    "an override of what the arms differ in",
                    found=repr(override),
                    expected=f"the grid file to be changed, which sets {key}"
                    if key != "seed"
                    else "the grid file's `seeds` to be changed",
                    where="command line",
                )


def ablate(
    grid_path: str | Path,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    only: Sequence[str] | None = None,
    report_only: bool = False,
    base: str | Path | None = None,
    train: Sequence[str] = TRAIN,
) -> int:
    """Runs what a grid still lacks, one run after the other, and rewrites the report after each.

    Args:
        grid_path: the grid file, see `Grid`.
        out: the study's folder; None: runs/ablation/<name of the grid file>.
        overrides: 'key=value' for every arm.
        only: names of the arms to run; None: all.
        report_only: run nothing.
        base: a config in place of the grid's own base.
        train: the command that trains; it gets a config, `--out FOLDER` and `--resume`.

    Returns:
        0; 1 if a run failed; 130 if the study was stopped.

    Raises:
        ConfigError: the grid, an arm's config or a name in `only` is wrong, or a folder holds a
            run of another config. Nothing has been run then.
    """
    study = expand(grid_path, out, overrides, base)
    arms = _chosen(only, list(study.blocks))
    runs = [run for run in study.runs if run.arm in arms]
    console = Console()
    if not console.is_terminal:
        console.width = 140  # of a log file; rich would wrap the table at 80
    failed = stopped = False
    if not report_only:
        for run in runs:
            _check_unchanged(run)
        try:
            measure_baselines(runs, Baselines(study.out / "baselines.json"), console)
            for number, run in enumerate(runs, 1):
                progress = f"{number}/{len(runs)}  {run}"
                if (run.folder / "result.json").exists():
                    console.print(f"{progress}  (finished)", highlight=False, markup=False)
                    continue
                console.print(progress, style="bold", highlight=False, markup=False)
                failed |= not _run(run, train)
                report.write(study)
        except KeyboardInterrupt:
            stopped = True
    report.write(study)
    report.show(study, console)
    if stopped:
        console.print("stopped; the same command goes on from here")
    return 130 if stopped else int(failed)


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
    written = run.folder / "config.yaml"
    started = (run.folder / "result.json").exists() or checkpoint.saved(run.folder)
    changed = config.differences(config.load(written).data, run.config) if started else []
    if changed:
        raise ConfigError(
            "",
            f"the folder holds a run of another config: {run}",
            found="; ".join(changed),
            expected="the same config, another --out, or the folder removed",
            where=str(run.folder),
        )


def _run(run: Run, train: Sequence[str]) -> bool:
    """Trains one run in a process of its own; False if it failed.

    Raises:
        KeyboardInterrupt: the user stopped the run or the study.
    """
    error = run.folder / "error.txt"
    error.unlink(missing_ok=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    written = run.folder / "config.yaml"
    config.dump(run.config, written)
    # The child finds this package also where it is not installed.
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [*train, str(written), "--out", str(run.folder), "--resume"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )

    def stop(signum, frame):  # a SIGTERM to the study alone would leave the run an orphan
        process.send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # on Ctrl-C the terminal has told the child as well
        _let_stop(process)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    if code in (-signal.SIGINT, 128 + signal.SIGINT):
        raise KeyboardInterrupt
    if code == 0 and (run.folder / "result.json").exists():
        return True
    if not error.exists():
        error.write_text(_why(code) + "\n", encoding="utf-8")
    return False


def _let_stop(process: subprocess.Popen) -> None:
    try:
        process.wait(SECONDS_TO_STOP)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def _why(code: int) -> str:
    if code == 0:
        return "the run ended without a result"
    if code == -signal.SIGKILL:
        return "killed (SIGKILL); most often the machine ran out of memory"
    if code < 0:
        return f"killed by signal {signal.Signals(-code).name}"
    return f"ended with exit code {code} and left no message"


def measure_baselines(runs: list[Run], known: Baselines, console: Console) -> None:
    """Measures what the runs have to beat and is not known: pixels, and the backbones' starts.

    A start is the network with the weights that the runs of one backbone and seed start from.

    Raises:
        ConfigError: the kNN vote cannot be taken on a data set.
    """
    for run in runs:
        lacking = {n: of for n, of in depends_on(run.config).items() if known.find(of) is None}
        if not lacking:
            continue
        console.print(f"baselines of {run}", highlight=False, markup=False)
        data, backbone = build.data_and_backbone(config.Config(run.config))
        device = distributed.start()
        for name, of in lacking.items():
            network = backbone.to(device) if name == RANDOM else knn.Pixels()
            try:
                known.keep(of, knn.evaluate(network, data, device, **of["knn"]))
            except ValueError as error:
                raise ConfigError("knn", str(error)) from error
        backbone.cpu()  # the arms, in processes of their own, need the GPU's memory
