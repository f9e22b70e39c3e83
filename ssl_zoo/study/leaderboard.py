"""Networks beside one another, wherever they are from: what evaluations have left of them.

A column is the metric of one protocol, so no two numbers in it are of different ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ssl_zoo.config import ConfigError, differences
from ssl_zoo.experiment.by_hand import Kept, results_of
from ssl_zoo.study.classes import hits_of
from ssl_zoo.study.report.results import describe
from ssl_zoo.study.report.tables import escaped
from ssl_zoo.study.verdict import interval_over_classes
from ssl_zoo.system.text import csv_text


class Score(NamedTuple):
    """A number, and between what 95% of the same would lie had the test set other classes.

    None, None where that is not known: no rows of it are kept, or it is no share of them.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        between = "" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{self.value:.2f}{between}"


class Column(NamedTuple):
    """The main metric of one protocol, from the first result that is of it."""

    hash: str
    title: str
    higher_is_better: bool
    result: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A network.

    Attributes:
        name: what a user calls it: a path.
        step: after which it was judged.
        kept: the results of that step, by their hashes.
    """

    name: str
    step: int
    kept: dict[str, Kept]


class Board:
    """Networks and the protocols that they were judged by.

    Attributes:
        entries: the best of the first column first.
        columns: the protocol that most were judged by first.
        scores: by entry and column, what is known.
    """

    def __init__(self, entries: Sequence[Entry]):
        self.columns = _columns(entries)
        self.scores = {
            (entry.name, column.hash): _score(entry.kept[column.hash], column.result["main"])
            for entry in entries
            for column in self.columns
            if column.hash in entry.kept
        }
        self.entries = sorted(entries, key=self._rank)

    def _rank(self, entry: Entry) -> float:
        first = self.columns[0] if self.columns else None
        if first is None or first.hash not in entry.kept:
            return math.inf
        return (-1 if first.higher_is_better else 1) * self.scores[entry.name, first.hash].value

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows, as a reader sees them."""
        header = ["network", "step", *(f"{c.title} [{c.hash}]" for c in self.columns)]
        rows = [
            [entry.name, f"{entry.step:,}"]
            + [str(self.scores.get((entry.name, column.hash), "")) for column in self.columns]
            for entry in self.entries
        ]
        return header, rows

    def notes(self) -> list[str]:
        """What a reader of the table has to know."""
        lines = []
        if any(score.low is not None for score in self.scores.values()):
            lines.append(
                "in brackets: 95% of what other classes in the test set would give, by a bootstrap "
                "over its classes; another seed of training is not in it"
            )
        first: dict[str, Column] = {}
        for column in self.columns:
            lines.append(f"{column.title}: {describe(column.result)}")
            other = first.setdefault(column.title, column)
            if other is not column:
                known = (c.result.get("of", {}) for c in (other, column))
                lines += [f"  unlike {other.hash}: {line}" for line in differences(*known)]
        missing = [entry.name for entry in self.entries if not entry.kept]
        if missing:
            lines.append(f"not judged yet, which --evaluate NAME does: {', '.join(missing)}")
        return lines

    def markdown(self) -> str:
        header, rows = self.cells()
        lines = [f"| {' | '.join(map(escaped, row))} |" for row in (header, *rows)]
        lines.insert(1, "|" + " --- |" * len(header))
        return "\n".join([*lines, "", *(f"- {escaped(line)}" for line in self.notes()), ""])

    def csv(self) -> str:
        """A line for each number, unrounded: every metric of every protocol."""
        names = "network", "step", "judged", "evaluation", "metric", "unit", "value", "low", "high"
        lines: list[tuple] = [(*names, "hash", "protocol")]
        for entry in self.entries:
            for digest, of in entry.kept.items():
                result = of.result
                for metric in result["metrics"]:
                    score = _score(of, metric)
                    who = entry.name, entry.step, result["network"], of.name, metric
                    lines.append((*who, result["unit"], *score, digest, describe(result)))
        return csv_text(lines)


def read(path: Path) -> Entry:
    """What is known of a run's folder, a file of weights, or a file of `ssl-zoo evaluate --out`:
    its newest step of which there is any.

    Raises ConfigError where there is no such thing.
    """
    if path.suffix == ".json":
        results = list(_written(path))
    elif path.exists():
        results = list(results_of(path))
    else:
        expected = "a run's folder, a checkpoint or other weights, or a result's .json"
        raise ConfigError("PATH", "no such thing", found=str(path), expected=expected)
    step = max((of.result["step"] for of in results), default=0)
    newest = [of for of in results if of.result["step"] == step]
    return Entry(str(path), step, {of.result["hash"]: of for of in newest})


def _written(path: Path) -> Iterator[Kept]:
    """Of a file of `ssl-zoo evaluate --out`."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        step = results.pop("source")["step"]
        for name, result in results.items():
            yield Kept(name, {**result, "step": step}, path.with_suffix(f".{name}.csv"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        expected = "a file that `ssl-zoo evaluate NAME RUN --out FILE` writes"
        raise ConfigError("PATH", str(error), found=str(path), expected=expected) from error


def _score(of: Kept, metric: str) -> Score:
    value = of.result["metrics"][metric]
    found = hits_of(of.rows, value) if metric == of.result["main"] else None  # whose rows they are
    between = interval_over_classes(found.right, found.images) if found else None
    return Score(value, *(between or ()))


def _columns(entries: Sequence[Entry]) -> list[Column]:
    """One for each protocol."""
    found: dict[str, Column] = {}
    for entry in entries:
        for digest, (name, result, _) in entry.kept.items():
            title = f"{name} {result['main']}" + (f", {result['unit']}" if result["unit"] else "")
            column = Column(digest, title, result["higher_is_better"], result)
            found.setdefault(digest, column)
    return sorted(found.values(), key=lambda column: -sum(column.hash in e.kept for e in entries))
