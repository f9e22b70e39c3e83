"""The table: as cells for a terminal or a page, as Markdown, as CSV."""

import csv
import io
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from ssl_zoo.study.grid import slug, title
from ssl_zoo.study.report.results import OTHER, Row, Table, describe, protocols
from ssl_zoo.study.report.verdicts import Section
from ssl_zoo.system.files import write_text
from ssl_zoo.system.text import one_line

# What Markdown may interpret: anywhere, around words, between brackets, at a line's beginning.
_MARKDOWN = re.compile(r"[\\`*<&|~$#]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|^[-+](?= )|^[>\[]")


def spread(values: list[float], digits: int = 2, sign: str = "") -> str:
    """'81.20 ± 0.31': mean and sample standard deviation; the mean alone for one value."""
    text = mean(values, digits, sign)
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def mean(values: list[float], digits: int, sign: str = "") -> str:
    return f"{statistics.fmean(values):{sign}.{digits}f}" if values else "–"


def _cells(table: Table) -> dict[str, Callable[[Row], str]]:
    """Header -> what stands there in an arm's row."""
    shown: dict[str, Callable[[Row], str]] = {"arm": lambda row: row.arm}
    if any(row.x is not None for row in table.rows):
        shown[table.study.x] = lambda row: row.x or ""
    shown["seeds"] = lambda row: str(len(row.finished))
    for column in table.columns:
        shown[column.header] = lambda row, column=column: spread(column.of(row))
        if column is not table.main:
            continue
        if table.reference:
            shown[f"against {table.reference}"] = lambda row: _differences(row, of_twins=False)
        for original in table.study.twins.values():
            header = f"noise, against {title(original)}"
            shown[header] = lambda row: _differences(row, of_twins=True)
        for other in (baseline.name for baseline in column.baselines if not baseline.shared):
            of = (column.evaluation, other)
            shown[other] = lambda row, of=of: spread(row.start(*of))
            shown[f"against {other}"] = lambda row, of=of: spread(row.against(*of), sign="+")
    shown["pretext top-1, %"] = lambda row: mean(row.values("pretext_top1"), 1)
    shown["images/s"] = lambda row: mean(row.values("images_per_s"), 0)
    shown["peak GB"] = lambda row: mean(row.values("peak_memory_gb"), 2)
    shown["minutes"] = lambda row: mean([s / 60 for s in row.values("seconds")], 1)
    if any(outcome.state != "finished" for outcome in table.outcomes):
        shown["state"] = _state
    return shown


def _differences(row: Row, of_twins: bool) -> str:
    return spread(row.differences, sign="+") if bool(row.twin_of) == of_twins else ""


def _state(row: Row) -> str:
    states = [outcome.state for outcome in row.outcomes]
    counts = {state: states.count(state) for state in states}
    return ", ".join(f"{n} {s}" if len(counts) > 1 else s for s, n in counts.items())


def cells(table: Table) -> tuple[list[str], list[list[str]], int | None]:
    """The table as a reader sees it: header, rows, and which row is best in the main evaluation.

    Baselines that all arms share come first, a row each.
    """
    shown = _cells(table)
    above: dict[str, dict[str, str]] = {}
    for column, baseline in table.shared:
        seeds = str(len(baseline.scores)) if baseline.seeded else ""
        row = above.setdefault(baseline.name, {"arm": baseline.name})
        row |= {"seeds": seeds, column.header: spread(baseline.scores)}
    body = [[row.get(header, "") for header in shown] for row in above.values()]
    body += [[cell(row) for cell in shown.values()] for row in table.rows]
    own = [row for row in table.rows if not row.twin_of]
    several = table.main and sum(bool(table.main.of(row)) for row in own) > 1
    best = len(above) + table.rows.index(table.main.best(own)) if several else None
    return list(shown), body, best


def notes(table: Table) -> list[str]:
    """What a reader of the table has to know."""
    lines = []
    if main := table.main:
        lines.append(
            "evaluations are at the end of training: mean ± sample standard deviation over seeds; "
            "the other columns are means"
        )
        if table.reference:
            unit = "percentage points" if main.unit == "%" else main.unit
            line = f"differences to {table.reference} are taken seed by seed"
            lines.append(f"{line}, in {unit}" if unit else line)
        own = [baseline.name for baseline in main.baselines if not baseline.shared]
        lines += [f"{name}: {main.title} of each arm's own" for name in own]
    others = (outcome for outcome in table.outcomes if outcome.state == OTHER)
    lines += [f"not counted, trained by {OTHER}: {o.run}: {o.reason}" for o in others]
    return lines + protocols(table)


def failures(table: Table) -> list[str]:
    failed = [outcome for outcome in table.outcomes if outcome.state == "failed"]
    return [f"failed: {outcome.run}: {outcome.reason.splitlines()[0]}" for outcome in failed]


def markdown(table: Table, sections: list[Section]) -> str:
    header, body, best = cells(table)
    rows = [[escaped(cell) for cell in row] for row in [header, *body]]
    if best is not None:
        rows[best + 1] = [f"**{cell}**" if cell else "" for cell in rows[best + 1]]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(header))
    for section in sections:
        said = [f"- {escaped(line)}" for line in section.lines]
        lines += ["", f"## {escaped(section.heading)}", "", *said, "", escaped(section.note)]
    below = [*map(escaped, notes(table)), _code(table.study.command)]
    below += map(escaped, failures(table))
    said = [f"- {line}" for line in below]
    return "\n".join([f"# {escaped(table.study.name)}", "", *lines, "", *said, ""])


def escaped(text: str) -> str:
    """A line of which Markdown, HTML in it and formulas in it make nothing."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def _code(text: str) -> str:
    """A line in a fence of more backticks than it has in a row."""
    text, longest = one_line(text), max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " * bool(longest)
    return f"{fence}{space}{text}{space}{fence}"


def write_csv(table: Table, path: Path) -> None:
    """One line an arm and point, numbers unrounded; baselines that all arms share come first."""
    means = ("pretext_top1", "images_per_s", "peak_memory_gb", "seconds", "steps", "epochs", "loss")
    above: dict[str, dict] = {}
    for column, baseline in table.shared:
        line = above.setdefault(baseline.name, {"arm": baseline.name})
        line |= _mean_std(f"{column.evaluation}_{column.metric}", baseline.scores)
        line[f"{column.evaluation}_protocol"] = baseline.protocol
    lines = list(above.values())
    for row in table.rows:
        seeds = " ".join(str(outcome.run.seed) for outcome in row.finished)
        line = {"arm": row.arm, table.study.x: row.x or "", "seeds": seeds}
        for column in table.columns:
            line |= _mean_std(f"{column.evaluation}_{column.metric}", column.of(row))
        if table.study.twins:
            line["twin_of"] = title(row.twin_of) if row.twin_of else ""
        line |= _mean_std("difference", row.differences)
        for baseline in table.main.baselines if table.main else ():
            of = (table.main.evaluation, baseline.name)
            name = slug(baseline.name).replace("-", "_")
            line[name] = _mean(row.start(*of))
            line |= _mean_std(f"against_{name}", row.against(*of))
        line |= {name: _mean(row.values(name)) for name in means}
        line["failed"] = sum(o.state == "failed" for o in row.outcomes)
        for name in (column.evaluation for column in table.columns):
            used = [o.evaluations[name] for o in row.finished if name in o.evaluations]
            line[f"{name}_protocol"] = describe(used[0]) if used else ""
        lines.append(line)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[-1]), restval="")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())


def _mean(values: list[float]) -> float | str:
    return statistics.fmean(values) if values else ""


def _mean_std(name: str, values: list[float]) -> dict[str, float | str]:
    std = statistics.stdev(values) if len(values) > 1 else ""
    return {f"{name}_mean": _mean(values), f"{name}_std": std}
