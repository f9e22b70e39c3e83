"""The figure: accuracy at the end, and on the way there."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ssl_zoo.study.baselines import PIXELS, RANDOM
from ssl_zoo.study.report.results import Row, baselines
from ssl_zoo.study.report.tables import spread
from ssl_zoo.system.files import replacing

if TYPE_CHECKING:
    from ssl_zoo.study.ablation import Study

GRAY = "#777777"
FEW = 12  # arms; more are drawn closer
# Okabe and Ito's colours, for colour-blind readers too; markers and dashes say the same again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (3, 3)))


def draw(study: Study, table: list[Row], path: Path) -> None:
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
        height = max(4.8, 0.28 * len(study.blocks))
        drawn = Figure(figsize=(12, height), layout="constrained")
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
    """The same for an arm throughout; no two of the first 49 arms look alike."""
    i, cycle = list(study.blocks).index(arm), len(COLOURS)
    return {
        "color": COLOURS[i % cycle],
        "marker": MARKERS[(i + i // cycle) % cycle],
        "linestyle": DASHES[(i + i // cycle) % cycle],
    }


def _draw_arms(axes, study: Study, table: list[Row]) -> None:
    """A line an arm: a dot for each seed, a large one for their mean, a stroke for its start."""
    own = any(baseline.name == RANDOM and not baseline.shared for baseline in baselines(table))
    for y, row in enumerate(table):
        look = {**_look(study, row.arm), "linestyle": "none"}
        if not row.knn:
            continue
        average = statistics.fmean(row.knn)
        axes.plot(average, y, markersize=11, **look)
        if own and (start := row.start(RANDOM)):
            axes.plot(statistics.fmean(start), y, "|", color=GRAY, markersize=14)
        if len(row.knn) > 1:
            look |= {"markerfacecolor": "white", "markersize": 5, "zorder": 3}
            axes.plot(row.knn, [y] * len(row.knn), **look)
        place = {"xytext": (0, 11), "ha": "center", "va": "bottom"}
        if len(table) > FEW:  # above it would be another arm's
            place = {"xytext": (9, 0), "ha": "left", "va": "center"}
        axes.annotate(spread(row.knn), (average, y), textcoords="offset points", **place)
    axes.set_yticks(range(len(table)), [row.arm for row in table])
    axes.set_ylim(len(table) - 0.4, -0.8)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    _draw_baselines(axes.axvline, table)
    axes.set_title("kNN accuracy at the end of training")
    axes.set_xlabel("kNN top-1, %" + ("; grey: the arm's own start" if own else ""))


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
    _draw_baselines(axes.axhline, table)
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
    _draw_baselines(axes.axhline, table)
    axes.set_xlabel("epoch")
    axes.set_ylabel("kNN top-1, %")
    axes.set_title("kNN accuracy during training")
    _legend(axes)


def _legend(axes) -> None:
    """Under the axes, or beside them if it is long, where it hides no data."""
    entries = len(axes.get_legend_handles_labels()[0])
    if entries > FEW:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9.5)
    elif entries:
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.13), ncols=2, fontsize=9.5)


def _draw_baselines(line, table: list[Row]) -> None:
    """A line for each that all arms share."""
    for baseline in baselines(table):
        if baseline.shared:
            dashes = ":" if baseline.name == PIXELS else "--"
            value = statistics.fmean(baseline.top1)
            label = f"{baseline.name}, {value:.2f}"
            line(value, color=GRAY, linestyle=dashes, linewidth=1.3, label=label)
