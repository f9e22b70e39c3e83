"""The figure: the main evaluation at the end of training, and on the way there."""

from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ssl_zoo.evaluation.base import UNTRAINED
from ssl_zoo.study.grid import Study
from ssl_zoo.study.report.results import Column, Table
from ssl_zoo.study.report.tables import spread
from ssl_zoo.system.files import replacing

GRAY = "#777777"
FEW = 12  # arms; more are drawn closer
# Okabe and Ito's colors, for color-blind readers too; markers and dashes say the same again.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (3, 3)))


def draw(table: Table, path: Path) -> None:
    """Left: the main evaluation at the end, over the swept quantity if any. Right: over epochs."""
    with matplotlib.rc_context(fname=Path(__file__).with_name("figure.mplstyle")):
        height = max(4.8, 0.28 * len(table.study.blocks))
        drawn = Figure(figsize=(12, height), layout="constrained")
        FigureCanvasAgg(drawn)  # no window system is asked for
        left, right = drawn.subplots(1, 2)
        main = table.main or Column("no", "evaluation")
        swept = any(row.x is not None for row in table.rows)
        (_draw_sweep if swept else _draw_arms)(left, table, main)
        _draw_epochs(right, table, main)
        with replacing(path) as staged:
            drawn.savefig(staged, format="png", dpi=150)


def _look(study: Study, arm: str) -> dict[str, Any]:
    """The same for an arm throughout; no two of the first 49 arms look alike."""
    i, cycle = list(study.blocks).index(arm), len(COLORS)
    other = (i + i // cycle) % cycle
    return {"color": COLORS[i % cycle], "marker": MARKERS[other], "linestyle": DASHES[other]}


def _draw_arms(axes, table: Table, main: Column) -> None:
    """A line an arm: a dot for each seed, a large one for their mean, a stroke for its start."""
    starts = any(baseline.name == UNTRAINED and not baseline.shared for baseline in main.baselines)
    for y, row in enumerate(table.rows):
        look = {**_look(table.study, row.arm), "linestyle": "none"}
        scores = main.of(row)
        if not scores:
            continue
        axes.plot(fmean(scores), y, markersize=11, **look)
        if starts and (start := row.start(main.evaluation, UNTRAINED)):
            axes.plot(fmean(start), y, "|", color=GRAY, markersize=14)
        if len(scores) > 1:
            look |= {"markerfacecolor": "white", "markersize": 5, "zorder": 3}
            axes.plot(scores, [y] * len(scores), **look)
        place = {"xytext": (0, 11), "ha": "center", "va": "bottom"}
        if len(table.rows) > FEW:  # above it would be another arm's
            place = {"xytext": (9, 0), "ha": "left", "va": "center"}
        axes.annotate(spread(scores), (fmean(scores), y), textcoords="offset points", **place)
    axes.set_yticks(range(len(table.rows)), [row.arm for row in table.rows])
    axes.set_ylim(len(table.rows) - 0.4, -0.8)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    _draw_baselines(axes.axvline, main)
    axes.set_title(f"{main.title} at the end of training")
    axes.set_xlabel(main.header + ("; gray: the arm's own start" if starts else ""))


def _draw_sweep(axes, table: Table, main: Column) -> None:
    """Means over seeds, a line an arm; each seed as a small dot."""
    labels = list(dict.fromkeys(row.x for row in table.rows if row.x is not None))
    position, logarithmic = _positions(labels)
    for arm in table.study.blocks:
        look = _look(table.study, arm)
        scores = {row.x: main.of(row) for row in table.rows if row.arm == arm and main.of(row)}
        if not_swept := scores.pop(None, None):
            line = {name: look[name] for name in ("color", "linestyle")}
            axes.axhline(fmean(not_swept), label=arm, **line)
        if not scores:
            continue
        points = sorted((position[x], values) for x, values in scores.items())
        means = [(at, fmean(values)) for at, values in points]
        axes.plot(*zip(*means, strict=True), label=arm, markersize=7, **look)
        for at, values in points:
            if len(values) > 1:
                dots = {**look, "linestyle": "none", "markersize": 3.5, "alpha": 0.55}
                axes.plot([at] * len(values), values, **dots)
    if logarithmic:
        axes.set_xscale("log", base=2)
    axes.set_xticks([position[label] for label in labels], labels)
    axes.minorticks_off()
    _finish(axes, main, table.study.x, f"{main.title} over {table.study.x}")


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


def _draw_epochs(axes, table: Table, main: Column) -> None:
    """Mean over seeds, each seed as a thin line; of a swept arm, the point that ended best."""
    for arm in table.study.blocks:
        rows = [row for row in table.rows if row.arm == arm]
        rows = [row for row in rows if any(o.curve(main) for o in row.outcomes)]
        if not rows:
            continue
        row = main.best(rows) or rows[0]
        look = _look(table.study, arm)
        curves = [curve for outcome in row.outcomes if (curve := outcome.curve(main))]
        by_epoch: dict[float, list[float]] = {}
        for curve in curves:
            for epoch, value in curve:
                by_epoch.setdefault(epoch, []).append(value)
            if len(curves) > 1:
                axes.plot(*zip(*curve, strict=True), color=look["color"], alpha=0.3, linewidth=0.8)
        epochs = sorted(epoch for epoch, values in by_epoch.items() if len(values) == len(curves))
        label = f"{arm}, {table.study.x} {row.x}" if row.x is not None else arm
        means = [fmean(by_epoch[epoch]) for epoch in epochs]
        axes.plot(epochs, means, label=label, markersize=4, **look)
    _finish(axes, main, "epoch", f"{main.title} during training")


def _finish(axes, main: Column, x: str, title: str) -> None:
    """Baselines, and a legend under the axes, or beside them if it is long: it hides no data."""
    _draw_baselines(axes.axhline, main)
    axes.set(xlabel=x, ylabel=main.header, title=title)
    entries = len(axes.get_legend_handles_labels()[0])
    if entries > FEW:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9.5)
    elif entries:
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.13), ncols=2, fontsize=9.5)


def _draw_baselines(line, main: Column) -> None:
    """A line for each that all arms share."""
    for baseline in main.baselines:
        if baseline.shared:
            value = fmean(baseline.scores)
            look = {"color": GRAY, "linestyle": "--" if baseline.seeded else ":", "linewidth": 1.3}
            line(value, label=f"{baseline.name}, {value:.2f}", **look)
