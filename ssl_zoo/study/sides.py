"""Two arms, wherever they lie: `ssl-zoo compare`.

A side is written as a run's folder, an arm's (with seed0, seed1, ... in it), a study's, or a kept
study's file. `STUDY:POINT` is one arm of a study, at one point of its sweep: 'fig3:MoCo, 4096'.
The second may be a baseline of the first by name, 'random backbone'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssl_zoo.config import ConfigError, differences, not_among
from ssl_zoo.runs import RunFolder
from ssl_zoo.study.grid import Run, Study, slug, title
from ssl_zoo.study.report import kept, results
from ssl_zoo.study.report.results import Column, Table
from ssl_zoo.study.report.verdicts import Side, compare, compare_with_baseline
from ssl_zoo.study.verdict import Comparison
from ssl_zoo.system.files import user_path

DEPTHS = ("seed*", "*/seed*", "*/*/seed*")  # runs below an arm, a study, a study with sweeps


@dataclass(frozen=True)
class Compared:
    """Attributes:
    configs: dotted keys in which the runs' configs differ, each with its two values; None where
        the second side is a baseline of the first.
    """

    title: str  # of the metric
    comparison: Comparison
    configs: list[str] | None


def compare_paths(a: str, b: str, metric: str = "") -> list[Compared]:
    """What two sides say of each other; of two whole studies, for each point that both have.

    Of a side and a baseline, for each point of the side.

    Args:
        metric: an evaluation, or 'evaluation.metric'; '': the first side's main evaluation.

    Raises:
        ConfigError: nothing is there, or not under this name; several points against one; no seed
            in common; or evaluations of which an argument or the data differ.
    """
    of_a = _find(a, "A")
    offered = {n.name for side in of_a for column in side.table.columns for n in column.baselines}
    if b in offered and not user_path(b).exists():
        return [_with_baseline(side, b, metric) for side in of_a]
    sides = {"A": of_a, "B": _find(b, "B")}
    several = [name for name, found in sides.items() if len(found) > 1]
    if len(several) == 2:
        of_a, of_b = ({slug(side.name): side for side in found} for found in sides.values())
        pairs = [(of_a[key], of_b[key]) for key in of_a if key in of_b]
    else:
        pairs = [] if several else [(sides["A"][0], sides["B"][0])]
    if not pairs:
        found = "\n".join(side.name for side in sides[several[0]])  # which have commas
        expected = f"'{a if several[0] == 'A' else b}:POINT', or two studies with points in common"
        raise ConfigError(several[0], "several points", found=found, expected=expected)
    if any(x.name == y.name for x, y in pairs):  # the same arm of two studies
        in_a, in_b = (path.partition(":")[0] for path in (a, b))
        pairs = [(_under(x, in_a), _under(y, in_b)) for x, y in pairs]
    return [_compared(*pair, metric) for pair in pairs]


def _under(side: Side, path: str) -> Side:
    return replace(side, name=f"{side.name} of {path}")


def _compared(a: Side, b: Side, metric: str) -> Compared:
    column = _column(a, metric)
    _column(b, f"{column.evaluation}.{column.metric}")
    of_a, of_b = a.by_seed(column), b.by_seed(column)
    both = [seed for seed in of_a if seed in of_b]
    if not both:
        seeds = [", ".join(map(str, of)) or "none" for of in (of_a, of_b)]
        found = f"{a.name}: {seeds[0]}; {b.name}: {seeds[1]}"
        raise ConfigError("", "no seed that both have finished", found=found)
    for seed in both:
        ways = of_a[seed], of_b[seed]
        if ways[0]["hash"] != ways[1]["hash"]:
            problem = f"{a.name} and {b.name} were evaluated in two ways, which do not compare"
            found = "; ".join(differences(*(way.get("of", {}) for way in ways)))
            found = found or " | ".join(map(results.describe, ways))
            raise ConfigError(column.evaluation, problem, found=found, expected="one protocol")
    recipes = [_recipes(side) for side in (a, b)]
    lines = (line for seed in both for line in differences(*(of[seed] for of in recipes)))
    return Compared(column.title, compare(a, b, column), list(dict.fromkeys(lines)))


def _with_baseline(a: Side, baseline: str, metric: str) -> Compared:
    column = _column(a, metric)
    known = [of.name for of in column.baselines]
    if baseline not in known:
        raise not_among("B", f"no baseline of {a.name}'s {column.evaluation}", baseline, known)
    comparison = compare_with_baseline(a, baseline, column)
    if not comparison.seeds:
        problem = f"no seed of {a.name} that has finished and whose {baseline} was measured alike"
        raise ConfigError("", problem)
    return Compared(column.title, comparison, None)


def _recipes(side: Side) -> dict[int, dict[str, Any]]:
    """By seed, dotted keys of what the run computes."""
    if isinstance(side.table, kept.Kept):  # it has one for all seeds
        recipe = side.table.recipes[side.row.point]
        return {outcome.run.seed: recipe for outcome in side.row.outcomes}
    return {outcome.run.seed: kept.recipe(outcome.run) for outcome in side.row.outcomes}


def _column(side: Side, metric: str) -> Column:
    """The column that the metric names; the main one for ''."""
    columns = {column.evaluation: column for column in side.table.columns}
    name, _, inner = metric.partition(".")
    if not name and side.table.main:
        return side.table.main
    if name not in columns:
        raise not_among("METRIC", f"no evaluation of {side.name}", name, columns)
    column = columns[name]
    known = {m: None for result in side.by_seed(column).values() for m in result["metrics"]}
    if inner and known and inner not in known:
        raise not_among("METRIC", f"no metric of {side.name}'s {name}", inner, known)
    return replace(column, metric=inner or column.metric)


def _find(text: str, argument: str) -> list[Side]:
    """The sides that a text names, one for each point."""
    where, _, point = (text, "", "") if user_path(text).exists() else text.rpartition(":")
    path = user_path(where or text)
    if path.is_dir():
        runs = _runs(path)
        names = list(dict.fromkeys(runs.values()))
    elif path.is_file() and path.suffix == ".json":
        table = kept.load(path)
        names = [title(row.point) for row in table.rows]
    else:
        expected = "a folder of a run, an arm or a study, or a kept study's .json; STUDY:POINT"
        raise ConfigError(argument, "no such thing", found=text, expected=expected)
    if not names:
        raise ConfigError(argument, "no runs", found=text, expected="folders with a config.yaml")
    chosen = [name for name in names if slug(name) == slug(point)] if point else names
    if not chosen:
        raise not_among(argument, f"no such point of {path}", point, names)
    if path.is_dir():  # reading takes a while: no more than is asked for
        table = _table(path, {folder: name for folder, name in runs.items() if name in chosen})
    sides = [Side(title(row.point), table, row) for row in table.rows]
    return [replace(s, name=point or s.name) for s in sides if s.name in chosen]


def _runs(path: Path) -> dict[Path, str]:
    """Folders of runs in a folder, with the names of their arms: where these lie below it."""
    if RunFolder(path).config_path.exists():
        return {path: path.as_posix()}
    runs = {}
    for folder in (folder for pattern in DEPTHS for folder in sorted(path.glob(pattern))):
        if RunFolder(folder).config_path.exists():
            below = folder.parent.relative_to(path).as_posix()
            runs[folder] = path.as_posix() if below == "." else below
    return runs


def _table(path: Path, runs: dict[Path, str]) -> Table:
    found = []
    for folder, name in runs.items():
        config = RunFolder(folder).config()
        found.append(Run(name, None, config["seed"], folder, config))
    blocks = {name: {} for name in runs.values()}
    return results.read(Study(path.name, path, x="", runs=found, blocks=blocks, command=""))
