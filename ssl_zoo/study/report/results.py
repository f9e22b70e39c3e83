"""What a study's folders hold, as the rows and columns of its table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ssl_zoo.study.baselines import Baselines, depends_on
from ssl_zoo.study.grid import Run, Study

Result = dict[str, Any]  # of one evaluation: metrics, main, higher_is_better, unit, protocol, hash


def score(result: Result) -> float:
    """The main metric."""
    return result["metrics"][result["main"]]


@dataclass(frozen=True)
class Outcome:
    """What one run has left: its result, its curve, or why it has none.

    Attributes:
        state: 'finished', 'failed', 'unfinished' or 'not run'.
        lines: of its metrics, those of evaluations.
        baselines: evaluation -> baseline -> its result, of those that have been measured.
    """

    run: Run
    state: str
    result: dict[str, Any]
    lines: list[dict[str, Any]]
    environment: dict[str, Any]
    baselines: dict[str, dict[str, Result]]
    reason: str = ""

    @property
    def evaluations(self) -> dict[str, Result]:
        """At the end of training."""
        return self.result.get("evaluations") or {}

    def score(self, evaluation: str | None) -> float | None:
        result = self.evaluations.get(evaluation)
        return None if result is None else score(result)

    def curve(self, column: Column) -> list[tuple[float, float]]:
        """(epoch, main metric) of every time that an evaluation was made."""
        lines = [x for x in self.lines if x["name"] == column.evaluation and column.metric in x]
        return [(line["epoch"], line[column.metric]) for line in lines]

    @property
    def why(self) -> str:
        """The first line of the reason; a traceback follows it."""
        return self.reason.partition("\n")[0]


@dataclass(frozen=True)
class Row:
    """One arm at one point of its sweep, over its seeds.

    Attributes:
        differences: of the main evaluation to the first arm's, seed by seed at the same point.
    """

    arm: str
    x: str | None
    outcomes: list[Outcome]
    differences: list[float]

    @property
    def finished(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.state == "finished"]

    def values(self, name: str) -> list[float]:
        """A number of result.json."""
        values = [outcome.result.get(name) for outcome in self.finished]
        return [value for value in values if value is not None]

    def scores(self, evaluation: str | None) -> list[float]:
        values = [outcome.score(evaluation) for outcome in self.finished]
        return [value for value in values if value is not None]

    def start(self, evaluation: str, baseline: str) -> list[float]:
        """The arm's baseline; of each seed, if it depends on the seed."""
        return [score(result) for result in _distinct(evaluation, baseline, self.outcomes)]

    def against(self, evaluation: str, baseline: str) -> list[float]:
        """The arm's score less its baseline's, seed by seed."""
        pairs = [
            (o.score(evaluation), o.baselines.get(evaluation, {}).get(baseline))
            for o in self.finished
        ]
        return [value - score(start) for value, start in pairs if value is not None and start]


@dataclass(frozen=True)
class Baseline:
    """What arms have to beat in one evaluation: the same for all of them, or each arm its own.

    Attributes:
        results: all that differ; of a shared one a result a seed.
        seeded: whether it depends on the seed.
    """

    name: str
    shared: bool
    seeded: bool
    results: list[Result]

    @property
    def scores(self) -> list[float]:
        return [score(result) for result in self.results]


@dataclass(frozen=True)
class Column:
    """An evaluation's main metric, as the first result that there is names it; '' before that."""

    evaluation: str
    metric: str = ""
    unit: str = ""
    higher_is_better: bool = True
    baselines: tuple[Baseline, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.evaluation} {self.metric}".strip()

    @property
    def header(self) -> str:
        return ", ".join(filter(None, [self.title, self.unit]))

    @property
    def key(self) -> str:
        return "_".join(filter(None, [self.evaluation, self.metric]))


@dataclass(frozen=True)
class Table:
    """Rows: arms in the grid's order, points in the sweep's. Columns: by evaluation.

    Attributes:
        main: the evaluation that arms are compared in; None where there is none.
    """

    study: Study
    rows: list[Row]
    columns: dict[str, Column]
    main: Column | None

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for row in self.rows for outcome in row.outcomes]

    def best(self, rows: Iterable[Row]) -> Row | None:
        """The row with the best mean of the main evaluation."""
        scored = [row for row in rows if self.main and row.scores(self.main.evaluation)]
        sign = 1 if self.main is None or self.main.higher_is_better else -1
        return max(scored, key=lambda row: sign * self.mean(row), default=None)

    def mean(self, row: Row) -> float:
        scores = row.scores(self.main.evaluation)
        return sum(scores) / len(scores)


def read(study: Study) -> Table:
    """What all folders say; a run that is still being written is no error."""
    known = Baselines(study.out / "baselines.json")
    groups: dict[tuple[str, str | None], list[Outcome]] = {}
    for arm in study.blocks:
        for run in study.runs:
            if run.arm == arm:
                groups.setdefault((run.arm, run.x), []).append(_outcome(run, known))
    outcomes = [outcome for group in groups.values() for outcome in group]
    names = dict.fromkeys(name for run in study.runs for name in run.evaluations)
    columns = {name: _column(name, outcomes) for name in names}
    main = next((run.main for run in study.runs if run.main), None)
    first = next(iter(study.blocks))
    reference = {(o.run.x, o.run.seed): o.score(main) for o in groups_of(first, groups)}
    rows = []
    for (arm, x), group in groups.items():
        pairs = [(o.score(main), reference.get((x, o.run.seed))) for o in group if arm != first]
        differences = [a - b for a, b in pairs if a is not None and b is not None]
        rows.append(Row(arm, x, group, differences))
    return Table(study, rows, columns, columns.get(main))


def groups_of(arm: str, groups: dict[tuple[str, str | None], list[Outcome]]) -> list[Outcome]:
    return [outcome for (name, _), group in groups.items() if name == arm for outcome in group]


def _outcome(run: Run, known: Baselines) -> Outcome:
    result, error = run.files.result(), run.files.error().strip()
    metrics = run.files.metrics()
    lines = [line for line in metrics if line["kind"] == "evaluation"]
    baselines: dict[str, dict[str, Result]] = {}
    for evaluation, wanted in depends_on(run.config).items():
        results = {name: known.find(evaluation, name, of) for name, of in wanted.items()}
        baselines[evaluation] = {name: x for name, x in results.items() if x is not None}
    state = "unfinished" if metrics else "not run"
    if result or error:
        state = "finished" if result else "failed"
    reason = "" if result else error
    return Outcome(run, state, result, lines, run.files.environment(), baselines, reason)


def _column(evaluation: str, outcomes: list[Outcome]) -> Column:
    variants: dict[str, set[str]] = {}  # baseline -> what it depends on besides the seed
    seeded = set()
    for outcome in outcomes:
        for name, of in depends_on(outcome.run.config).get(evaluation, {}).items():
            variants.setdefault(name, set()).add(json.dumps({**of, "seed": None}))
            seeded |= {name} if "seed" in of else set()
    baselines = tuple(
        Baseline(name, len(of) == 1, name in seeded, results)
        for name, of in variants.items()
        if (results := _distinct(evaluation, name, outcomes))
    )
    results = [o.evaluations[evaluation] for o in outcomes if evaluation in o.evaluations]
    results += [result for baseline in baselines for result in baseline.results]
    if not results:
        return Column(evaluation, baselines=baselines)
    main, unit, higher = (results[0][name] for name in ("main", "unit", "higher_is_better"))
    return Column(evaluation, main, unit, higher, baselines)


def _distinct(evaluation: str, baseline: str, outcomes: Iterable[Outcome]) -> list[Result]:
    of_all = [o.baselines.get(evaluation, {}).get(baseline) for o in outcomes]
    return list({json.dumps(x["of"]): x for x in of_all if x is not None}.values())


def protocols(table: Table) -> list[str]:
    """How each evaluation was made, in words; a warning where one was made in several ways."""
    said = []
    for name in table.columns:
        results = [o.evaluations[name] for o in table.outcomes if name in o.evaluations]
        results = results or [x for b in table.columns[name].baselines for x in b.results][:1]
        ways = list({result["hash"]: result for result in results}.values())
        if len(ways) > 1:
            said.append(
                f"warning: {name} was made in {len(ways)} ways; numbers of different hashes are "
                "not to be compared"
            )
        said += [f"{name}: {describe(result)}" for result in ways]
    return said


def describe(result: Result) -> str:
    """'KNN: k 20; temperature 0.07 (hash 1a2b)'."""
    protocol = {k: v for k, v in result["protocol"].items() if v is not None}
    parts = "; ".join(f"{name} {value}" for name, value in protocol.items())
    kind = f"{result['type']}: " if "type" in result else ""
    return f"{kind}{parts} (hash {result['hash']})"
