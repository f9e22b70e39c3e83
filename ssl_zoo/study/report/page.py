"""The page: one HTML file that needs no other, from page.html."""

import base64
import shlex
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ssl_zoo import config
from ssl_zoo.study.report.results import Outcome, Table
from ssl_zoo.study.report.tables import cells, notes
from ssl_zoo.study.report.verdicts import Section
from ssl_zoo.system.text import visible

TEMPLATES = Environment(
    loader=PackageLoader("ssl_zoo.study.report", "."),
    autoescape=True,
    finalize=visible,
    undefined=StrictUndefined,
)


def render(table: Table, sections: list[Section], picture: Path) -> str:
    """The page as text; whatever a user has named is shown as it is."""
    study = table.study
    header, body, best = cells(table)
    blocks = {"all of them": study.common, **study.blocks}
    folder = study.runs[0].folder
    again = ["ssl-zoo", "train", str(study.runs[0].files.config_path), "--out", f"{folder}-again"]
    return TEMPLATES.get_template("page.html").render(
        study=study,
        outcomes=table.outcomes,
        picture=_base64(picture),
        header=header,
        body=body,
        best=best,
        sections=sections,
        notes=notes(table),
        blocks={name: config.dump(x).strip() if x else "nothing" for name, x in blocks.items()},
        own_bases=any("base" in block for block in study.blocks.values()),
        alone=shlex.join(again),
        pictures=_pictures(table),
        environment=_environment(table.outcomes),
    )


def _pictures(table: Table) -> list[tuple[str, str]]:
    """(what it shows, PNG in base64): what evaluations drew, of each point's first run."""
    found = []
    for outcome in (row.finished[0] for row in table.rows if row.finished):
        for name, result in outcome.evaluations.items():
            for picture in result.get("pictures", ()):
                path = outcome.run.files.picture_path(name, picture)
                if path.exists():  # folders are cleaned up
                    found.append((f"{outcome.run}: {name}", _base64(path)))
    return found


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _environment(outcomes: list[Outcome]) -> dict[str, list[str]]:
    """What the runs ran on; several values where the runs differ."""
    values: dict[str, dict[str, None]] = {}
    for outcome in outcomes:
        facts = {**outcome.environment, **outcome.environment.get("versions", {})}
        for name, value in facts.items():
            if name not in ("versions", "command", "started"):  # the last two are each run's own
                values.setdefault(name, {})[str(value)] = None
    return {name: list(texts) for name, texts in values.items()}
