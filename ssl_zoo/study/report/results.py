"""What a study's folders hold, as the rows of its table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_zoo.study.baselines import Baselines, depends_on
from ssl_zoo.system.files import read_lines

if TYPE_CHECKING:
    from ssl_zoo.study.ablation import Run, Study


@dataclass(frozen=True)
class Outcome:
    """What one run has left: its result, its kNN curve, or why it has none.

    Attributes:
        state: 'finished', 'failed', 'unfinished' or 'not run'.
        curve: (epoch, kNN top-1 in %) of every evaluation.
        baselines: {top1, top5, protocol, of}, by name, of those that have been measured.
    """

    run: Run
    state: str
    result: dict[str, Any]
    curve: list[tuple[float, float]]
    environment: dict[str, Any]
    baselines: dict[str, dict[str, Any]]
    reason: str = ""

    @property
    def knn(self) -> float | None:
        return (self.result.get("knn") or {}).get("top1")

    @property
    def why(self) -> str:
        """The first line of the reason; a traceback follows it."""
        return self.reason.partition("\n")[0]


@dataclass(frozen=True)
class Row:
    """One arm at one point of its sweep, over its seeds."""

    arm: str
    x: str | None
    outcomes: list[Outcome]
    differences: list[float]  # of kNN top-1 to the first arm's, seed by seed at the same point

    @property
    def finished(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.state == "finished"]

    def values(self, name: str) -> list[float]:
        found = [outcome.result.get(name) for outcome in self.finished]
        return [value for value in found if value is not None]

    @property
    def knn(self) -> list[float]:
        return [outcome.knn for outcome in self.finished if outcome.knn is not None]

    def start(self, baseline: str) -> list[float]:
        """kNN top-1 of the arm's own baseline; of each seed, if it depends on the seed."""
        return [result["top1"] for result in _distinct(baseline, self.outcomes)]

    def against(self, baseline: str) -> list[float]:
        """kNN top-1 less the baseline's, seed by seed."""
        pairs = [(o.knn, o.baselines.get(baseline)) for o in self.finished]
        return [knn - start["top1"] for knn, start in pairs if knn is not None and start]


@dataclass(frozen=True)
class Baseline:
    """What arms have to beat: the same for all of them, or each arm its own.

    Attributes:
        results: all that differ, {top1, top5, protocol, of}; of a shared one a result a seed.
    """

    name: str
    shared: bool
    results: list[dict[str, Any]]

    @property
    def top1(self) -> list[float]:
        return [result["top1"] for result in self.results]


def rows(study: Study) -> list[Row]:
    """Arms in the grid's order, points in the sweep's."""
    known = Baselines(study.out / "baselines.json")
    outcomes: dict[tuple[str, str | None], list[Outcome]] = {}
    for arm in study.blocks:
        for run in study.runs:
            if run.arm == arm:
                outcomes.setdefault((run.arm, run.x), []).append(read(run, known))
    first = next(iter(study.blocks))
    reference = {
        (x, o.run.seed): o.knn
        for (arm, x), group in outcomes.items()
        if arm == first
        for o in group
        if o.knn is not None
    }
    table = []
    for (arm, x), group in outcomes.items():
        pairs = [(o.knn, reference.get((x, o.run.seed))) for o in group if arm != first]
        differences = [a - b for a, b in pairs if a is not None and b is not None]
        table.append(Row(arm, x, group, differences))
    return table


def read(run: Run, known: Baselines) -> Outcome:
    """What a run's folder says; a run that is still being written is no error."""
    result, environment = (_json(run.folder / f"{n}.json") for n in ("result", "environment"))
    error, metrics = run.folder / "error.txt", run.folder / "metrics.jsonl"
    lines = read_lines(metrics)
    curve = [(line["epoch"], line["top1"]) for line in lines if line["kind"] == "knn"]
    found = {name: known.find(of) for name, of in depends_on(run.config).items()}
    baselines = {name: start for name, start in found.items() if start is not None}
    state, reason = "unfinished" if lines else "not run", ""
    if result:
        state = "finished"
    elif error.exists():
        state, reason = "failed", error.read_text(encoding="utf-8").strip()
    return Outcome(run, state, result, curve, environment, baselines, reason)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def baselines(table: list[Row]) -> list[Baseline]:
    """The baselines that have been measured, each with whether all arms share it."""
    outcomes = [outcome for row in table for outcome in row.outcomes]
    starts: dict[str, set[str]] = {}  # what a baseline depends on besides the seed
    for outcome in outcomes:
        for name, of in depends_on(outcome.run.config).items():
            starts.setdefault(name, set()).add(json.dumps({**of, "seed": None}))
    found = [Baseline(n, len(of) == 1, _distinct(n, outcomes)) for n, of in starts.items()]
    return [baseline for baseline in found if baseline.results]


def _distinct(baseline: str, outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    found = [o.baselines[baseline] for o in outcomes if baseline in o.baselines]
    return list({json.dumps(result["of"]): result for result in found}.values())


def protocols(table: list[Row]) -> list[str]:
    """How the kNN numbers were measured, one sentence for each way; more than one is a warning."""
    used = [result["protocol"] for baseline in baselines(table) for result in baseline.results]
    used += [o.result["knn"]["protocol"] for r in table for o in r.finished if o.result.get("knn")]
    return list(dict.fromkeys(describe(protocol) for protocol in used))


def describe(protocol: dict[str, Any]) -> str:
    named = ("k", "temperature", "index", "bank", "queries", "precision", "classes")
    parts = [f"{name} {protocol[name]}" for name in named if name in protocol]
    parts.append("cosine similarity" if protocol.get("normalized") else "inner product")
    return "weighted kNN (arXiv:1805.01978): " + "; ".join(parts)
