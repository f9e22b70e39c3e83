"""The table: as cells for a terminal or a page, as Markdown, as CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable
from pathlib import Path

from ssl_zoo.study.grid import slug
from ssl_zoo.study.report.results import Column, Row, Table, describe, protocols
from ssl_zoo.system.files import replacing


def spread(values: list[float], digits: int = 2, sign: str = "") -> str:
    """'81.20 ± 0.31': mean and sample standard deviation; the mean alone for one value."""
    if not values:
        return "–"
    text = f"{statistics.fmean(values):{sign}.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def mean(values: list[float], digits: int) -> str:
    return f"{statistics.fmean(values):.{digits}f}" if values else "–"


def cells_by_header(table: Table) -> dict[str, Callable[[Row], str]]:
    """Header -> what stands there in an arm's row."""
    shown: dict[str, Callable[[Row], str]] = {"arm": lambda row: row.arm}
    if any(row.x is not None for row in table.rows):
        shown[table.study.x] = lambda row: row.x or ""
    shown["seeds"] = lambda row: str(len(row.finished))
    for name, column in table.columns.items():
        shown[column.header] = lambda row, name=name: spread(row.scores(name))
        if column is table.main:
            shown |= _comparisons(table, column)
    shown["pretext top-1, %"] = lambda row: mean(row.values("pretext_top1"), 1)
    shown["images/s"] = lambda row: mean(row.values("images_per_s"), 0)
    shown["peak GB"] = lambda row: mean(row.values("peak_memory_gb"), 2)
    shown["minutes"] = lambda row: mean([s / 60 for s in row.values("seconds")], 1)
    if any(outcome.state != "finished" for outcome in table.outcomes):
        shown["state"] = _state
    return shown


def _comparisons(table: Table, main: Column) -> dict[str, Callable[[Row], str]]:
    """Against the first arm, and against each arm's own baselines."""
    shown: dict[str, Callable[[Row], str]] = {}
    if any(row.differences for row in table.rows):
        first = next(iter(table.study.blocks))
        shown[f"against {first}"] = lambda row: spread(row.differences, sign="+")
    for name in (baseline.name for baseline in main.baselines if not baseline.shared):
        shown[name] = lambda row, name=name: spread(row.start(main.evaluation, name))
        shown[f"against {name}"] = lambda row, name=name: spread(
            row.against(main.evaluation, name), sign="+"
        )
    return shown


def _state(row: Row) -> str:
    states = [outcome.state for outcome in row.outcomes]
    counts = {state: states.count(state) for state in states}
    return ", ".join(f"{n} {s}" if len(counts) > 1 else s for s, n in counts.items())


def _shared_baselines(table: Table) -> dict[str, dict[str, Column]]:
    """Baseline -> the columns in which all arms share it."""
    shared: dict[str, dict[str, Column]] = {}
    for evaluation, column in table.columns.items():
        for baseline in column.baselines:
            if baseline.shared:
                shared.setdefault(baseline.name, {})[evaluation] = baseline
    return shared


def cells(table: Table) -> tuple[list[str], list[list[str]], int | None]:
    """The table as a reader sees it: header, rows, and which row is best in the main evaluation.

    Baselines that all arms share come first, a row each.
    """
    shown = cells_by_header(table)
    body = []
    for name, of in _shared_baselines(table).items():
        row = {table.columns[evaluation].header: spread(b.scores) for evaluation, b in of.items()}
        seeded = [baseline for baseline in of.values() if baseline.seeded]
        row |= {"arm": name, "seeds": str(len(seeded[0].results)) if seeded else ""}
        body.append([row.get(header, "") for header in shown])
    above = len(body)
    body += [[cell(row) for cell in shown.values()] for row in table.rows]
    scored = [row for row in table.rows if table.main and row.scores(table.main.evaluation)]
    best = above + table.rows.index(table.best(scored)) if len(scored) > 1 else None
    return list(shown), body, best


def notes(table: Table) -> list[str]:
    """What a reader of the table has to know."""
    lines = []
    if table.columns:
        lines.append(
            "evaluations are at the end of training: mean ± sample standard deviation over seeds; "
            "the other columns are means"
        )
    if any(row.differences for row in table.rows):
        first = next(iter(table.study.blocks))
        unit = "percentage points" if table.main.unit == "%" else table.main.unit
        said = f"differences to {first} are taken seed by seed"
        lines.append(f"{said}, in {unit}" if unit else said)
    for baseline in table.main.baselines if table.main else ():
        if not baseline.shared:
            lines.append(f"{baseline.name}: {table.main.title} of the arm's own before training")
    return lines + protocols(table)


def markdown(table: Table) -> str:
    header, body, best = cells(table)
    body = [[f"**{c}**" if c else c for c in r] if i == best else r for i, r in enumerate(body)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *body]]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    lines.insert(1, "|" + " --- |" * len(header))
    said = [f"- {text}" for text in (*notes(table), f"`{table.study.command}`")]
    failed = [outcome for outcome in table.outcomes if outcome.state == "failed"]
    said += [f"- failed: {outcome.run}: {outcome.why}" for outcome in failed]
    return "\n".join([f"# {table.study.name}", "", *lines, "", *said, ""])


def write_csv(table: Table, path: Path) -> None:
    """One line an arm and point, numbers unrounded; baselines that all arms share come first."""
    means = ("pretext_top1", "images_per_s", "peak_memory_gb", "seconds", "steps", "epochs", "loss")
    lines = []
    for name, of in _shared_baselines(table).items():
        line = {"arm": name}
        for evaluation, baseline in of.items():
            line |= _mean_std(table.columns[evaluation].key, baseline.scores)
            line[f"{evaluation}_protocol"] = describe(baseline.results[0])
        lines.append(line)
    for row in table.rows:
        line = {
            "arm": row.arm,
            table.study.x: row.x or "",
            "seeds": " ".join(str(o.run.seed) for o in row.finished),
        }
        for name, column in table.columns.items():
            line |= _mean_std(column.key, row.scores(name))
        line |= _mean_std("difference", row.differences)
        for baseline in table.main.baselines if table.main else ():
            key = slug(baseline.name).replace("-", "_")
            line[key] = _mean(row.start(table.main.evaluation, baseline.name))
            against = row.against(table.main.evaluation, baseline.name)
            line |= _mean_std(f"against_{key}", against)
        line |= {name: _mean(row.values(name)) for name in means}
        line["failed"] = sum(o.state == "failed" for o in row.outcomes)
        for name in table.columns:
            used = [o.evaluations[name] for o in row.finished if name in o.evaluations]
            line[f"{name}_protocol"] = describe(used[0]) if used else ""
        lines.append(line)
    with replacing(path) as staged, open(staged, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[-1]), restval="")
        writer.writeheader()
        writer.writerows(lines)


def _mean(values: list[float]) -> float | str:
    return statistics.fmean(values) if values else ""


def _mean_std(name: str, values: list[float]) -> dict[str, float | str]:
    std = statistics.stdev(values) if len(values) > 1 else ""
    return {f"{name}_mean": _mean(values), f"{name}_std": std}
