"""Writes the marked blocks of README.md and docs/*.md anew, and figures, from results/*.json.

    python tools/results_blocks.py

A block says which file it is of, and what stands in it:

    <!-- results: fig3.json verdict MoCo, 4096 > MoCo, 32 -->...<!-- end of results -->

What a kind takes is said by its function below; a new one is a function in `KINDS`, for kept
studies, or in `VALUES`, for what benchmarks write. After ` | ` comes the quantity, or for a table
of a study several: evaluations, or pretext_top1, images_per_s, peak_memory_gb, seconds. Without
it the main evaluation is meant.
A block within a paragraph stays there. Where the file is not there yet, it has the command.

A page that shows docs/NAME.png, where there is a kept study results/NAME.json, shows that study.
The PNG says of which file it was drawn, so it is drawn anew when that changes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also without installing
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import equality
import kept_results
import textures
from common import Table, told
from kept_results import as_table, column_of, scores
from PIL import Image

from ssl_zoo.config import ConfigError, not_among
from ssl_zoo.study.grid import Contrast, find_point, title
from ssl_zoo.study.report.figure import curve_of, draw
from ssl_zoo.study.report.kept import Kept, load, read_json
from ssl_zoo.study.report.results import Baseline, Column
from ssl_zoo.study.report.tables import mean, spread
from ssl_zoo.study.verdict import Comparison
from ssl_zoo.system.files import sha256

ROOT = kept_results.ROOT
START, END = "<!-- results: ", "<!-- end of results -->"
BLOCK = re.compile(f"{START}(?P<asked>[^\\n]*?) -->(?P<inside>.*?){END}", flags=re.DOTALL)


def table(kept: Kept, of: str, quantities: list[str]) -> str:
    """A row for each point: seeds, then mean and standard deviation of each quantity.

    Without quantities: all evaluations, then what training leaves. Of 'a baseline; ...', a row for
    each of these as well.
    """
    columns = [column_of(kept, name) for name in quantities] or kept.columns
    rows = []
    for row in kept.rows:
        cells = [shown(scores(kept, row, column)) for column in columns]
        rows.append([title(row.point), str(len(row.finished)), *cells])
    for name in parted(of):
        values = [baseline_of(column, name).scores for column in columns]
        rows.append([name, str(max(map(len, values))), *map(spread, values)])
    return as_table(["", "seeds", *map(header, columns)], rows)


def parted(of: str) -> list[str]:
    return [text.strip() for text in of.split(";") if text.strip()]


def header(column: Column) -> str:
    name = column.evaluation
    of_training = {"pretext_top1": "pretext top-1, %", "images_per_s": "images/s"}
    of_training |= {"peak_memory_gb": "peak GB", "seconds": "seconds"}
    return of_training.get(name) or (f"{name}, {column.unit}" if column.unit else name)


def shown(by_seed: dict[int, float]) -> str:
    """Mean and standard deviation; two decimals below a hundred, none above: of costs."""
    values = list(by_seed.values())
    return spread(values, 2) if values and max(values) <= 100 else mean(values, 0)


def one(kept: Kept, quantities: list[str]) -> Column:
    if len(quantities) > 1:
        raise ConfigError("", "one quantity at most", found=", ".join(quantities))
    return column_of(kept, *quantities)


def verdict(kept: Kept, of: str, quantities: list[str]) -> str:
    """Of 'A > B', the sentence; 'exploratory' of what was not planned. B may be a baseline."""
    compared = comparison(kept, of, one(kept, quantities))
    return compared.sentence if compared.contrasts else f"{compared.sentence} (exploratory)"


def comparison(kept: Kept, of: str, column: Column) -> Comparison:
    contrast = Contrast.read(of, list(kept.at), [baseline.name for baseline in column.baselines])
    return kept_results.compared(kept, contrast, column)


def differences(kept: Kept, of: str, quantities: list[str]) -> str:
    """Of 'A > B; ...', a row for each: how much higher A is, and its 95% interval over seeds."""
    columns = [column_of(kept, name) for name in quantities] or kept.columns
    rows = []
    for text in parted(of):
        compared = [comparison(kept, text, column) for column in columns]
        cells = [f"{c.mean:+.1f} ({c.interval[0]:.1f} to {c.interval[1]:.1f})" for c in compared]
        rows.append([f"{compared[0].a} less {compared[0].b}", *cells])
    return as_table(["", *map(header, columns)], rows)


def number(kept: Kept, of: str, quantities: list[str]) -> str:
    """Of 'an arm' or 'arm, point': mean and standard deviation over seeds."""
    found = scores(kept, kept.at[find_point(of, kept.at, "")], one(kept, quantities))
    return shown(found) if found else "not run yet"


def baseline(kept: Kept, of: str, quantities: list[str]) -> str:
    """Of one that all points share, by name: mean and standard deviation."""
    return spread(baseline_of(one(kept, quantities), of).scores)


def baseline_of(column: Column, name: str) -> Baseline:
    known = {baseline.name: baseline for baseline in column.baselines}
    if name not in known:
        raise not_among("", f"no baseline of {column.evaluation}", name, known)
    if not known[name].shared:
        problem = "a baseline of each arm and not of all"
        raise ConfigError("", problem, found=name, expected="one that all points share")
    return known[name]


def costs(kept: Kept, of: str, quantities: list[str]) -> str:
    """What a training step costs: a row for each point that was probed."""
    rows = []
    for cost in kept.costs:
        rate = 1000 * cost.batch_size / cost.ms
        numbers = [f"{cost.ms:.1f}", f"{rate:.0f}", f"{cost.peak_memory_gb:.2f}"]
        rows.append([title(cost.point), *numbers])
    return as_table(["", "ms a step", "images/s", "peak GB"], rows)


def epochs(kept: Kept, of: str, quantities: list[str]) -> str:
    """The main evaluation's mean over seeds during training: a row a point, a column an epoch.

    Of 'POINT; POINT; ...' these points; without, all.
    """
    wanted = [find_point(text, kept.at, "") for text in parted(of)]
    curves = {at: curve_of(kept.at[at], kept.main) for at in wanted or kept.at}
    columns = sorted({epoch for curve in curves.values() for epoch in curve})
    rows = [
        [title(at), *(mean(curve[epoch], 2) if epoch in curve else "" for epoch in columns)]
        for at, curve in curves.items()
    ]
    return as_table(["epochs", *(f"{epoch:g}" for epoch in columns)], rows)


def origin(kept: Kept, of: str, quantities: list[str]) -> str:
    """The command, the date, the commit and the machine."""
    return kept_results.origin(kept)


def study(kept: Kept, of: str, quantities: list[str]) -> str:
    """The table, the verdict of each planned contrast in the main evaluation, the origin.

    Of 'a baseline; ...', the table has these as well.
    """
    verdicts = [f"- {verdict(kept, contrast, [])}" for contrast in kept.data["contrasts"]]
    origin = f"From {kept_results.origin(kept)}."
    parts = [table(kept, of, quantities), "\n".join(verdicts), origin]
    return "\n\n".join(filter(None, parts))


def value(data: Any, of: str) -> str:
    """Of 'a key / a key in that / ...', what stands there."""
    for key in of.split(" / "):
        if not isinstance(data, dict) or key not in data:
            raise not_among(of, "no such key", key, data if isinstance(data, dict) else ())
        data = data[key]
    return str(data)


def rows(data: Any, of: str) -> str:
    """Of a key that holds a list of rows, each a mapping with the same keys, all as a table."""
    found = list_at(data, of)
    return as_table(list(found[0]), [[str(cell) for cell in row.values()] for row in found])


def span(data: Any, of: str) -> str:
    """Of 'a key / what its rows have', the lowest and the highest, as in '1 to 2'."""
    name, _, key = of.partition(" / ")
    numbers = [row[key] for row in list_at(data, name) if key in row]
    if not numbers:
        raise not_among(of, f"no row of {name} has it", key, list_at(data, name)[0])
    return f"{min(numbers)} to {max(numbers)}"


def list_at(data: Any, name: str) -> list[dict[str, Any]]:
    lists = [key for key, value in data.items() if isinstance(value, list) and value]
    if name not in lists:
        raise not_among(name, "no such list of rows", name, lists)
    return data[name]


def measured(data: Any, of: str) -> str:
    """A table of a benchmark, by name, and the sentences below it."""
    return str(table_of(data, of))


def cell(data: Any, of: str) -> str:
    """Of 'a table / what its row begins with / a column', what stands there."""
    name, begins, column, *_ = [*of.split(" / "), "", ""]
    found = table_of(data, name)
    rows = {row[0]: row for row in found.words}
    if begins not in rows:
        raise not_among(of, f"no such row of {name}", begins, rows)
    if column not in found.columns:
        raise not_among(of, f"no such column of {name}", column, found.columns)
    return rows[begins][list(found.columns).index(column)]


def table_of(data: Any, name: str) -> Table:
    tables = data.get("tables", {}) if isinstance(data, dict) else {}
    if name not in tables:
        raise not_among(name, "no such table", name, tables)
    return Table(**tables[name])


KINDS: dict[str, Callable[[Kept, str, list[str]], str]] = {
    "study": study,
    "table": table,
    "verdict": verdict,
    "differences": differences,
    "number": number,
    "baseline": baseline,
    "costs": costs,
    "epochs": epochs,
    "origin": origin,
}
VALUES: dict[str, Callable[[Any, str], str]] = {
    "value": value,
    "rows": rows,
    "span": span,
    "measured": measured,
    "cell": cell,
    "told": lambda data, of: told(data),
    "baselines": lambda data, of: textures.render(data),
    "equality": lambda data, of: equality.markdown(data),
}


def content(asked: str, folder: Path) -> str:
    """What stands in a block that says `asked`: 'NAME.json KIND ...'."""
    ask, _, quantities = asked.partition(" | ")
    name, kind, of, *_ = [*ask.split(" ", 2), "", ""]
    if kind not in KINDS | VALUES:
        raise not_among(asked, "no kind of block", kind, KINDS | VALUES)
    if not (folder / name).exists():
        return f"not run yet: `{kept_results.command(name, asked)}`"
    if kind in VALUES:
        return VALUES[kind](read_json(folder / name), of.strip())
    kept = kept_results.load(folder / name)
    return KINDS[kind](kept, of.strip(), [q.strip() for q in quantities.split(",") if q.strip()])


def render(text: str, where: str, folder: Path = kept_results.RESULTS) -> str:
    """The text with what is in its blocks made anew.

    Args:
        where: the file, for errors.
        folder: where results are.

    Raises:
        ConfigError: a block that is not closed, of no kind, or of what its file has not.
    """

    def block(match: re.Match) -> str:
        inside = content(match["asked"], folder)
        if "\n" in inside or match["inside"].startswith("\n"):
            inside = f"\n\n{inside}\n\n"  # a table needs empty lines around it
        return f"{START}{match['asked']} -->{inside}{END}"

    try:
        rendered, blocks = BLOCK.subn(block, text)
        if not blocks == text.count(START) == text.count(END):
            problem = "a block of results that is not closed, or one within another"
            found = f"{text.count(START)} opened, {text.count(END)} closed"
            raise ConfigError("", problem, found=found, expected=f"{START}... -->...{END}")
    except ConfigError as error:
        error.where = error.where or where
        raise
    return rendered


def figures() -> dict[Path, Path]:
    """The pictures of kept studies that pages show, and the files that they are drawn from."""
    shown = {}
    for page in pages():
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", page.read_text(encoding="utf-8")):
            picture = (page.parent / link).resolve()
            kept = kept_results.RESULTS / f"{picture.stem}.json"
            if kept.exists():
                shown[picture] = kept
    return shown


def source(kept: Path) -> str:
    """What a picture says of the file that it was drawn from."""
    return f"results/{kept.name}, sha256 {sha256(kept)}"


def drawn_from(picture: Path) -> str:
    """What it says; '' for none, or for a picture that says nothing."""
    return Image.open(picture).info.get("Source", "") if picture.exists() else ""


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> int:
    try:
        for page in pages():
            text = page.read_text(encoding="utf-8")
            rendered = render(text, str(page.relative_to(ROOT)))
            if rendered != text:
                page.write_text(rendered, encoding="utf-8")
                print(page.relative_to(ROOT))
        for picture, kept in figures().items():
            if drawn_from(picture) != source(kept):
                draw(load(kept), picture, source(kept))
                print(picture.relative_to(ROOT))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
