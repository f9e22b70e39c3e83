"""What a study's folders hold, as the rows and columns of its table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

from ssl_zoo import experiment
from ssl_zoo.study import costs
from ssl_zoo.study.baselines import Baselines
from ssl_zoo.study.classes import Hits, hits
from ssl_zoo.study.costs import Cost
from ssl_zoo.study.grid import Point, Run, Study

Result = dict[str, Any]  # of one evaluation: type, metrics, main, protocol, hash, ...


OTHER = "another config"  # a run that the grid does not ask for: it is in no number


def score(result: Result) -> float:
    """The main metric."""
    return result["metrics"][result["main"]]


@dataclass(frozen=True)
class Outcome:
    """What one run has left: its result, its curve, or why it has none."""

    run: Run
    state: str  # 'finished', 'failed', 'unfinished', 'not run', or OTHER
    result: dict[str, Any]
    lines: list[dict[str, Any]]  # those of its metrics that evaluations wrote
    environment: dict[str, Any]
    baselines: dict[str, dict[str, Result | None]]  # by evaluation; None: not measured
    # Of a failure, whose first line says what, and a traceback may follow; of OTHER, what differs.
    reason: str

    @property
    def evaluations(self) -> dict[str, Result]:
        """At the end of training."""
        return self.result.get("evaluations", {})

    def score(self, evaluation: str) -> float | None:
        """None where there is none, or it is not a number."""
        found = self.evaluations.get(evaluation)
        return None if found is None or math.isnan(score(found)) else score(found)

    def start(self, evaluation: str, baseline: str) -> Result | None:
        return self.baselines.get(evaluation, {}).get(baseline)

    def curve(self, column: Column) -> list[tuple[float, float]]:
        """(epoch, main metric) of each time that an evaluation was made; a stream has no epochs."""
        lines = (line for line in self.lines if line["name"] == column.evaluation)
        return [(x["epoch"], x[column.metric]) for x in lines if x["epoch"] is not None]


@dataclass(frozen=True)
class Row:
    """One arm at one point of its sweep, over its seeds."""

    arm: str
    x: str | None
    outcomes: list[Outcome]
    differences: list[float]  # of the main evaluation, by seed: to the first arm's at this point
    twin_of: Point | None = None  # see `Study.twins`; differences are then to this

    @property
    def point(self) -> Point:
        return self.arm, self.x

    @property
    def finished(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.state == "finished"]

    def values(self, name: str) -> list[float]:
        """A number of result.json."""
        return _known(outcome.result.get(name) for outcome in self.finished)

    def start(self, evaluation: str, baseline: str) -> list[float]:
        """The arm's own baseline; of each seed, if it depends on the seed."""
        return [score(result) for result in distinct(self.outcomes, evaluation, baseline)]

    def against(self, evaluation: str, baseline: str) -> list[float]:
        """The arm's score less its baseline's, seed by seed."""
        pairs = [(o.score(evaluation), o.start(evaluation, baseline)) for o in self.finished]
        return [value - score(start) for value, start in pairs if value is not None and start]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


@dataclass(frozen=True)
class Baseline:
    """What arms have to beat in one evaluation."""

    name: str
    shared: bool  # by all arms; else each has its own
    seeded: bool  # depends on the seed
    scores: list[float]  # all that differ; of a shared one a number a seed
    protocol: str  # see `describe`


@dataclass(frozen=True)
class Column:
    """An evaluation's main metric."""

    evaluation: str
    metric: str
    unit: str = ""
    higher_is_better: bool = True
    baselines: tuple[Baseline, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.evaluation} {self.metric}"

    @property
    def header(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def best(self, rows: list[Row]) -> Row | None:
        """The row with the best mean; None if no run is finished."""
        choose = max if self.higher_is_better else min
        scored = [row for row in rows if self.of(row)]
        return choose(scored, key=lambda row: statistics.fmean(self.of(row)), default=None)

    def of(self, row: Row) -> list[float]:
        return _known(outcome.score(self.evaluation) for outcome in row.finished)


@dataclass(frozen=True)
class Table:
    """Rows: arms in the grid's order, points in the sweep's. Columns: evaluations.

    Attributes:
        main: the column that arms are compared in; None where nothing is evaluated.
        reference: the arm that others are compared with; '' where none can be yet.
        shared: baselines that all arms share, with their columns.
        costs: what probes of single steps say.
    """

    study: Study
    rows: list[Row]
    columns: list[Column]
    main: Column | None
    costs: list[Cost]

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for row in self.rows for outcome in row.outcomes]

    @property
    def at(self) -> dict[Point, Row]:
        """Rows by their points."""
        return {row.point: row for row in self.rows}

    @property
    def reference(self) -> str:
        some = any(row.differences for row in self.rows if not row.twin_of)
        return next(iter(self.study.blocks)) if some else ""

    @property
    def shared(self) -> list[tuple[Column, Baseline]]:
        return [(column, b) for column in self.columns for b in column.baselines if b.shared]

    def hits(self, row: Row, column: Column, seeds: Container[int]) -> Hits | None:
        """What the row's runs with these seeds had right of each class; None if not known."""
        runs = [outcome for outcome in row.finished if outcome.run.seed in seeds]
        scores = [o.evaluations[column.evaluation]["metrics"][column.metric] for o in runs]
        return hits(zip((o.run.files for o in runs), scores, strict=True), column.evaluation)


def read(study: Study) -> Table:
    """What all folders say; a run that is still being written is no error."""
    known = Baselines(study.out / "baselines.json")
    groups: dict[Point, list[Outcome]] = {}
    for run in study.runs:
        groups.setdefault(run.point, []).append(_outcome(run, known))
    outcomes = [outcome for group in groups.values() for outcome in group]
    columns = {}
    runs = {name: run for run in study.runs for name in run.evaluations}
    for name, run in runs.items():
        kind, baselines = run.evaluations[name], _baselines(name, outcomes)
        how = run.metric(name), kind.unit, kind.higher_is_better
        columns[name] = Column(name, *how, baselines)
    main = next((run.main for run in study.runs if run.main), "")
    rows, known_costs = rows_of(groups, main, study), costs.read(study.out)
    return Table(study, rows, list(columns.values()), columns.get(main), known_costs)


def rows_of(groups: dict[Point, list[Outcome]], main: str, study: Study) -> list[Row]:
    """Rows of outcomes by point, with their differences in the evaluation `main`."""
    first = next(iter(study.blocks))
    outcomes = [outcome for group in groups.values() for outcome in group]
    scores = {(o.run.point, o.run.seed): o.score(main) for o in outcomes}
    rows = []
    for (arm, x), group in groups.items():
        twin_of = study.twins.get(arm)
        other = twin_of or (first, x)
        pairs = [(o.score(main), scores.get((other, o.run.seed))) for o in group if arm != first]
        differences = [a - b for a, b in pairs if None not in (a, b)]
        rows.append(Row(arm, x, group, differences, twin_of))
    return rows


def _outcome(run: Run, known: Baselines) -> Outcome:
    result = run.files.result() if run.finished else {}
    reason, metrics = run.files.error(), run.files.metrics()
    state = "failed" if reason else "unfinished" if metrics else "not run"
    if changed := _changed(run) if result else []:
        state, reason, result, metrics = OTHER, "; ".join(changed), {}, []
    elif result:
        state, reason = "finished", ""
    lines = [line for line in metrics if line["kind"] == "evaluation"]
    return Outcome(run, state, result, lines, run.files.environment(), known.of(run), reason)


def _changed(run: Run) -> list[str]:
    """What the grid asks for and the run in the folder was trained without."""
    written = run.files.config()
    if written is None or written == run.config:
        return []
    # What is compared may be chosen later.
    return experiment.changes({**written, "best": run.config["best"]}, run.config)


def _baselines(evaluation: str, outcomes: list[Outcome]) -> tuple[Baseline, ...]:
    """Those of which some have been measured, each with whether all arms share it."""
    wanted = [outcome.run.baselines.get(evaluation, {}) for outcome in outcomes]
    baselines = []
    for name in dict.fromkeys(name for by_name in wanted for name in by_name):
        depends_on = [by_name[name] for by_name in wanted if name in by_name]
        shared = len({json.dumps({**of, "seed": None}) for of in depends_on}) == 1
        if results := distinct(outcomes, evaluation, name):
            scores, protocol = [score(result) for result in results], describe(results[0])
            baselines.append(Baseline(name, shared, "seed" in depends_on[0], scores, protocol))
    return tuple(baselines)


def distinct(outcomes: Iterable[Outcome], evaluation: str, baseline: str) -> list[Result]:
    """A baseline's results, each once however many runs share it."""
    results = filter(None, (outcome.start(evaluation, baseline) for outcome in outcomes))
    return list({json.dumps(result["depends_on"]): result for result in results}.values())


def protocols(table: Table) -> list[str]:
    """How each evaluation was made, in words; a warning where one was made in several ways."""
    lines = []
    for column in table.columns:
        name = column.evaluation
        results = [o.evaluations[name] for o in table.outcomes if name in o.evaluations]
        ways = {result["hash"]: describe(result) for result in results}
        if len(ways) > 1:
            lines.append(f"warning: {name} was made in {len(ways)} ways that do not compare")
        # Before the first run has finished, its baselines tell.
        texts = ways.values() or [baseline.protocol for baseline in column.baselines[:1]]
        lines += [f"{name}: {text}" for text in texts]
    return lines


def describe(result: Result) -> str:
    """'KNN: k 20; temperature 0.07 (hash 1a2b)'; a kept study has it in these words already."""
    if isinstance(result["protocol"], str):
        return result["protocol"]
    parts = (f"{name} {value}" for name, value in result["protocol"].items() if value is not None)
    return f"{result['type']}: {'; '.join(parts)} (hash {result['hash']})"
