"""A study's report, from what its run folders hold: table.md, table.csv, figure.png, report.html.

Written after every run, so that a study that was stopped has one too.
"""

from rich import box
from rich.console import Console
from rich.table import Table

from ssl_zoo.study.grid import Study
from ssl_zoo.study.report import figure, page, results, tables
from ssl_zoo.study.report.prose import below_table
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
    for name in header:
        shown.add_column(name, justify="left" if name == "arm" else "right")
    for i, row in enumerate(body):
        shown.add_row(*row, style="bold" if i == best else None)
    console.print(shown, *tables.failures(table), sep="\n")
    for section in below_table(table):
        console.print(section.heading, style="bold")
        for line in section.lines:
            console.print(f"  {line}", soft_wrap=True)
        console.print(f"  {section.note}", style="dim", soft_wrap=True)
    for note in tables.notes(table):
        console.print(note, style="dim")
    console.print(f"report: {study.out / 'report.html'}", soft_wrap=True)
