"""The figure: the main evaluation at the end of training, on the way there, and what it costs.

A sweep of three points or more is drawn over the swept quantity, over epochs and over the time that
training takes; what a step costs stands beside, where it was probed. Other studies have a line for
each point, and curves over epochs; theirs may be drawn over a kept study's.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, MaxNLocator

from ssl_zoo.evaluation.base import UNTRAINED
from ssl_zoo.study import costs
from ssl_zoo.study.report import standing
from ssl_zoo.study.report.looks import (
    GRAY,
    PALE,
    as_label,
    look_of,
    marker,
    name_of,
    shade,
    sizes_below,
    spaced,
)
from ssl_zoo.study.report.results import Column, Row, Table
from ssl_zoo.study.report.standing import ENOUGH
from ssl_zoo.study.report.tables import spread
from ssl_zoo.study.verdict import half_width, of_one_more
from ssl_zoo.system.files import replacing

FEW = 12  # lines; more are drawn closer, and named in a legend
SWEPT = 3  # points of an arm that make a curve


def draw(table: Table, path: Path, source: str = "") -> None:
    """Draws a study, over the kept one that its grid names if their numbers are of one kind.

    Args:
        source: what the PNG says it was drawn from.
    """
    with matplotlib.rc_context(fname=Path(__file__).with_name("figure.mplstyle")):
        drawn = _swept(table) if is_swept(table) else _not_swept(table, standing.comparable(table))
        with replacing(path) as staged:
            about = {"Source": source} if source else {}
            drawn.savefig(staged, format="png", dpi=150, metadata=about)


def is_swept(table: Table) -> bool:
    arms = [row.arm for row in table.rows if row.x is not None]
    return any(arms.count(arm) >= SWEPT for arm in set(arms))


def _figure(width: float, height: float) -> Figure:
    drawn = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawn)  # no window system is asked for
    drawn.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.05)
    return drawn


def _swept(table: Table) -> Figure:
    main = table.main or Column("no", "evaluation")
    if table.costs:
        drawn = _figure(14, 10)
        (left, right), (below, last) = drawn.subplots(2, 2)
        _draw_costs(last, table)
    else:
        drawn = _figure(17, 5.4)
        left, right, below = drawn.subplots(1, 3)
    _draw_sweep(left, table, main)
    _draw_curves(right, table, main, lambda row, epoch: epoch)
    right.set(xlabel="epoch", title=f"{main.title} during training")
    minutes, how = training_time(table)
    _draw_curves(below, table, main, minutes)
    below.set(xlabel=f"minutes of training{how}", title=f"{main.title} over time")
    _name_arms(drawn, table)
    return drawn


def _not_swept(table: Table, below: Table | None) -> Figure:
    main = table.main or Column("no", "evaluation")
    drawn = _figure(13, max(5.2, 0.28 * len(table.rows)))
    left, right = drawn.subplots(1, 2)
    _draw_points(left, table, main, below)
    if below and below.main:
        _draw_bands(right, below)
    _draw_curves(right, table, main, lambda row, epoch: epoch)
    right.set(xlabel="epoch", title=f"{main.title} during training")
    return drawn


def _name_arms(drawn: Figure, table: Table) -> None:
    """A legend of arms for all panels, and what hollow points mean."""
    looks = {arm: look_of(table.study, arm) for arm in table.study.blocks}
    entries = [Line2D([], [], label=as_label(arm), **look) for arm, look in looks.items()]
    if not all(table.study.planned(row.point) for row in table.rows):
        for label, solid in (("planned contrast", True), ("exploratory", False)):
            gray = marker({"color": GRAY, "marker": "o"}, solid)
            entries.append(Line2D([], [], label=label, **gray))
    entries.append(Line2D([], [], color=GRAY, marker=".", linestyle="none", label="one seed"))
    if any(len(table.main.of(row)) >= ENOUGH for row in table.rows if table.main):
        entries.append(Line2D([], [], color=GRAY, marker="|", markersize=13, linestyle="none"))
        entries[-1].set_label("95% interval of the mean")
    for columns in range(len(entries), 0, -1):  # the first that leaves nothing outside
        legend = drawn.legend(handles=entries, loc="outside lower center", ncols=columns)
        if legend.get_window_extent().width <= drawn.bbox.width:
            break
        legend.remove()


# ---------------------------------------------------------------- at the end of training


def _draw_sweep(axes: Axes, table: Table, main: Column) -> None:
    """Means over seeds, a line an arm; each seed as a small dot."""
    labels = list(dict.fromkeys(row.x for row in table.rows if row.x is not None))
    position, logarithmic = _positions(labels)
    arms = list(table.study.blocks)
    for i, arm in enumerate(arms):
        look = look_of(table.study, arm)
        rows = [row for row in table.rows if row.arm == arm and main.of(row)]
        for row in (row for row in rows if row.x is None):
            axes.axhline(fmean(main.of(row)), color=look["color"], linestyle=look["linestyle"])
        rows = sorted((row for row in rows if row.x is not None), key=lambda r: position[r.x])
        # A little to the side, or arms of one size would hide each other.
        aside = 0.09 * (i - (len(arms) - 1) / 2)
        at = [position[r.x] * 2**aside if logarithmic else position[r.x] + aside for r in rows]
        means = [fmean(main.of(row)) for row in rows]
        axes.plot(at, means, color=look["color"], linestyle=look["linestyle"], linewidth=1.3)
        for x, mean, row in zip(at, means, rows, strict=True):
            _draw_seeds(axes, [x] * len(main.of(row)), main.of(row), look["color"])
            if len(main.of(row)) >= ENOUGH:
                half = half_width(main.of(row))
                axes.errorbar(x, mean, half, color=look["color"], capsize=4, linewidth=1.6)
            axes.plot(x, mean, **marker(look, table.study.planned(row.point)), zorder=3)
    if logarithmic:
        sizes_below(axes)
    else:
        axes.set_xticks([position[at] for at in labels], map(as_label, labels))
    size = as_label(table.study.x)
    axes.set(xlabel=size, ylabel=main.header, title=f"{main.title} over {size}")
    _draw_baselines(axes, main, across=False)


def _draw_seeds(axes: Axes, x: list[float], y: list[float], color: str) -> None:
    if len(x) > 1:
        axes.plot(x, y, ".", color=color, markersize=5, alpha=0.4, markeredgewidth=0)


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


def _draw_points(axes: Axes, table: Table, main: Column, below: Table | None) -> None:
    """A line a point: a dot for each seed, a large one for their mean, a stroke for its start.

    Below them in gray, the other study's seeds and between what one more of them is expected.
    """
    starts = any(baseline.name == UNTRAINED and not baseline.shared for baseline in main.baselines)
    others = below.at if below and below.main else {}
    many = len(table.rows) > FEW
    for y, row in enumerate(table.rows):
        look, scores = look_of(table.study, row.arm), main.of(row)
        known = below.main.of(others[row.point]) if row.point in others else []
        if len(known) >= ENOUGH:
            low, high = of_one_more(known)
            axes.barh(y, high - low, left=low, height=0.4, color=PALE, zorder=1)
            axes.plot(known, [y + 0.11] * len(known), ".", color=GRAY, markersize=6, zorder=2)
            axes.plot([fmean(known)] * 2, [y - 0.2, y + 0.2], color=GRAY, zorder=2)
        if not scores:
            continue
        if starts and (start := row.start(main.evaluation, UNTRAINED)):
            axes.plot(fmean(start), y, "|", color=GRAY, markersize=14)
        _draw_seeds(axes, scores, [y] * len(scores), look["color"])
        if len(scores) >= ENOUGH:
            half = half_width(scores)
            axes.errorbar(fmean(scores), y, xerr=half, color=look["color"], capsize=4)
        own = {**marker(look, True), "markersize": 10, "markeredgecolor": "white"}
        own["markerfacecolor"] = shade(table, row)
        axes.plot(fmean(scores), y, **own, zorder=3)
        place = {"xytext": (0, 15), "ha": "center", "va": "bottom"}
        if many:  # above it would be another arm's
            place = {"xytext": (9, 0), "ha": "left", "va": "center"}
        axes.annotate(spread(scores), (fmean(scores), y), textcoords="offset points", **place)
    axes.set_yticks(range(len(table.rows)), [name_of(table.study, row) for row in table.rows])
    axes.set_ylim(len(table.rows) - 0.4, -0.8)
    axes.grid(axis="y", visible=False)
    axes.use_sticky_edges = False  # bars need not start at the axis
    axes.margins(x=0.12)
    axes.set_title(f"{main.title} at the end of training")
    said = ["gray stroke: the arm's own start"] if starts else []
    seeds = max((len(below.main.of(row)) for row in others.values()), default=0)
    if seeds >= ENOUGH:
        said.append(f"gray: {seeds} seeds of a kept study, and where one more is expected, 95%")
    axes.set_xlabel("\n".join([main.header, *said]))
    _draw_baselines(axes, main, across=True, lines=len(said))


# ---------------------------------------------------------------- during training


Abscissa = Callable[[Row, float], float | None]


def training_time(table: Table) -> tuple[Abscissa, str]:
    """Minutes that a row's training takes until an epoch, and how that is known.

    By the probes of single steps if all rows have one: runs at once slow each other down.
    """
    ms = {cost.point: cost.ms for cost in table.costs}
    trained = [row for row in table.rows if row.finished]
    probed = bool(trained) and all(row.point in ms for row in trained)

    def minutes(row: Row, epoch: float) -> float | None:
        steps, epochs = row.values("steps"), row.values("epochs")
        seconds = row.values("seconds")
        if not epochs or not (steps if probed else seconds):
            return None
        whole = fmean(steps) * ms[row.point] / 1000 if probed else fmean(seconds)
        return whole / 60 * epoch / fmean(epochs)

    return minutes, ": steps × a probed step's median" if probed else ", as the runs took"


def curve_of(row: Row, main: Column) -> dict[float, list[float]]:
    """Epoch -> the values of all seeds that have a curve."""
    curves = [dict(curve) for outcome in row.outcomes if (curve := outcome.curve(main))]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    return {epoch: [curve[epoch] for curve in curves] for epoch in epochs}


def _drawn_rows(table: Table, main: Column) -> list[Row]:
    """Points whose curve is drawn: all, but of a sweep that would be too many.

    Of its arms, what is planned and what lies beyond; without planned contrasts, what ended best.
    """
    rows = [row for row in table.rows if curve_of(row, main)]
    if not is_swept(table):
        return rows
    planned, chosen = table.study.planned, []
    for arm in table.study.blocks:
        own = [row for row in rows if row.arm == arm]
        if table.study.contrasts:
            last = max((i for i, row in enumerate(own) if planned(row.point)), default=-1)
            chosen += [row for i, row in enumerate(own) if i > last or planned(row.point)]
        elif own:
            chosen.append(main.best(own) or own[0])
    return chosen


def _draw_curves(axes: Axes, table: Table, main: Column, x: Abscissa) -> None:
    """Means over seeds with their interval as a band; each line is named at its end."""
    ends: list[tuple[float, float, str, str]] = []
    for row in _drawn_rows(table, main):
        curve = curve_of(row, main)
        at = [x(row, epoch) for epoch in curve]
        if None in at:
            continue
        look, color = look_of(table.study, row.arm), shade(table, row)
        solid = table.study.planned(row.point)
        means = [fmean(values) for values in curve.values()]
        if solid and all(len(values) >= ENOUGH for values in curve.values()):
            half = [half_width(values) for values in curve.values()]
            low, high = ([m + s * h for m, h in zip(means, half, strict=True)] for s in (-1, 1))
            axes.fill_between(at, low, high, color=color, alpha=0.18, linewidth=0)
        line = {"linestyle": look["linestyle"], "linewidth": 1.9 if solid else 1.1}
        face = color if solid else "white"
        shape = {"marker": look["marker"], "markersize": 5, "markerfacecolor": face}
        name = name_of(table.study, row)
        axes.plot(at, means, color=color, label=name, **line, **shape)
        ends.append((at[-1], means[-1], name, color))
    axes.set_ylabel(main.header)
    axes.margins(y=0.08)
    _draw_baselines(axes, main, across=False)
    if len(ends) > FEW:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9.5)
    elif ends:
        _name_lines(axes, ends)


def _name_lines(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Lines' names in a column beside the last end, each as high as its line if there is room."""
    left, right = axes.get_xlim()
    ticks = MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=right > 2).tick_values(0, right)
    axes.set_xticks([tick for tick in ticks if left <= tick <= right])
    axes.set_xlim(left, right + 0.42 * (right - left))
    low, high = axes.get_ylim()
    heights = spaced([y for _, y, _, _ in ends], 0.055 * (high - low), low, high)
    column = max(x for x, *_ in ends) + 0.035 * (right - left)
    for (x, y, name, color), height in zip(ends, heights, strict=True):
        darker = tuple(0.8 * part for part in to_rgb(color))
        place = {"xytext": (column, height), "va": "center"}
        pointer = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        shown = axes.annotate(name, (x, y), **place, color=darker, fontsize=9.5, arrowprops=pointer)
        shown.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6})


def _draw_bands(axes: Axes, below: Table) -> None:
    """Between what one more run is expected at each epoch, in pale colors."""
    for row in below.rows:
        curve = curve_of(row, below.main)
        if curve and all(len(values) >= ENOUGH for values in curve.values()):
            low, high = zip(*map(of_one_more, curve.values()), strict=True)
            pale = {"color": shade(below, row), "alpha": 0.15, "linewidth": 0}
            axes.fill_between(list(curve), low, high, **pale)


# ---------------------------------------------------------------- what it is held against


def _draw_baselines(axes: Axes, main: Column, across: bool, lines: int = 0) -> None:
    """A line for each that all arms share; those far from the arms are told below the axis.

    Args:
        across: scores grow to the right, and not upwards.
        lines: of text that the x axis has below its name.
    """
    low, high = axes.get_xlim() if across else axes.get_ylim()
    shared = {b.name: fmean(b.scores) for b in main.baselines if b.shared}
    room = 0.12 * (high - low) if axes.has_data() else float("inf")
    near = {n: value for n, value in shared.items() if low - room <= value <= high + room}
    small = {"color": GRAY, "fontsize": 9}
    for name, value in near.items():
        line = {"color": GRAY, "linestyle": ":", "linewidth": 1.3, "zorder": 1}
        text = f"{name} {value:.1f}"
        if across:
            axes.axvline(value, **line)
            place = {"rotation": 90, "ha": "right", "va": "top"}
            axes.text(value, 0.99, text, transform=axes.get_xaxis_transform(), **place, **small)
        else:
            axes.axhline(value, **line)
            place = {"ha": "right", "va": "bottom"}
            axes.text(0.99, value, text, transform=axes.get_yaxis_transform(), **place, **small)
    if far := [f"{name} {value:.1f}" for name, value in shared.items() if name not in near]:
        place = {"xytext": (0, -36 - 15 * lines), "textcoords": "offset points"}
        place |= {"xycoords": "axes fraction", "va": "top"}
        axes.annotate(f"not drawn: {', '.join(far)}", (0, 0), **place, **small)


def _draw_costs(axes: Axes, table: Table) -> None:
    """Peak memory over the swept quantity, above milliseconds a step."""
    axes.set_axis_off()
    memory = axes.inset_axes((0, 0.54, 1, 0.46))
    step = axes.inset_axes((0, 0, 1, 0.46), sharex=memory)
    size, extrapolated = as_label(table.study.x), costs.extrapolated(table.costs)
    for arm in table.study.blocks:
        look = look_of(table.study, arm)
        own = [cost for cost in table.costs if cost.arm == arm and cost.size is not None]
        own.sort(key=lambda cost: cost.size)
        sizes = [cost.size for cost in own]
        memory.plot(sizes, [cost.peak_memory_gb for cost in own], **{"markersize": 5, **look})
        step.plot(sizes, [cost.ms for cost in own], **{"markersize": 5, **look})
        if arm in extrapolated:
            meets = extrapolated[arm], costs.LIMIT_GB
            line = {"color": look["color"], "linestyle": ":", "linewidth": 1.4}
            memory.plot(*zip((sizes[-1], own[-1].peak_memory_gb), meets, strict=True), **line)
            memory.plot(*meets, **marker(look, False))
            text = f"{costs.LIMIT_GB:g} GB at {size} {meets[0]:,.0f}, extrapolated"
            place = {"xytext": (8, -3), "textcoords": "offset points", "va": "top"}
            memory.annotate(text, meets, color=look["color"], fontsize=9, **place)
    memory.set(ylabel="peak memory, GB", title=f"What {size} costs")
    memory.set_ylim(bottom=0)
    step.set_yscale("log")
    step.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    sizes_below(step)
    memory.tick_params(labelbottom=False)
    step.set(xlabel=size, ylabel="ms a step")
