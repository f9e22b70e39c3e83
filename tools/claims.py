"""The ledger, ledger/*.yaml: what papers claim, and what is held against it.

A file is a paper, or a project that publishes tables. Its blocks are checked as configs are: an
unknown key or a value of the wrong type is an error with file, line and key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import kept_results
from kept_results import column_of, command

from ssl_zoo import config
from ssl_zoo.config import ConfigError, Part, PositiveFloat, bind
from ssl_zoo.evaluation.base import UNTRAINED
from ssl_zoo.study.grid import Contrast, Grid, Point, find_point, title
from ssl_zoo.study.report.kept import Kept
from ssl_zoo.study.report.results import Column
from ssl_zoo.study.verdict import Comparison, standard_error

LEDGER = kept_results.ROOT / "ledger"
SHOWN, NOT_SHOWN, CONTRADICTED = "shown", "not shown", "contradicted"
CANNOT_TELL, NOT_RUN = "cannot tell at this size", "not run"
REMEMBERED = "M"
Source = Literal["P", "C", "T", "M"]  # the paper, the authors' code, a third party, remembered


class Ours:
    """What of our runs is held against a claim.

    Args:
        result: a kept study, results/`result`.json.
        compare: 'A > B': A is better. 'A = B': they are level. 'A': it has the claim's number.
            A and B are arms, or an arm and a point: "MoCo, 4096 > MoCo, 32". B may be a baseline
            of A: "MoCo > random backbone".
        on: an evaluation, or pretext_top1, images_per_s, peak_memory_gb, seconds; null: the study's
            main evaluation.
        at: the end of training; or the highest of all epochs, which is what some tables have.
        of: what of two numbers is compared: their difference, or their ratio.
        margin: below this a difference does not matter, in the unit of `on`, 1 if null; of a ratio,
            how much it may be above 1, 0.05 if null.
    """

    def __init__(
        self,
        *,
        result: str,
        compare: str,
        on: str | None = None,
        at: Literal["end", "highest"] = "end",
        of: Literal["difference", "ratio"] = "difference",
        margin: PositiveFloat | None = None,
    ):
        self.file, self.on = f"{result}.json", on
        self.highest, self.ratio = at == "highest", of == "ratio"
        self.margin = margin if margin is not None else 0.05 if self.ratio else 1.0
        self.sign = next((sign for sign in (" > ", " = ") if sign in compare), "")
        sides = compare.split(self.sign) if self.sign else [compare]
        self.sides = [side.strip() for side in sides]

    @staticmethod
    def validate(*, compare: str, at: str, of: str, **_) -> None:
        sides = compare.replace(" > ", " = ").split(" = ")
        if len(sides) > 2 or not all(side.strip() for side in sides):
            expected = "'A > B', 'A = B' or 'A'"
            raise ConfigError("compare", "no comparison", found=repr(compare), expected=expected)
        if at == "highest" and len(sides) > 1:
            expected = "end, where two arms are compared"
            raise ConfigError("at", "chosen by the test images", found=at, expected=expected)
        if of == "ratio" and len(sides) < 2:
            raise ConfigError("of", "a ratio of one number", found=of, expected="difference")

    def points(self, among: Iterable[Point], baselines: Iterable[str]) -> list[Point]:
        """The sides; the second may be a baseline, unless a point has its name."""
        first, *second = self.sides
        others = [*((name, None) for name in baselines), *among]
        found = [find_point(first, among, "compare")]
        return [*found, *(find_point(side, others, "compare") for side in second)]


class Claim:
    """What a paper says.

    Args:
        says: in one sentence.
        source: where their numbers were read: the paper (P), the authors' code or its README (C), a
            third party's notes (T); or remembered (M), so that no number is held against it.
        theirs: label -> number. Where `ours` compares two, the two in that order; one for one.
        ours: null: nothing was run.
        verdict: where nothing was run.
        reason: why ours deviates, or why nothing was run; null: the table's.
        command: that makes their number; null: the table's.
    """

    def __init__(
        self,
        *,
        says: str,
        source: Source,
        theirs: dict[str, int | float] = {},  # noqa: B006
        ours: Part[Ours] | None = None,
        verdict: Literal["not run", "cannot tell at this size"] | None = None,
        reason: str | None = None,
        command: str | None = None,
    ):
        self.says, self.source, self.theirs = says, source, theirs
        self.ours: Ours | None = ours() if ours is not None else None
        self.verdict, self.reason, self.command = verdict, reason, command

    @staticmethod
    def validate(*, source: str, theirs: dict, ours: Part | None, verdict: str | None, **_) -> None:
        if (ours is None) == (verdict is None):
            problem = "a verdict is computed from `ours`, and written where nothing was run"
            found = "neither" if ours is None else "both"
            raise ConfigError("verdict", problem, found=found, expected="one of the two")
        if ours is not None:
            sides = len(ours().sides)
            if len(theirs) not in ((0, 2) if sides == 2 else (1,)):
                expected = "two numbers or none" if sides == 2 else "one number"
                found = f"{len(theirs)} for {ours.kwargs['compare']!r}"
                raise ConfigError("theirs", "not what is compared", found=found, expected=expected)
            if sides == 1 and source == REMEMBERED:
                expected = "a number that was read somewhere"
                raise ConfigError(
                    "source",
                    "a verdict on a number from memory",
                    found=REMEMBERED,
                    expected=expected,
                )


class Table:
    """A table or figure of a paper.

    Args:
        protocol: theirs, with the unit of their numbers.
        claims: by name.
        reason: why nothing was run, or why ours deviates; of claims that say nothing themselves.
        command: that makes their numbers.
    """

    def __init__(
        self,
        *,
        protocol: str,
        claims: dict[str, Part[Claim]],
        reason: str | None = None,
        command: str | None = None,
    ):
        self.claims: dict[str, Claim] = {name: claim() for name, claim in claims.items()}
        self.protocol, self.reason, self.command = protocol, reason, command

    @staticmethod
    def validate(*, claims: dict[str, Part[Claim]], reason: str | None, **_) -> None:
        if not claims:
            raise ConfigError(
                "claims", "no claims", found="an empty block", expected="at least one"
            )
        for name, claim in claims.items():
            if reason is None and claim.arguments()["reason"] is None:
                problem = "neither the claim nor its table says why"
                expected = "a reason why nothing was run, or why ours deviates"
                raise ConfigError(f"claims.{name}.reason", problem, expected=expected)


class Paper:
    """A paper, or a project that publishes tables.

    Args:
        title, arxiv, url: arXiv number or address, one of the two.
        tables: by name, in the page's order.
    """

    def __init__(
        self,
        *,
        title: str,
        tables: dict[str, Part[Table]],
        arxiv: str | None = None,
        url: str | None = None,
    ):
        self.title, self.arxiv = title, arxiv
        self.url = url or f"https://arxiv.org/abs/{arxiv}"
        self.tables: dict[str, Table] = {name: table() for name, table in tables.items()}

    @staticmethod
    def validate(*, arxiv: str | None, url: str | None, **_) -> None:
        if (arxiv is None) == (url is None):
            found = "neither" if arxiv is None else "both"
            expected = "the arXiv number, or else an address"
            raise ConfigError("arxiv", "one of arxiv and url", found=found, expected=expected)


@dataclass(frozen=True)
class Held:
    """A claim held against a kept study, or against nothing.

    Args:
        command: that makes our numbers, and the kept study once it is there.
    """

    claim: Claim
    kept: Kept | None = None
    command: str = ""

    @property
    def measured(self) -> bool:
        """Whether there is a number to hold against the claim."""
        return self.kept is not None and self.comparison.seeds > 0

    @cached_property
    def column(self) -> Column:
        return column_of(self.kept, self.claim.ours.on)

    @cached_property
    def scores(self) -> list[dict[int, float]]:
        """By seed, of each side; a side of which nothing is kept has none."""
        return self._scores(self.claim.ours.highest)

    @property
    def at_the_end(self) -> list[dict[int, float]]:
        """The same where `scores` are the highest."""
        return self._scores(highest=False)

    def _scores(self, highest: bool) -> list[dict[int, float]]:
        rows = {title(row.point): row for row in self.kept.rows}
        sides = self.claim.ours.sides
        found = [
            kept_results.scores(self.kept, rows[side], self.column, highest) if side in rows else {}
            for side in sides
        ]
        if sides[-1] in baselines(self.column) and sides[-1] not in rows and sides[0] in rows:
            found[-1] = kept_results.starts(rows[sides[0]], self.column, sides[-1])
        return found

    @cached_property
    def comparison(self) -> Comparison:
        """Of the two sides, or of one with the claim's number; a ratio's is one of logarithms."""
        ours, column = self.claim.ours, self.column
        more = {"unit": column.unit, "higher_is_better": column.higher_is_better}
        if len(self.scores) == 1:
            (scores,), (number,) = self.scores, self.claim.theirs.values()
            theirs = dict.fromkeys(scores, number)
            return Comparison.of(ours.sides[0], "theirs", scores, theirs, **more)
        if ours.ratio:
            logs = [{seed: math.log(s) for seed, s in side.items()} for side in self.scores]
            return Comparison.of(*ours.sides, *logs, **more)
        if not all(self.scores):
            return Comparison.of(*ours.sides, *self.scores, **more)
        points = ours.points(self.kept.at, baselines(column))
        return kept_results.compared(self.kept, Contrast(*points), column)

    @property
    def expected(self) -> float | None:
        """Their number as `comparison` has ours; None where there is none, or it is from memory."""
        numbers = list(self.claim.theirs.values())
        if self.claim.source == REMEMBERED or not numbers:
            return None
        if len(numbers) == 1:
            return 0.0  # the comparison is with their number already
        first, second = numbers
        return math.log(first / second) if self.claim.ours.ratio else first - second

    @property
    def deviation(self) -> tuple[float, float | None] | None:
        """Ours less theirs, in the comparison's unit and in standard errors over seeds."""
        if not self.measured or self.expected is None:
            return None
        apart = self.comparison.mean - self.expected
        if self.comparison.seeds < 2:
            return apart, None
        error = float(standard_error(self.comparison.values))
        return apart, apart / error if error else None

    @property
    def verdict(self) -> str:
        """Typed where nothing was run; else computed, of an order by p, of a level by the interval.

        An order is shown or contradicted where p (over planned contrasts Holm's) is below 0.05,
        and else not shown where the whole 95% interval is within the margin: there is no difference
        that matters. A level is shown where the interval is within the margin, and contradicted
        where it is outside. In between it cannot be told.
        """
        if self.claim.ours is None:
            return self.claim.verdict
        if not self.measured:
            return NOT_RUN
        compared, margin = self.comparison, self.claim.ours.margin
        if self.claim.ours.ratio:
            margin = math.log1p(margin)
        low, high = compared.interval
        within = -margin <= low and high <= margin
        if self.claim.ours.sign == " > ":
            decided = {"better": SHOWN, "worse": CONTRADICTED}.get(compared.verdict)
            return decided or (NOT_SHOWN if within else CANNOT_TELL)
        outside = low > margin or high < -margin
        return SHOWN if within else CONTRADICTED if outside else CANNOT_TELL


@dataclass(frozen=True)
class Entry:
    """A paper with each of its claims held against what there is, by table and claim."""

    paper: Paper
    held: dict[str, dict[str, Held]]


def read(folder: Path = LEDGER, results: Path = kept_results.RESULTS) -> list[Entry]:
    """All files: papers by arXiv number, then the others by name.

    Raises:
        ConfigError: a file is wrong, or compares what neither its study nor its grid has.
    """
    entries = [_read(path, results) for path in sorted(folder.glob("*.yaml"))]
    return sorted(entries, key=lambda entry: (entry.paper.arxiv is None, entry.paper.arxiv or ""))


def _read(path: Path, results: Path) -> Entry:
    file = config.load(path)
    with file.located(), _of(path):
        paper: Paper = bind(Paper, file.data)()
        held: dict[str, dict[str, Held]] = {}
        for table_name, table in paper.tables.items():
            held[table_name] = {}
            for name, claim in table.claims.items():
                key = f"tables.{table_name}.claims.{name}.ours"
                held[table_name][name] = _held(claim, key, results)
    return Entry(paper, held)


@contextmanager
def _of(path: Path) -> Iterator[None]:
    """Errors without a line name the file at least."""
    try:
        yield
    except ConfigError as error:
        error.where = error.where or ("" if error.key else str(path))
        raise


def _held(claim: Claim, key: str, results: Path) -> Held:
    ours = claim.ours
    if ours is None:
        return Held(claim)
    try:
        kept = kept_results.load(results / ours.file)
        held = Held(claim, kept, kept.data["command"] if kept else command(ours.file, "result"))
        if kept is not None:
            known = {*map(title, kept.at), *baselines(column_of(kept, ours.on))}
        if kept is None or ours.sides[0] not in map(title, kept.at) or ours.sides[-1] not in known:
            # What is not kept yet is planned at least, or what evaluations have by themselves.
            ours.points(planned(ours.file), [UNTRAINED])
    except ConfigError as error:
        if not error.where:
            error.key = f"{key}.{error.key}" if error.key else key
        raise
    return held


def baselines(column: Column) -> list[str]:
    return [baseline.name for baseline in column.baselines]


@cache
def planned(file: str) -> list[Point]:
    """The points that the grid of a kept study has."""
    grid = config.load((kept_results.GRIDS / file).with_suffix(".yaml"))
    with grid.located():
        return bind(Grid, grid.data)().points
