"""A study's report, from what its run folders hold: table.md, table.csv, figure.png, report.html.

Written after every run, so that a study that was stopped has one too.
"""

from __future__ import annotations

import base64
import csv
import html
import json
import math
import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_zoo import config
from ssl_zoo.files import read_lines, replacing, write_text

if TYPE_CHECKING:
    from ssl_zoo.ablation import Run, Study

# Okabe and Ito's colours, for colour-blind readers too; markers and dashes say the same again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (3, 3)))


# ------------------------------------------------------------------ what the folders hold


@dataclass(frozen=True)
class Outcome:
    """What one run has left: its result, its kNN curve, or why it has none.

    Attributes:
        state: 'finished', 'failed', 'unfinished' or 'not run'.
        curve: (epoch, kNN top-1 in %) of every evaluation.
    """

    run: Run
    state: str
    result: dict[str, Any]
    curve: list[tuple[float, float]]
    environment: dict[str, Any]
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


def read(run: Run) -> Outcome:
    """What a run's folder says; a run that is still being written is no error."""
    result, environment = (_json(run.folder / f"{n}.json") for n in ("result", "environment"))
    error, metrics = run.folder / "error.txt", run.folder / "metrics.jsonl"
    lines = read_lines(metrics)
    curve = [(line["epoch"], line["top1"]) for line in lines if line["kind"] == "knn"]
    if result:
        return Outcome(run, "finished", result, curve, environment)
    if error.exists():
        reason = error.read_text(encoding="utf-8").strip()
        return Outcome(run, "failed", {}, curve, environment, reason)
    return Outcome(run, "unfinished" if lines else "not run", {}, curve, environment)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def rows(study: Study) -> list[Row]:
    """Arms in the grid's order, points in the sweep's."""
    outcomes: dict[tuple[str, str | None], list[Outcome]] = {}
    for arm in study.blocks:
        for run in study.runs:
            if run.arm == arm:
                outcomes.setdefault((run.arm, run.x), []).append(read(run))
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


def baselines(study: Study) -> list[tuple[str, list[float], dict[str, Any]]]:
    """(name, kNN top-1 of each seed, protocol)."""
    known = _json(study.out / "baselines.json")
    found = []
    if known.get("pixels"):
        found.append(("raw pixels", [known["pixels"]["top1"]], known["pixels"]["protocol"]))
    seeds = {str(run.seed) for run in study.runs}
    random = [result for seed, result in known.get("random", {}).items() if seed in seeds]
    if random:
        top1 = [result["top1"] for result in random]
        found.append(("random backbone", top1, random[0]["protocol"]))
    return found


def protocols(study: Study, table: list[Row]) -> list[str]:
    """How the kNN numbers were measured, one sentence for each way; more than one is a warning."""
    used = [p for _, _, p in baselines(study)]
    used += [o.result["knn"]["protocol"] for r in table for o in r.finished if o.result.get("knn")]
    return list(dict.fromkeys(describe(protocol) for protocol in used))


def describe(protocol: dict[str, Any]) -> str:
    named = ("k", "temperature", "index", "bank", "queries", "precision", "classes")
    parts = [f"{name} {protocol[name]}" for name in named if name in protocol]
    parts.append("cosine similarity" if protocol.get("normalized") else "inner product")
    return "weighted kNN (arXiv:1805.01978): " + "; ".join(parts)


# ------------------------------------------------------------------ tables


def spread(values: list[float], digits: int = 2, sign: str = "") -> str:
    """'81.20 ± 0.31': mean and sample standard deviation; the mean alone for one value."""
    if not values:
        return "–"
    text = f"{statistics.fmean(values):{sign}.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def mean(values: list[float], digits: int) -> str:
    return f"{statistics.fmean(values):.{digits}f}" if values else "–"


def cells(study: Study, table: list[Row]) -> tuple[list[str], list[list[str]], int | None]:
    """The table as a reader sees it: header, rows, and which row has the highest kNN accuracy."""
    swept = any(row.x is not None for row in table)
    compared = any(row.differences for row in table)
    first = next(iter(study.blocks))
    header = ["arm", *([study.x] if swept else []), "seeds", "kNN top-1, %"]
    header += [f"against {first}"] if compared else []
    header += ["pretext top-1, %", "images/s", "peak GB", "minutes"]
    incomplete = any(o.state != "finished" for row in table for o in row.outcomes)
    header += ["state"] if incomplete else []
    body = []
    for name, top1, _ in baselines(study):
        blank = [""] * (len(header) - 3 - swept)
        seeds = str(len(top1)) if name == "random backbone" else ""
        body.append([name, *([""] if swept else []), seeds, spread(top1), *blank])
    above = len(body)
    for row in table:
        states = [outcome.state for outcome in row.outcomes]
        state = ", ".join(
            f"{states.count(s)} {s}" if len(set(states)) > 1 else s for s in dict.fromkeys(states)
        )
        body.append(
            [
                row.arm,
                *([row.x or ""] if swept else []),
                str(len(row.finished)),
                spread(row.knn),
                *([spread(row.differences, sign="+")] if compared else []),
                mean(row.values("pretext_top1"), 1),
                mean(row.values("images_per_s"), 0),
                mean(row.values("peak_memory_gb"), 2),
                mean([seconds / 60 for seconds in row.values("seconds")], 1),
                *([state] if incomplete else []),
            ]
        )
    means = {i: statistics.fmean(row.knn) for i, row in enumerate(table) if row.knn}
    best = above + max(means, key=means.__getitem__) if len(means) > 1 else None
    return header, body, best


def markdown(study: Study, table: list[Row]) -> str:
    header, body, best = cells(study, table)
    body = [[f"**{c}**" if c else c for c in r] if i == best else r for i, r in enumerate(body)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *body]]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    lines.insert(1, "|" + " --- |" * len(header))
    notes = [f"- {text}" for text in (*_notes(study, table), f"`{study.command}`")]
    failed = [o for row in table for o in row.outcomes if o.state == "failed"]
    notes += [f"- failed: {outcome.run}: {outcome.why}" for outcome in failed]
    return "\n".join([f"# {study.name}", "", *lines, "", *notes, ""])


def _notes(study: Study, table: list[Row]) -> list[str]:
    notes = [
        "kNN at the end of training: mean ± sample standard deviation over seeds; "
        "the other columns are means"
    ]
    if any(row.differences for row in table):
        first = next(iter(study.blocks))
        notes.append(f"differences to {first} are taken seed by seed, in percentage points")
    backbones = {json.dumps(run.config["backbone"]) for run in study.runs}
    if len(backbones) > 1 and baselines(study):
        notes.append(f"the random backbone is that of {next(iter(study.blocks))}")
    return notes + protocols(study, table)


def write_csv(study: Study, table: list[Row], path: Path) -> None:
    """One line an arm and point, numbers unrounded; baselines first."""
    means = ("pretext_top1", "images_per_s", "peak_memory_gb", "seconds", "steps", "epochs", "loss")
    header = ["arm", study.x, "seeds", "knn_top1_mean", "knn_top1_std", "knn_top1_highest"]
    header += ["difference_mean", "difference_std", *means, "failed", "protocol"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, restval="")
        writer.writeheader()
        for name, top1, protocol in baselines(study):
            average, std = _mean_std(top1)
            line = {"arm": name, "knn_top1_mean": average, "knn_top1_std": std}
            writer.writerow({**line, "protocol": describe(protocol)})
        for row in table:
            average, std = _mean_std(row.knn)
            difference, difference_std = _mean_std(row.differences)
            curves = [max(t for _, t in o.curve) for o in row.finished if o.curve]
            used = [o.result["knn"]["protocol"] for o in row.finished if o.result.get("knn")]
            writer.writerow(
                {
                    "arm": row.arm,
                    study.x: row.x or "",
                    "seeds": " ".join(str(o.run.seed) for o in row.finished),
                    "knn_top1_mean": average,
                    "knn_top1_std": std,
                    "knn_top1_highest": _mean_std(curves)[0],
                    "difference_mean": difference,
                    "difference_std": difference_std,
                    **{name: _mean_std(row.values(name))[0] for name in means},
                    "failed": sum(o.state == "failed" for o in row.outcomes),
                    "protocol": describe(used[0]) if used else "",
                }
            )


def _mean_std(values: list[float]) -> tuple[float | str, float | str]:
    average = statistics.fmean(values) if values else ""
    return average, statistics.stdev(values) if len(values) > 1 else ""


# ------------------------------------------------------------------ figure


def figure(study: Study, table: list[Row], path: Path) -> None:
    """Left: final accuracy, over the swept quantity if there is one. Right: over epochs."""
    style = {
        "font.size": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "axes.axisbelow": True,
        "legend.frameon": False,
        "savefig.facecolor": "white",
    }
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(12, 4.8), layout="constrained")
        FigureCanvasAgg(drawn)  # no window system is asked for
        left, right = drawn.subplots(1, 2)
        if any(row.x is not None for row in table):
            _draw_sweep(left, study, table)
        else:
            _draw_arms(left, study, table)
        _draw_epochs(right, study, table)
        with replacing(path) as staged:
            drawn.savefig(staged, format="png", dpi=150)


def _look(study: Study, arm: str) -> dict[str, Any]:
    i = list(study.blocks).index(arm)
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i % len(DASHES)],
    }


def _draw_arms(axes, study: Study, table: list[Row]) -> None:
    """A line an arm: a dot for each seed, a large one for their mean."""
    for y, row in enumerate(table):
        look = {**_look(study, row.arm), "linestyle": "none"}
        if not row.knn:
            continue
        average = statistics.fmean(row.knn)
        axes.plot(average, y, markersize=11, **look)
        if len(row.knn) > 1:
            look |= {"markerfacecolor": "white", "markersize": 5, "zorder": 3}
            axes.plot(row.knn, [y] * len(row.knn), **look)
        axes.annotate(
            spread(row.knn),
            (average, y),
            (0, 11),
            textcoords="offset points",
            ha="center",
            va="bottom",
        )
    axes.set_yticks(range(len(table)), [row.arm for row in table])
    axes.set_ylim(len(table) - 0.4, -0.8)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    for name, top1, _ in baselines(study):
        _baseline(axes.axvline, name, statistics.fmean(top1))
    axes.set_title("kNN accuracy at the end of training")
    axes.set_xlabel("kNN top-1, %")


def _draw_sweep(axes, study: Study, table: list[Row]) -> None:
    labels = list(dict.fromkeys(row.x for row in table if row.x is not None))
    position, logarithmic = _positions(labels)
    for arm in study.blocks:
        points = [row for row in table if row.arm == arm and row.knn]
        look = _look(study, arm)
        for row in points:
            if row.x is None:  # an arm that is not swept
                average = statistics.fmean(row.knn)
                axes.axhline(average, color=look["color"], linestyle=look["linestyle"], label=arm)
        points = sorted((row for row in points if row.x is not None), key=lambda r: position[r.x])
        if not points:
            continue
        at = [position[row.x] for row in points]
        means = [statistics.fmean(row.knn) for row in points]
        axes.plot(at, means, label=arm, markersize=7, **look)
        for x, row in zip(at, points, strict=True):
            if len(row.knn) > 1:
                dots = {**look, "linestyle": "none", "markersize": 3.5, "alpha": 0.55}
                axes.plot([x] * len(row.knn), row.knn, **dots)
    for name, top1, _ in baselines(study):
        _baseline(axes.axhline, name, statistics.fmean(top1))
    if logarithmic:
        axes.set_xscale("log", base=2)
    axes.set_xticks([position[label] for label in labels], labels)
    axes.minorticks_off()
    axes.set_xlabel(study.x)
    axes.set_ylabel("kNN top-1, %")
    axes.set_title(f"kNN accuracy over {study.x}")
    _legend(axes)


def _positions(labels: list[str]) -> tuple[dict[str, float], bool]:
    """Where labels stand on the x axis, and whether it is logarithmic.

    Sizes that grow by factors (256 to 65536) stand at their values; anything else is spaced evenly.
    """
    try:
        values = {label: float(label) for label in labels}
    except ValueError:
        return {label: i for i, label in enumerate(labels)}, False
    if min(values.values()) >= 1 and max(values.values()) >= 4 * min(values.values()):
        return values, True
    return {label: i for i, label in enumerate(sorted(values, key=values.__getitem__))}, False


def _draw_epochs(axes, study: Study, table: list[Row]) -> None:
    """Mean over seeds, each seed as a thin line; of a swept arm, the point that ended highest."""
    for arm in study.blocks:
        candidates = [row for row in table if row.arm == arm and any(o.curve for o in row.outcomes)]
        if not candidates:
            continue
        row = max(candidates, key=lambda r: statistics.fmean(r.knn) if r.knn else -math.inf)
        look = _look(study, arm)
        curves = [outcome.curve for outcome in row.outcomes if outcome.curve]
        by_epoch: dict[float, list[float]] = {}
        for curve in curves:
            for epoch, top1 in curve:
                by_epoch.setdefault(epoch, []).append(top1)
            if len(curves) > 1:
                axes.plot(*zip(*curve, strict=True), color=look["color"], alpha=0.3, linewidth=0.8)
        epochs = sorted(epoch for epoch, found in by_epoch.items() if len(found) == len(curves))
        label = f"{arm}, {study.x} {row.x}" if row.x is not None else arm
        means = [statistics.fmean(by_epoch[epoch]) for epoch in epochs]
        axes.plot(epochs, means, label=label, markersize=4, **look)
    for name, top1, _ in baselines(study):
        _baseline(axes.axhline, name, statistics.fmean(top1))
    axes.set_xlabel("epoch")
    axes.set_ylabel("kNN top-1, %")
    axes.set_title("kNN accuracy during training")
    _legend(axes)


def _legend(axes) -> None:
    """Under the axes, where it hides no data."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.13), ncols=2, fontsize=9.5)


def _baseline(line, name: str, value: float) -> None:
    dashes = ":" if name == "raw pixels" else "--"
    line(value, color="#777777", linestyle=dashes, linewidth=1.3, label=f"{name}, {value:.2f}")


# ------------------------------------------------------------------ page

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 70rem;
       margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 }
h2 { margin-top: 2.2rem; font-size: 1.15rem; border-bottom: 1px solid #ddd }
h3 { font-size: 1rem; margin-bottom: .3rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap }
td { border-bottom: 1px solid #eee }
th { border-bottom: 2px solid #999 }
th:first-child, td:first-child { text-align: left }
tr.best td { font-weight: 600; background: #eef6fc }
pre { background: #f6f6f6; padding: .7rem; white-space: pre-wrap }
img { width: 100% }
.scroll { overflow-x: auto }
.failed { color: #a03000 }
.quiet { color: #666 }
"""


def page(study: Study, table: list[Row], picture: Path) -> str:
    """One file that needs no other."""
    encoded = base64.b64encode(picture.read_bytes()).decode()
    header, body, best = cells(study, table)
    lines = [_tr("th", header)]
    lines += [_tr("td", row, "best" if i == best else "") for i, row in enumerate(body)]
    outcomes = [outcome for row in table for outcome in row.outcomes]
    finished = sum(outcome.state == "finished" for outcome in outcomes)
    seeds = ", ".join(map(str, dict.fromkeys(run.seed for run in study.runs)))
    parts = [
        f"<h1>{_escape(study.name)}</h1>",
        f"<p class=quiet>{finished} of {len(outcomes)} runs finished; seeds {seeds}</p>",
        f'<img alt="kNN accuracy of the arms" src="data:image/png;base64,{encoded}">',
        f"<h2>Result</h2><div class=scroll><table>{''.join(lines)}</table></div>",
        "<ul>" + "".join(f"<li>{_escape(note)}</li>" for note in _notes(study, table)) + "</ul>",
        _failures(outcomes),
        "<h2>What the arms set</h2>",
        *(
            f"<h3>{_escape(name)}</h3><pre>{_escape(_yaml(block))}</pre>"
            for name, block in {"all of them": study.common, **study.blocks}.items()
        ),
        "<p>All else is the same: with one seed the arms see the same images in the same order "
        "through the same views and start from the same weights.</p>",
        "<h2>To run it again</h2>",
        f"<pre>{_escape(study.command)}</pre>",
        "<p>One run alone, from its resolved config:</p>",
        f"<pre>{_escape(_command(study.runs[0]))}</pre>",
        _environment(outcomes),
    ]
    title = f"<title>{_escape(study.name)}</title>"
    head = f'<meta charset="utf-8">{title}<style>{STYLE}</style>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'
    )


def _escape(text: object) -> str:
    return html.escape(str(text))


def _yaml(block: dict[str, Any]) -> str:
    return config.dump(block).strip() if block else "nothing"


def _tr(tag: str, row: list[str], kind: str = "") -> str:
    inner = "".join(f"<{tag}>{_escape(cell)}</{tag}>" for cell in row)
    return f'<tr class="{kind}">{inner}</tr>' if kind else f"<tr>{inner}</tr>"


def _command(run: Run) -> str:
    written = run.folder / "config.yaml"
    return shlex.join(["ssl-zoo", "train", str(written), "--out", f"{run.folder}-again"])


def _failures(outcomes: list[Outcome]) -> str:
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not failed:
        return ""
    items = (
        f"<h3>{_escape(o.run)}</h3><pre class=failed>{_escape(o.reason)}</pre>"
        f"<p class=quiet>{_escape(o.run.folder)}</p>"
        for o in failed
    )
    return "<h2>Failed runs</h2>" + "".join(items)


def _environment(outcomes: list[Outcome]) -> str:
    """What the runs ran on; several values where the runs differ."""
    values: dict[str, list[str]] = {}
    for outcome in outcomes:
        found = {**outcome.environment, **outcome.environment.get("versions", {})}
        for name, value in found.items():
            if name not in ("versions", "command", "started"):  # the last two are each run's own
                texts = values.setdefault(name, [])
                texts += [str(value)] if str(value) not in texts else []
    lines = "".join(_tr("td", [name, " | ".join(found)]) for name, found in values.items())
    return f"<h2>Environment</h2><div class=scroll><table>{lines}</table></div>" if values else ""


# ------------------------------------------------------------------ all of it


def write(study: Study) -> None:
    """Writes table.md, table.csv, figure.png and report.html into the study's folder."""
    study.out.mkdir(parents=True, exist_ok=True)
    table = rows(study)
    write_text(study.out / "table.md", markdown(study, table))
    write_csv(study, table, study.out / "table.csv")
    figure(study, table, study.out / "figure.png")
    text = page(study, table, study.out / "figure.png")
    write_text(study.out / "report.html", text)


def show(study: Study, console: Console) -> None:
    """Prints the table and where the report is."""
    table = rows(study)
    header, body, best = cells(study, table)
    shown = Table(title=study.name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        shown.add_column(Text(name), justify="left" if i == 0 else "right")
    for i, row in enumerate(body):
        shown.add_row(*map(Text, row), style="bold" if i == best else None)
    console.print(shown)
    for outcome in (outcome for row in table for outcome in row.outcomes):
        if outcome.state == "failed":
            console.print(f"failed: {outcome.run}: {outcome.why}", markup=False, highlight=False)
    for note in _notes(study, table):
        console.print(note, markup=False, highlight=False, style="dim")
    report = study.out / "report.html"
    console.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)
