"""How arms and points look in figures, and where sizes and names stand."""

import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from ssl_zoo.study.grid import Study
from ssl_zoo.study.report.results import Row, Table
from ssl_zoo.system.text import visible

GRAY, PALE = "#777777", "#d9d9d9"
# Okabe and Ito's colors, for color-blind readers too; markers and dashes say the same again.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (3, 3)))


def look_of(study: Study, arm: str) -> dict[str, Any]:
    """The same for an arm throughout; no two of the first 49 arms look alike.

    By name, so that studies of the same arms in another order look the same.
    """
    i, cycle = sorted(study.blocks, key=str.casefold).index(arm), len(COLORS)
    other = (i + i // cycle) % cycle
    dashes = DASHES[i // cycle % len(DASHES)]  # few arms are told apart without
    return {"color": COLORS[i % cycle], "marker": MARKERS[other], "linestyle": dashes}


def as_label(name: str) -> str:
    """A name as it is: matplotlib would set formulas, and keep `_name` out of a legend."""
    return re.sub("^_", " _", visible(name)).replace("$", r"\$")


def name_of(study: Study, row: Row) -> str:
    return as_label(row.arm if row.x is None else f"{row.arm}, {study.x} {row.x}")


def marker(look: dict[str, Any], solid: bool) -> dict[str, Any]:
    """A point's marker: filled, or hollow."""
    face = look["color"] if solid else "white"
    of = {name: look[name] for name in ("color", "marker")}
    return {**of, "linestyle": "none", "markerfacecolor": face, "markeredgewidth": 1.4}


def shade(table: Table, row: Row) -> tuple[float, float, float]:
    """An arm's color; paler for points before the last of those that are drawn solid."""
    own = [r for r in table.rows if r.arm == row.arm and table.study.planned(r.point)]
    white = 0.45 * (1 - (own.index(row) + 1) / len(own)) if row in own else 0.0
    color = to_rgb(look_of(table.study, row.arm)["color"])
    return tuple(white + (1 - white) * part for part in color)


def sizes_below(axes: Axes) -> None:
    """A logarithmic x axis with powers of two below it, eight at the most.

    It stays as it is where it has no two of them, as that of a rate or a temperature.
    """
    low, high = axes.get_xlim()
    sizes = [2**i for i in range(40) if low <= 2**i <= high]
    if len(sizes) < 2:
        return
    axes.set_xscale("log", base=2)
    low, high = axes.get_xlim()  # which has other margins
    sizes = [2**i for i in range(40) if low <= 2**i <= high]
    sizes = sizes[:: -(-len(sizes) // 8)]
    axes.set_xticks(sizes, map(str, sizes))
    axes.minorticks_off()


def spaced(values: list[float], gap: float, low: float, high: float) -> list[float]:
    """The values, moved apart until each is `gap` or more from the next.

    Those that would meet stay centered around their mean, if there is room between the bounds.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    groups: list[tuple[float, list[int]]] = []  # the mean of what was wanted, and whose it is
    for i in order:
        wanted, members = values[i], [i]
        while groups and wanted - groups[-1][0] < gap * (len(members) + len(groups[-1][1])) / 2:
            other, earlier = groups.pop()
            total = len(earlier) + len(members)
            wanted = (other * len(earlier) + wanted * len(members)) / total
            members = earlier + members
        half = gap * (len(members) - 1) / 2
        groups.append((max(low + half, min(wanted, high - half)), members))
    moved = list(values)
    for center, members in groups:
        for place, i in enumerate(members):
            moved[i] = center + gap * (place - (len(members) - 1) / 2)
    return moved
