"""What a reader of weights has to know, in Markdown, beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssl_zoo.config import dump
from ssl_zoo.experiment.by_hand import results_of
from ssl_zoo.weights.file import Header

if TYPE_CHECKING:
    from ssl_zoo.experiment.subject import Subject


def markdown(header: Header, subject: Subject | None, to: str, lines: list[str]) -> str:
    """A card of an export: where the weights come from, what they are worth, how they are loaded.

    Args:
        subject: the run that they come from; None of imported weights, of which only the header
            is known.
        lines: of Python, that load them.
    """
    name = header.backbone["name"]
    said = [f"# {name}, for {to}", ""]
    said += [f"- {what}: {value}" for what, value in _facts(header, subject)]
    said += ["", "## Loading it", "", "```python", *lines, "```", ""]
    said += ["Images as its evaluations saw them:", ""]
    said += ["```yaml", dump({"clean": header.clean}).strip(), "```", ""]
    if subject is not None:
        said += ["## What it is worth", "", *_figures(subject), ""]
        said += ["## Recipe", "", "```yaml", _recipe(subject), "```", ""]
    return "\n".join(said)


def _facts(header: Header, subject: Subject | None) -> Iterator[tuple[str, str]]:
    for what, value in header.source.items():
        yield what, f"`{value}`"
    yield "backbone", f"`{json.dumps(header.backbone)}`"
    if subject is not None:
        sections = subject.sections
        yield "method", f"`{sections['method'].type}`"
        yield "data", f"`{sections['data'].arguments()['dataset'].type}`"
        environment = subject.folder.environment() if subject.folder else {}
        yield "commit of ssl_zoo", f"`{environment.get('git_commit') or 'unknown'}`"
    yield "license", "of the code MIT; of the weights what their author and the data allow"


def _figures(subject: Subject) -> list[str]:
    found = results_of(subject.folder.path) if subject.folder else ()
    rows = [
        f"| {name} | {of['network']} | {metric} | {value:.2f}{of['unit']} | {of['hash']} |"
        for name, of, _ in found
        if of["step"] == subject.step
        for metric, value in of["metrics"].items()
    ]
    if not rows:
        return [f"Nothing is kept of an evaluation after step {subject.step}."]
    return ["| evaluation | network | metric | value | protocol |", "|---|---|---|---|---|", *rows]


def _recipe(subject: Subject) -> str:
    config = subject.folder.config() if subject.folder else None
    return dump(config).strip() if config else "# the run's folder is not there"
