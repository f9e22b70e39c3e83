"""The table: as cells for a terminal or a page, as Markdown, as CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_zoo.study.baselines import PIXELS, RANDOM
from ssl_zoo.study.report.results import Row, baselines, describe, protocols
from ssl_zoo.system.files import replacing

if TYPE_CHECKING:
    from ssl_zoo.study.ablation import Study

COLUMN = {PIXELS: "pixels", RANDOM: "random"}  # of a baseline that arms do not share


def spread(values: list[float], digits: int = 2, sign: str = "") -> str:
    """'81.20 ± 0.31': mean and sample standard deviation; the mean alone for one value."""
    if not values:
        return "–"
    text = f"{statistics.fmean(values):{sign}.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def mean(values: list[float], digits: int) -> str:
    return f"{statistics.fmean(values):.{digits}f}" if values else "–"


def columns(study: Study, table: list[Row]) -> dict[str, Callable[[Row], str]]:
    """Header -> what stands there in an arm's row."""
    found: dict[str, Callable[[Row], str]] = {"arm": lambda row: row.arm}
    if any(row.x is not None for row in table):
        found[study.x] = lambda row: row.x or ""
    found["seeds"] = lambda row: str(len(row.finished))
    found["kNN top-1, %"] = lambda row: spread(row.knn)
    if any(row.differences for row in table):
        first = next(iter(study.blocks))
        found[f"against {first}"] = lambda row: spread(row.differences, sign="+")
    for name in (baseline.name for baseline in baselines(table) if not baseline.shared):
        found[COLUMN[name]] = lambda row, name=name: spread(row.start(name))
        found[f"against {COLUMN[name]}"] = lambda row, name=name: spread(
            row.against(name), sign="+"
        )
    found["pretext top-1, %"] = lambda row: mean(row.values("pretext_top1"), 1)
    found["images/s"] = lambda row: mean(row.values("images_per_s"), 0)
    found["peak GB"] = lambda row: mean(row.values("peak_memory_gb"), 2)
    found["minutes"] = lambda row: mean([s / 60 for s in row.values("seconds")], 1)
    if any(outcome.state != "finished" for row in table for outcome in row.outcomes):
        found["state"] = _state
    return found


def _state(row: Row) -> str:
    states = [outcome.state for outcome in row.outcomes]
    counts = {state: states.count(state) for state in states}
    return ", ".join(f"{n} {s}" if len(counts) > 1 else s for s, n in counts.items())


def cells(study: Study, table: list[Row]) -> tuple[list[str], list[list[str]], int | None]:
    """The table as a reader sees it: header, rows, and which row has the highest kNN accuracy.

    Baselines that all arms share come first, a row each.
    """
    shown = columns(study, table)
    body = []
    for baseline in baselines(table):
        if baseline.shared:
            row = {"arm": baseline.name, "kNN top-1, %": spread(baseline.top1)}
            row["seeds"] = str(len(baseline.results)) if baseline.name == RANDOM else ""
            body.append([row.get(header, "") for header in shown])
    above = len(body)
    body += [[cell(row) for cell in shown.values()] for row in table]
    means = {i: statistics.fmean(row.knn) for i, row in enumerate(table) if row.knn}
    best = above + max(means, key=means.__getitem__) if len(means) > 1 else None
    return list(shown), body, best


def notes(study: Study, table: list[Row]) -> list[str]:
    """What a reader of the table has to know."""
    found = [
        "kNN at the end of training: mean ± sample standard deviation over seeds; "
        "the other columns are means"
    ]
    if any(row.differences for row in table):
        first = next(iter(study.blocks))
        found.append(f"differences to {first} are taken seed by seed, in percentage points")
    own = [b.name for b in baselines(table) if not b.shared]
    if RANDOM in own:
        found.append("random: kNN of the arm's own backbone before training")
    if PIXELS in own:
        found.append("pixels: kNN of the arm's own images, without a network")
    return found + protocols(table)


def markdown(study: Study, table: list[Row]) -> str:
    header, body, best = cells(study, table)
    body = [[f"**{c}**" if c else c for c in r] if i == best else r for i, r in enumerate(body)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *body]]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    lines.insert(1, "|" + " --- |" * len(header))
    said = [f"- {text}" for text in (*notes(study, table), f"`{study.command}`")]
    failed = [o for row in table for o in row.outcomes if o.state == "failed"]
    said += [f"- failed: {outcome.run}: {outcome.why}" for outcome in failed]
    return "\n".join([f"# {study.name}", "", *lines, "", *said, ""])


def write_csv(study: Study, table: list[Row], path: Path) -> None:
    """One line an arm and point, numbers unrounded; baselines that all arms share come first."""
    means = ("pretext_top1", "images_per_s", "peak_memory_gb", "seconds", "steps", "epochs", "loss")
    lines = []
    for baseline in baselines(table):
        if baseline.shared:
            protocol = describe(baseline.results[0]["protocol"])
            line = {"arm": baseline.name, **_mean_std("knn_top1", baseline.top1)}
            lines.append({**line, "protocol": protocol})
    for row in table:
        curves = [max(t for _, t in o.curve) for o in row.finished if o.curve]
        used = [o.result["knn"]["protocol"] for o in row.finished if o.result.get("knn")]
        line = {
            "arm": row.arm,
            study.x: row.x or "",
            "seeds": " ".join(str(o.run.seed) for o in row.finished),
            **_mean_std("knn_top1", row.knn),
            "knn_top1_highest": _mean(curves),
            **_mean_std("difference", row.differences),
        }
        for name, column in COLUMN.items():
            line[column] = _mean(row.start(name))
            line |= _mean_std(f"against_{column}", row.against(name))
        line |= {name: _mean(row.values(name)) for name in means}
        line["failed"] = sum(o.state == "failed" for o in row.outcomes)
        lines.append({**line, "protocol": describe(used[0]) if used else ""})
    with replacing(path) as staged, open(staged, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[-1]), restval="")
        writer.writeheader()
        writer.writerows(lines)


def _mean(values: list[float]) -> float | str:
    return statistics.fmean(values) if values else ""


def _mean_std(name: str, values: list[float]) -> dict[str, float | str]:
    std = statistics.stdev(values) if len(values) > 1 else ""
    return {f"{name}_mean": _mean(values), f"{name}_std": std}
