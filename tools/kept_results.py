"""Kept studies, results/NAME.json, as pages show them: scores by seed, comparisons, origins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ssl_zoo.config import ConfigError, not_among
from ssl_zoo.study.grid import Contrast
from ssl_zoo.study.report import kept, verdicts
from ssl_zoo.study.report.kept import Kept
from ssl_zoo.study.report.results import Column, Row
from ssl_zoo.study.verdict import Comparison

ROOT = Path(__file__).resolve().parents[1]
RESULTS, GRIDS = ROOT / "results", ROOT / "configs" / "ablation"
SPEED = ("peers", "floor", "scaling", "data", "evaluation", "gpu")  # benchmarks/NAME.py
# Numbers that training leaves, by which arms can be compared as by evaluations.
MEASURED = (
    Column("pretext_top1", "pretext_top1", "%"),
    Column("images_per_s", "images_per_s", "images/s"),
    Column("peak_memory_gb", "peak_memory_gb", "GB", higher_is_better=False),
    Column("seconds", "seconds", "s", higher_is_better=False),
)


def load(path: Path) -> Kept | None:
    """With a column for each of MEASURED too; None where there is no such file.

    Raises:
        ConfigError: the file is no kept study.
    """
    if not path.exists():
        return None
    study = kept.load(path)
    for outcome in study.outcomes:
        for name in (column.metric for column in MEASURED if column.metric in outcome.result):
            measured = {"metrics": {name: outcome.result[name]}, "main": name, "hash": None}
            outcome.evaluations[name] = measured
    return replace(study, columns=[*study.columns, *MEASURED])


def column_of(study: Kept, name: str | None = None) -> Column:
    """An evaluation or one of MEASURED; None: the study's main evaluation."""
    known = {column.evaluation: column for column in study.columns}
    name = study.data["main"] if name is None else name
    if name not in known:
        raise not_among("on", "neither an evaluation of the study nor measured", name, known)
    return known[name]


def scores(study: Kept, row: Row, column: Column, highest: bool = False) -> dict[int, float]:
    """By seed, of finished runs, at the end of training; but what was judged in another way.

    Args:
        highest: the best of all epochs instead, which test images have chosen; of the main
            evaluation alone, the one that is kept over epochs.
    """
    if highest and column is not study.main:
        problem, main = "only the main evaluation is kept over epochs", study.data["main"]
        raise ConfigError("at", problem, found=f"highest of {column.evaluation}", expected=main)
    best, found = max if column.higher_is_better else min, {}
    for outcome in row.finished:
        score = outcome.score(column.evaluation)
        if score is not None and column.evaluation not in outcome.result.get("made_otherwise", ()):
            curve = outcome.curve(column) if highest else ()
            found[outcome.run.seed] = best((value for _, value in curve), default=score)
    return found


def starts(row: Row, column: Column, baseline: str) -> dict[int, float]:
    """By seed, of finished runs: what each had to beat itself."""
    found = {o.run.seed: o.start(column.evaluation, baseline) for o in row.finished}
    return {seed: start["metrics"][column.metric] for seed, start in found.items() if start}


def compared(study: Kept, contrast: Contrast, column: Column) -> Comparison:
    """Corrected over the planned contrasts, if it is one of them and in the main evaluation."""
    if column is study.main and contrast in study.study.contrasts:
        return verdicts.planned(study)[study.study.contrasts.index(contrast)]
    return verdicts.compare_points(study, contrast, column, classes=False)


def origin(study: Kept) -> str:
    """Where the numbers come from, in words."""
    data, machine = study.data, study.data["machine"]
    cores = f"{machine['cores']} cores" if machine.get("cores") else None
    torch = f"torch {machine['torch']}" if machine.get("torch") else None
    on = [cores, machine.get("cuda") or machine.get("cpu"), torch, machine.get("precision")]
    commits = [commit[:7] for commit in (data["commit"] or "").split(", ") if commit]
    commit = f"commit{'s' * (len(commits) > 1)} {' + '.join(commits)}" if commits else None
    return ", ".join(filter(None, [f"`{data['command']}`", data["date"], commit, *on]))


def command(name: str, key: str = "") -> str:
    """What makes results/`name`: a grid of that name, or a benchmark in SPEED."""
    makers = {
        f"{path.stem}.json": f"ssl-zoo ablate {path.relative_to(ROOT).as_posix()}"
        for path in GRIDS.glob("*.yaml")
    }
    for of in SPEED:
        out = f"speed_{of}.json"
        makers[out] = f"python benchmarks/{of}.py --out results/{out}"
    if name not in makers:
        problem = "no kept study, and no grid or benchmark of that name"
        raise not_among(key, problem, name, sorted(makers))
    return makers[name]


def as_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
