"""A study's report, from what its run folders hold: table.md, table.csv, figure.png, report.html.

Written after every run, so that a study that was stopped has one too.
"""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_zoo.study.grid import Study
from ssl_zoo.study.report import figure, page, results, tables
from ssl_zoo.system.files import write_text


def write_report(study: Study) -> None:
    """Writes table.md, table.csv, figure.png and report.html into the study's folder."""
    study.out.mkdir(parents=True, exist_ok=True)
    table = results.read(study)
    picture = study.out / "figure.png"
    write_text(study.out / "table.md", tables.markdown(table))
    tables.write_csv(table, study.out / "table.csv")
    figure.draw(table, picture)
    write_text(study.out / "report.html", page.render(table, picture))


def print_table(study: Study, console: Console) -> None:
    """Prints the table and where the report is."""
    table = results.read(study)
    header, body, best = tables.cells(table)
    shown = Table(title=study.name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        shown.add_column(Text(name), justify="left" if i == 0 else "right")
    for i, row in enumerate(body):
        shown.add_row(*map(Text, row), style="bold" if i == best else None)
    console.print(shown)
    for outcome in table.outcomes:
        if outcome.state == "failed":
            console.print(f"failed: {outcome.run}: {outcome.why}", markup=False, highlight=False)
    for note in tables.notes(table):
        console.print(note, markup=False, highlight=False, style="dim")
    written = study.out / "report.html"
    console.print(f"report: {written}", markup=False, highlight=False, soft_wrap=True)
