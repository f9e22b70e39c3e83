"""A grid file, and the training runs that it stands for.

Runs differ in what the grid names and in nothing else. Arms are paired: with the same seed they see
the same images in the same order through the same views, and start from the same weights.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ssl_zoo import config, experiment
from ssl_zoo.config import EVALUATIONS, ConfigError, NonNegativeInt, Part, bind, not_among
from ssl_zoo.evaluation.base import Evaluation, declared
from ssl_zoo.evaluation.monitor import Monitored
from ssl_zoo.runs import RunFolder
from ssl_zoo.study.division import Division
from ssl_zoo.system.files import user_path

Point = tuple[str, str | None]  # an arm, and where on its sweep


# With --aa: what a twin of a point sets besides, for a run's seed. None of it should matter, so
# as much as a twin differs do arms differ for nothing.
TWINS: dict[str, Callable[[int], dict[str, Any]]] = {
    "one ulp": lambda seed: {"nudge_weights": True},
    "data seed": lambda seed: {"data.seed": 1_000_000 + seed},  # far from a grid's seeds
}


def title(point: Point) -> str:
    """As contrasts and reports name a point: 'MoCo, 4096'."""
    return ", ".join(filter(None, point))


class Arm:
    """One arm of a grid.

    Args:
        base: a config in place of the grid's base, relative to the grid file.
        set: dotted keys and their values.
        sweep: `{key: [value, ...]}`, or `{label: {key: value, ...}, ...}` where several keys move
            together.
    """

    def __init__(self, *, base: str | None = None, set: dict = {}, sweep: dict = {}):  # noqa: B006
        self.base, self.set, self.sweep = base, set, sweep

    @staticmethod
    def validate(*, sweep: dict, **_) -> None:
        points = list(sweep.values())
        one_key = len(points) == 1 and isinstance(points[0], list) and points[0]
        if not one_key and not all(isinstance(point, dict) for point in points):
            problem = "neither one key with a list of values nor labels with blocks of keys"
            expected = "{key: [value, ...]} or {label: {key: value, ...}, ...}"
            raise ConfigError("sweep", problem, found=repr(sweep), expected=expected)

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


def find_point(text: str, points: Iterable[Point], key: str) -> Point:
    """The point of this title, of several the last; ConfigError for one that is not there."""
    by_title = {title(point): point for point in points}
    if text not in by_title:
        raise not_among(key, "no arm, or no point of one", text, by_title)
    return by_title[text]


class Contrast(NamedTuple):
    """One point that is expected to be better than another, or than a baseline of its own.

    Attributes:
        worse: of a baseline its name and None.
    """

    better: Point
    worse: Point

    @classmethod
    def read(
        cls, text: str, points: Sequence[Point], baselines: Iterable[str] | None = ()
    ) -> Contrast:
        """Of 'A > B'; ConfigError where it is no such text, or names what is not there.

        Args:
            baselines: what B may be besides a point; None: not known here, so whatever is no point.
        """
        sides = [side.strip() for side in text.split(" > ")]
        if len(sides) != 2:
            expected = "'A > B', where A is expected to be better"
            raise ConfigError("compare", "no contrast", found=repr(text), expected=expected)
        others = sides[1:] if baselines is None else baselines
        better = find_point(sides[0], points, "compare")
        # Of a point and a baseline of one name the point is meant.
        worse = find_point(sides[1], [*((name, None) for name in others), *points], "compare")
        contrast = cls(better, worse)
        if contrast.better == contrast.worse:
            raise ConfigError("compare", "an arm against itself", found=repr(text))
        return contrast

    def __str__(self) -> str:
        return f"{title(self.better)} > {title(self.worse)}"


class Grid:
    """A grid file.

    Args:
        base: the config that arms start from, relative to the grid file; not needed if every arm
            has a base of its own.
        seeds: each arm runs once with each.
        compare: contrasts that are planned, '"A > B"' each, where A and B are arms, or an arm and a
            point of its sweep: "MoCo, 4096 > end-to-end, 31". A is expected to be the better one.
            B may be a baseline of A in the main evaluation: "MoCo, 4096 > random backbone".
        other_seeds: of what no contrast names; null: `seeds`, for all.
        kept: a kept study, relative to the grid file, that the report draws these runs over.
        costs: probe what a step costs at the grid's points and, by arm, at those of further
            sweeps; null: not at all.
        set: dotted keys for every arm.
        x: name of the swept quantity, for the figure.
        arms: by name; differences are taken against the first.
    """

    def __init__(
        self,
        *,
        arms: dict[str, Part[Arm]],
        base: str | None = None,
        seeds: list[NonNegativeInt] = [0],  # noqa: B006
        set: dict = {},  # noqa: B006
        x: str | None = None,
        compare: list[str] = [],  # noqa: B006
        other_seeds: list[NonNegativeInt] | None = None,
        kept: str | None = None,
        costs: dict[str, dict] | None = None,
    ):
        self.arms: dict[str, Arm] = {name: arm() for name, arm in arms.items()}
        self.base, self.seeds, self.set, self.x = base, seeds, set, x
        self.kept = kept
        self.costs = None if costs is None else {n: Arm(sweep=sweep) for n, sweep in costs.items()}
        # Which baselines there are, whole configs say: `expand` checks it.
        self.contrasts = [Contrast.read(text, self.points, baselines=None) for text in compare]
        self.other_seeds = seeds if other_seeds is None else other_seeds

    @property
    def points(self) -> list[Point]:
        """What is compared: an arm at one point of its sweep, if it has one."""
        return [(name, label) for name, arm in self.arms.items() for label, _ in arm.points()]

    @property
    def twins(self) -> dict[Point, tuple[Point, str]]:
        """Those that --aa adds: of which point, and which of `TWINS`.

        The point is the better side of the first planned contrast, or else the first of all.
        """
        point = self.contrasts[0].better if self.contrasts else self.points[0]
        return {(f"{point[0]} ({kind})", point[1]): (point, kind) for kind in TWINS}

    @property
    def swept(self) -> str:
        """The name of the swept quantity."""
        arms = self.arms.values()
        keys = (k for arm in arms for k, at in arm.sweep.items() if isinstance(at, list))
        return self.x or next(keys, "point").rpartition(".")[2]

    def seeds_of(self, point: Point) -> list[int]:
        """`seeds` of a point that a contrast names, of others `other_seeds`."""
        planned = any(point in contrast for contrast in self.contrasts)
        return self.seeds if planned else self.other_seeds

    @staticmethod
    def validate(
        *,
        arms: dict,
        base: str | None,
        seeds: list[int],
        other_seeds: list[int] | None,
        costs: dict[str, dict] | None,
        **_,
    ) -> None:
        if not arms:
            raise ConfigError("arms", "no arms", found="an empty block", expected="at least one")
        for name, sweep in (costs or {}).items():
            if name not in arms:
                raise not_among("costs", "no arm of this name", name, arms)
            Arm.validate(sweep=sweep)
        for key, of in {"seeds": seeds, "other_seeds": other_seeds}.items():
            if of is not None and (not of or len(set(of)) < len(of)):
                expected = "a list of seeds without repeats"
                raise ConfigError(key, "no seeds, or a repeat", found=repr(of), expected=expected)
        without = ", ".join(name for name, arm in arms.items() if arm.kwargs.get("base") is None)
        if base is None and without:
            problem = "neither the grid nor every arm has one"
            expected = "a config for the grid, or one for each arm"
            raise ConfigError("base", problem, found=f"none for {without}", expected=expected)


@dataclass(frozen=True)
class Run:
    """One training run: an arm at one point of its sweep with one seed."""

    arm: str
    x: str | None
    seed: int
    folder: Path
    config: dict[str, Any]

    @property
    def point(self) -> Point:
        return self.arm, self.x

    def __str__(self) -> str:
        return f"{title(self.point)}, seed {self.seed}"

    @property
    def files(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def trained(self) -> bool:
        """Whether the folder holds what another config would destroy."""
        return self.files.finished or bool(self.files.checkpoints())

    @property
    def finished(self) -> bool:
        """Whether there is a result, of a run as long as this one is asked to be or longer."""
        trained = (self.files.config() if self.files.finished else None) or self.config
        (unit, number), (asked, wanted) = (
            experiment.run_length(config["train"]) for config in (trained, self.config)
        )
        return self.files.finished and unit == asked and number >= wanted

    @property
    def evaluations(self) -> dict[str, type[Evaluation]]:
        blocks = self.config["evaluations"]
        return {name: EVALUATIONS.get(block["type"]) for name, block in blocks.items()}

    def metric(self, name: str) -> str:
        """The main one of an evaluation."""
        block = self.config["evaluations"][name]
        return declared(bind(EVALUATIONS, block, "", Monitored), "metric")

    @property
    def main(self) -> str:
        """The evaluation that runs are compared in: `best`'s, else the first; '' without any."""
        best = self.config["best"]
        return best.partition(".")[0] if best else next(iter(self.evaluations), "")

    @cached_property
    def baselines(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Evaluation -> baseline -> what its number depends on; `seed` is in that if it does."""
        return experiment.baselines_of(self.config)


@dataclass(frozen=True)
class Study:
    """A grid's runs and what the report says of them as a whole."""

    name: str
    out: Path
    x: str
    runs: list[Run]  # seed by seed, so that a study that was stopped has compared its arms
    blocks: dict[str, dict[str, Any]]  # what each arm sets, as the grid has it
    command: str  # what the user types to run or continue the study
    # Points of which is asked what a step costs; no run, and no folder.
    probes: list[Run] = field(default_factory=list)
    # What all arms have in common, as the grid has it.
    common: dict[str, Any] = field(default_factory=dict)
    contrasts: list[Contrast] = field(default_factory=list)  # that are planned
    # Arms that --aa adds, and the point that each is a twin of.
    twins: dict[str, Point] = field(default_factory=dict)
    kept: Path | None = None  # a kept study that the report draws these runs over

    def planned(self, point: Point) -> bool:
        """Whether a planned contrast names the point; all are where none is planned."""
        return not self.contrasts or any(point in contrast for contrast in self.contrasts)

    def division(self) -> Division | None:
        """As an earlier start has settled it; None while nothing is trained."""
        return Division.read(self.out) if any(run.trained for run in self.runs) else None

    def with_threads(self, threads: int) -> Study:
        """The same study, where runs that left `train.threads` open have so many."""

        def settled(run: Run) -> Run:
            train = run.config["train"]
            if train["threads"] != "auto":
                return run
            return replace(run, config={**run.config, "train": {**train, "threads": threads}})

        runs, probes = ([settled(run) for run in some] for some in (self.runs, self.probes))
        return replace(self, runs=runs, probes=probes)


def slug(name: str) -> str:
    """A folder name for an arm or a point: 'memory bank' -> 'memory-bank'."""
    return re.sub(r"(?:[^\w.]|_)+", "-", name.lower()).strip("-.") or "arm"


def expand(
    grid_path: str | Path,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    base: str | Path | None = None,
    seeds: int | None = None,
    aa: bool = False,
) -> Study:
    """Reads a grid file and resolves the config of every run.

    A key is set by, from weak to strong: the base, the grid's `set`, `overrides`, the arm.

    Args:
        out: the study's folder; None: runs/ablation/<name of the grid file>.
        overrides: 'key=value' for every arm.
        base: a config in place of the grid's own base.
        seeds: so many, 0 and up, in place of the grid's `seeds`.
        aa: with twins of one point, see `Grid.twins`.

    Raises:
        ConfigError: the grid is wrong, an arm's config is wrong, an override sets what the arms
            differ in, `base` is given to arms with bases of their own, `seeds` is below 1, or a
            twin would not differ from its original.
    """
    path, overrides = config.find(grid_path), list(overrides)
    grid = _read(path, overrides, base, seeds)
    name = path.stem if base is None else f"{path.stem}-{Path(base).stem}"
    folder = Path(out) if out is not None else Path("runs", "ablation", name)
    own_base = path.parent / user_path(grid.base) if grid.base is not None else None
    recipes = Recipes(grid, path, own_base if base is None else base, overrides)
    twins = grid.twins if aa else {}
    runs = _runs(recipes, twins, folder)
    _check_contrasts(grid, runs, path)
    study = Study(
        name,
        folder,
        grid.swept,
        runs,
        _blocks(grid, twins),
        _command(path, overrides, base, out, seeds, aa),
        probes=_probes(recipes),
        common=_common(recipes),
        contrasts=grid.contrasts,
        twins={twin: of for (twin, _), (of, _) in twins.items()},
        kept=Path(os.path.normpath(path.parent / user_path(grid.kept))) if grid.kept else None,
    )
    division = study.division()
    return study.with_threads(division.threads) if division else study


def _read(path: Path, overrides: list[str], base: str | Path | None, seeds: int | None) -> Grid:
    """The grid of a file, with what the command line asks of it."""
    file = config.load(path)
    if seeds is not None:
        if seeds < 1:
            problem, found = "no such number of seeds", repr(seeds)
            raise ConfigError("--seeds", problem, found=found, expected="at least 1")
        file.data["seeds"] = list(range(seeds))
    try:
        grid: Grid = bind(Grid, file.data)()
        _check_command_line(overrides, base, grid.arms)
    except ConfigError as error:
        error.where = error.where or file.where(error.key) or str(path)
        raise
    return grid


@dataclass(frozen=True)
class Recipes:
    """The whole configs of a grid's points.

    Args:
        base: of the arms that have none of their own.
        overrides: 'key=value' for every arm.
    """

    grid: Grid
    path: Path
    base: str | Path | None
    overrides: list[str]

    def of(self, point: Point, seed: int, twin: dict[str, Any] = {}) -> dict[str, Any]:  # noqa: B006
        """With the dotted keys that a twin sets besides."""
        name, at = point
        arm = self.grid.arms[name]
        points = {**dict(arm.points()), **self.further(name)}
        base = self.base if arm.base is None else self.path.parent / user_path(arm.base)
        settings = [*self.grid.set.items(), *self.overrides, *arm.set.items(), *points[at].items()]
        loaded = config.load(base, [*settings, *twin.items(), ("seed", seed)])
        return experiment.parse(loaded).spelled_out()

    def further(self, arm: str) -> dict[str | None, dict[str, Any]]:
        """Points of an arm at which only costs are asked for, and what they set."""
        more = (self.grid.costs or {}).get(arm)
        return dict(more.points()) if more and more.sweep else {}


def _runs(recipes: Recipes, twins: dict[Point, tuple[Point, str]], out: Path) -> list[Run]:
    """Of all points and twins, seed by seed; ConfigError for two with one folder."""
    grid, runs = recipes.grid, []
    for point in grid.points:
        with _of_arm(recipes.path, point[0]):
            for seed in grid.seeds_of(point):
                runs.append(_run(point, seed, recipes.of(point, seed), out))
    originals = {(run.point, run.seed): run.config for run in runs}
    for twin, (of, kind) in twins.items():
        with _of_arm(recipes.path, twin[0]):
            for seed in grid.seeds_of(of):
                own = TWINS[kind](seed)
                runs.append(_run(twin, seed, recipes.of(of, seed, own), out))
                if runs[-1].config == originals[of, seed]:
                    problem = f"a twin of {title(of)} that sets nothing else"
                    found, expected = f"{own} in both", "another value there, or no --aa"
                    raise ConfigError(next(iter(own)), problem, found=found, expected=expected)
    last = {run.folder: run for run in runs}
    if twice := [f"{run}; {last[run.folder]}" for run in runs if last[run.folder] is not run]:
        problem, where = "two runs with one folder", str(recipes.path)
        raise ConfigError("arms", problem, found=twice[0], where=where)
    order = [*grid.seeds, *grid.other_seeds]
    return sorted(runs, key=lambda run: order.index(run.seed))


def _check_contrasts(grid: Grid, runs: list[Run], path: Path) -> None:
    """Raises ConfigError for a worse side that is neither a point nor a baseline of the better."""
    for contrast in grid.contrasts:
        if contrast.worse not in grid.points:
            run = next(run for run in runs if run.point == contrast.better)
            try:
                Contrast.read(str(contrast), grid.points, run.baselines.get(run.main, ()))
            except ConfigError as error:
                error.where = str(path)
                raise


def _run(point: Point, seed: int, whole: dict[str, Any], out: Path) -> Run:
    folder = out.joinpath(*map(slug, filter(None, point)), f"seed{seed}")
    return Run(*point, seed, folder, whole)


def _probes(recipes: Recipes) -> list[Run]:
    """Of all points at which the grid asks what a step costs; none if it does not ask."""
    grid = recipes.grid
    if grid.costs is None:
        return []
    more = [(arm, at) for arm in grid.costs for at in recipes.further(arm)]
    probes = []
    for point in dict.fromkeys([*grid.points, *more]):
        with _of_arm(recipes.path, point[0]):
            whole = recipes.of(point, grid.seeds[0])
        probes.append(Run(*point, grid.seeds[0], Path(), whole))
    return probes


def _command(
    path: Path,
    overrides: list[str],
    base: str | Path | None,
    out: str | Path | None,
    seeds: int | None,
    aa: bool,
) -> str:
    """What a user types to run or continue the study."""
    words = ["ssl-zoo", "ablate", str(path), *overrides]
    options = {"--base": base, "--out": out, "--seeds": seeds}
    for option, value in options.items():
        words += [option, str(value)] if value is not None else []
    return shlex.join([*words, *(["--aa"] if aa else [])])


def _blocks(grid: Grid, twins: dict[Point, tuple[Point, str]]) -> dict[str, dict[str, Any]]:
    """What each arm and each twin sets."""
    blocks = {name: {k: v for k, v in vars(arm).items() if v} for name, arm in grid.arms.items()}
    for (twin, _), (of, kind) in twins.items():
        seed = grid.seeds_of(of)[0]
        blocks[twin] = {"twin of": title(of), f"set, with seed {seed}": TWINS[kind](seed)}
    return blocks


def _common(recipes: Recipes) -> dict[str, Any]:
    """What all arms have in common."""
    grid = recipes.grid
    common = {"base": str(recipes.base or ""), "seeds": grid.seeds, "set": grid.set}
    common["overrides"] = recipes.overrides
    if grid.contrasts:
        common |= {"compare": list(map(str, grid.contrasts)), "other_seeds": grid.other_seeds}
    return {name: value for name, value in common.items() if value}


@contextmanager
def _of_arm(grid_path: Path, arm: str) -> Iterator[None]:
    """An error inside says in which arm."""
    try:
        yield
    except ConfigError as error:
        error.where = f"{grid_path}, arm {arm!r}: {error.where}".rstrip(": ")
        raise


def _check_command_line(
    overrides: list[str], base: str | Path | None, arms: dict[str, Arm]
) -> None:
    """An override of a key that the arms set would be lost or would level the arms."""
    where = "command line"
    changes = {"seed": "the grid file's `seeds` to be changed"}
    for arm in arms.values():
        for key in [*arm.set, *(key for _, point in arm.points() for key in point)]:
            changes[key] = f"the grid file to be changed, which sets {key}"
    for override in overrides:
        dotted = override.partition("=")[0]
        for key, expected in changes.items():
            if f"{dotted}.".startswith(f"{key}.") or f"{key}.".startswith(f"{dotted}."):
                problem, found = "an override of what the arms differ in", repr(override)
                raise ConfigError(dotted, problem, found=found, expected=expected, where=where)
    with_base = ", ".join(name for name, arm in arms.items() if arm.base is not None)
    if base is not None and with_base:
        problem = "another base for arms that have bases of their own"
        expected = "no --base, or a grid whose arms share one base"
        found = f"--base {base}; bases of {with_base}"
        raise ConfigError("base", problem, found=found, expected=expected, where=where)
