"""Verdicts on a study: its planned contrasts, and what else its arms invite to compare.

All of it is made from a `Table`, be that a study's folders or a kept study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from ssl_zoo.study.classes import over_classes
from ssl_zoo.study.grid import Point, title
from ssl_zoo.study.report.results import Column, Result, Row, Table
from ssl_zoo.study.verdict import LEVEL, Comparison, smallest_p
from ssl_zoo.study.verdict import planned as corrected

FEW = 6  # exploratory comparisons; more are told in one line for each outcome


@dataclass(frozen=True)
class Section:
    """Comparisons that a reader should take alike, in words."""

    heading: str
    lines: list[str]
    note: str


@dataclass(frozen=True)
class Side:
    """A row of a table, under the name that the verdict gives it."""

    name: str
    table: Table
    row: Row

    def by_seed(self, column: Column) -> dict[int, Result]:
        """The evaluation's results, of finished runs; a metric that is not a number is none."""
        name = column.evaluation
        made = [o for o in self.row.finished if name in o.evaluations]
        made = [o for o in made if not isnan(o.evaluations[name]["metrics"][column.metric])]
        return {outcome.run.seed: outcome.evaluations[name] for outcome in made}


def compare(a: Side, b: Side, column: Column, classes: bool = True) -> Comparison:
    """In one evaluation: by seed, where both were evaluated in the same way.

    Args:
        classes: also the spread over classes, which takes reading.
    """
    of_a, of_b = a.by_seed(column), b.by_seed(column)
    pairs = {
        seed: of_a[seed]["metrics"][column.metric] - of_b[seed]["metrics"][column.metric]
        for seed in of_a
        if seed in of_b and of_a[seed]["hash"] == of_b[seed]["hash"]
    }
    wanted = [{outcome.run.seed for outcome in side.row.outcomes} for side in (a, b)]
    lacking = sorted(wanted[0] & wanted[1] - pairs.keys())
    spread = None
    if classes and len(pairs) > 1:
        spread = over_classes(*(side.table.hits(side.row, column, pairs) for side in (a, b)))
    unit, higher = column.unit, column.higher_is_better
    return Comparison(a.name, b.name, pairs, unit, higher, lacking, over_classes=spread)


def compare_with_baseline(a: Side, baseline: str, column: Column) -> Comparison:
    """Each run with what it had to beat itself, where both were evaluated in the same way.

    Baselines leave no rows, so the spread over classes is not known.
    """
    starts = {o.run.seed: o.start(column.evaluation, baseline) for o in a.row.outcomes}
    pairs = {
        seed: end["metrics"][column.metric] - start["metrics"][column.metric]
        for seed, end in a.by_seed(column).items()
        if (start := starts[seed]) and _way(start) == _way(end)
    }
    lacking = sorted(starts.keys() - pairs.keys())
    return Comparison(a.name, baseline, pairs, column.unit, column.higher_is_better, lacking)


def _way(result: Result) -> dict[str, Any]:
    """What the number depends on but the network, which a baseline's hash covers.

    A kept study has none of it: its baselines were those of its runs when it was kept.
    """
    return {name: value for name, value in result.get("of", {}).items() if name != "network"}


def compare_points(
    table: Table, pair: tuple[Point, Point], column: Column, classes: bool = True
) -> Comparison:
    """Two points, or a point and a baseline of its own, see `Contrast`."""
    first, second = pair
    a = Side(title(first), table, table.at[first])
    if second not in table.at:
        return compare_with_baseline(a, title(second), column)
    return compare(a, Side(title(second), table, table.at[second]), column, classes)


def planned(table: Table, column: Column | None = None) -> list[Comparison]:
    """The planned contrasts, in the grid's order, in the main evaluation: p corrected by Holm.

    Args:
        column: another evaluation's, in which they are exploratory and p is as it is.
    """
    column = column or table.main
    if column is None:
        return []
    found = [compare_points(table, contrast, column) for contrast in table.study.contrasts]
    return corrected(found) if column is table.main and found else found


def exploratory(table: Table) -> list[Comparison]:
    """What is not planned, in the main evaluation: each arm against the first, at the same point.

    Of a grid with one arm, each point of its sweep against the first.
    """
    points = [row.point for row in table.rows if not row.twin_of]
    first = points[0]
    if len({arm for arm, _ in points}) == 1:
        pairs = [(point, first) for point in points[1:]]
    else:
        pairs = [(p, (first[0], p[1])) for p in points if p[0] != first[0]]
    named = [set(contrast) for contrast in table.study.contrasts]
    pairs = [(a, b) for a, b in pairs if b in points and {a, b} not in named]
    few = len(pairs) <= FEW
    return [compare_points(table, pair, table.main, few) for pair in pairs] if table.main else []


def noise(table: Table) -> list[Comparison]:
    """Each twin against its original, in the main evaluation; see `Study.twins`."""
    pairs = [(row.point, row.twin_of) for row in table.rows if row.twin_of]
    return [compare_points(table, pair, table.main, False) for pair in pairs] if table.main else []


def in_words(table: Table) -> list[Section]:
    """All verdicts in words; none before there is a pair of runs."""
    main = table.main
    if main is None:
        return []
    decided = planned(table)
    others = [column for column in table.columns if column is not main]
    elsewhere = [(column, c) for column in others for c in planned(table, column) if c.seeds]
    rest = [compared for compared in exploratory(table) if compared.seeds]
    twins = noise(table)
    lines = [f"{column.title}: {_line(compared)}" for column, compared in elsewhere]
    lines += (
        _summary(rest, main) if len(rest) > FEW else [f"{main.title}: {_line(c)}" for c in rest]
    )
    found = []
    if decided and (lines or any(compared.seeds for compared in (*decided, *twins))):
        note = "p is of the exact sign-flip test over seeds, two-sided, by Holm over "
        note = _at_best(f"{note}{len(decided)}", decided)
        found.append(Section(f"Planned contrasts, {main.title}", list(map(_line, decided)), note))
    if lines:
        note = "p is of each alone, so about one in twenty is below 0.05 by chance"
        note = _at_best(note, [*rest, *(compared for _, compared in elsewhere)])
        found.append(Section("Exploratory", lines, note))
    if any(compared.seeds for compared in twins):
        note = "twins differ in what should not matter: as much of a difference is nothing"
        lines = list(map(_noise_line, twins))
        found.append(Section(f"Noise floor, {main.title}", lines, note))
    return found


def _line(compared: Comparison) -> str:
    return f"{compared.sentence} [{compared.spreads}]" if compared.spreads else compared.sentence


def _noise_line(compared: Comparison) -> str:
    if compared.seeds < 2 or not compared.values.any():
        return compared.sentence
    low, high = compared.values.min(), compared.values.max()
    return f"{compared.sentence} [with one seed from {low:+.2f} to {high:+.2f}]"


def _at_best(note: str, compared: Sequence[Comparison]) -> str:
    """With what so few seeds can show; all comparisons are corrected for as many contrasts."""
    for seeds in sorted({c.seeds for c in compared if c.seeds}):
        best = min(1.0, max(1, compared[0].contrasts) * smallest_p(seeds))
        note += f"; {seeds} seed{'s' * (seeds > 1)} can show p {best:.2g} at best"
        note += " and settle nothing" if best >= LEVEL else ""
    return note


def _summary(compared: Sequence[Comparison], main: Column) -> list[str]:
    """A line for each outcome, for a grid of many arms."""
    first = compared[0].b.partition(", ")[0]
    told: dict[str, list[str]] = {}
    for c in compared:
        how = c.verdict if c.seeds > 1 else "one seed"
        told.setdefault(how, []).append(f"{c.a} {round(c.mean, 1) + 0.0:+.1f}")
    words = {"better": "better than", "worse": "worse than", "cannot tell": "cannot tell from"}
    found = ((text, told[how]) for how, text in words.items() if how in told)
    lines = [f"{main.title}: {text} {first}: {'; '.join(arms)}" for text, arms in found]
    if alone := told.get("one seed"):
        lines.append(f"one seed ranks nothing: {len(alone)} differences to {first} are not judged")
    return lines
