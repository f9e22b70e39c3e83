"""A study's report, from what its run folders hold: table.md, table.csv, figure.png, report.html.

Written after every run, so that a study that was stopped has one too.
"""

from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as Shown

from ssl_zoo.study.grid import Study
from ssl_zoo.study.report import figure, page, results, tables
from ssl_zoo.study.report.prose import below_table
from ssl_zoo.study.report.results import Table
from ssl_zoo.study.report.verdicts import Section
from ssl_zoo.system.files import write_text


@dataclass(frozen=True)
class Report:
    """What is said of a study, be it in a file or on the screen."""

    table: Table
    sections: list[Section]  # below the table; with verdicts, which take a while


def read_report(study: Study) -> Report:
    table = results.read(study)
    return Report(table, below_table(table))


def write_report(study: Study) -> Report:
    """Writes table.md, table.csv, figure.png and report.html into the study's folder."""
    study.out.mkdir(parents=True, exist_ok=True)
    found = read_report(study)
    picture = study.out / "figure.png"
    write_text(study.out / "table.md", tables.markdown(found.table, found.sections))
    tables.write_csv(found.table, study.out / "table.csv")
    figure.draw(found.table, picture)
    write_text(study.out / "report.html", page.render(found.table, found.sections, picture))
    return found


def print_report(found: Report, console: Console) -> None:
    """Prints the table, what stands below it, and where the report is."""
    table = found.table
    header, body, best = tables.cells(table)
    shown = Shown(title=table.study.name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        shown.add_column(name, justify="left" if name == "arm" else "right")
    for i, row in enumerate(body):
        shown.add_row(*row, style="bold" if i == best else None)
    console.print(shown, *tables.failures(table), sep="\n")
    for section in found.sections:
        console.print(section.heading, style="bold")
        for line in section.lines:
            console.print(f"  {line}", soft_wrap=True)
        console.print(f"  {section.note}", style="dim", soft_wrap=True)
    for note in tables.notes(table):
        console.print(note, style="dim")
    console.print(f"report: {table.study.out / 'report.html'}", soft_wrap=True)
