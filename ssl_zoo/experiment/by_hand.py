"""Evaluations by hand: what is asked for, and where results are kept for a later table.

They lie where `place_of` says, as NAME-HASH-FILE.json, and the rows as .csv. They have the file's
digest: they are not of another file that has its name by then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ssl_zoo import config as configs
from ssl_zoo.config import EVALUATIONS, Part, convert
from ssl_zoo.evaluation.base import Outcome
from ssl_zoo.evaluation.monitor import Monitored
from ssl_zoo.experiment.subject import Subject, place_of
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed
from ssl_zoo.system.files import sha256, write_text
from ssl_zoo.system.text import show


class Kept(NamedTuple):
    """A result that was kept.

    Attributes:
        result: see `evaluation.base.measure`, with the `step` of what was judged.
        rows: the file of its row for each test image; there may be none.
    """

    name: str
    result: dict[str, Any]
    rows: Path


def asked(
    subject: Subject, name: str, overrides: list[str], config: Path | None
) -> tuple[dict[str, Part], list[str]]:
    """The blocks of an evaluation, and names of those that had to be left out of `all`.

    Those learn beside a run, and this one had none of them.

    Args:
        name: as `Subject.parts` takes it.
        overrides: its keys, and 'data.key=value' of the images.
        config: by the images of which it is judged; None: the run's.
    """
    of_run = [text for text in overrides if text.startswith("data.")]
    if config and not subject.sections["evaluations"]:  # a file of weights has none
        subject.sections["evaluations"] = _evaluations(config)
    before = _colors(subject)
    parts = subject.parts(name, [text for text in overrides if text not in of_run])
    if config or of_run:
        subject.judge_by(config, of_run, parts)
    if config and before != (now := _colors(subject)) and distributed.is_main():
        show(f"normalized as {config} says: {now}; otherwise it would be: {before}")
    lacking = subject.lacking(parts)
    if config:  # they learned the run's classes
        lacking = [name for name, part in parts.items() if part.target.wants == "run"]
    if name != "all" or len(lacking) == len(parts):
        return parts, []
    return {n: part for n, part in parts.items() if n not in lacking}, lacking


def _evaluations(config: Path) -> dict[str, Part]:
    """Those of a config; {} of a file without any."""
    written = configs.load(config)
    with written.located():
        blocks = {n: of for n, of in (written.data.get("evaluations") or {}).items() if of}
        hint = Part[EVALUATIONS, Monitored]
        return {name: convert(hint, of, f"evaluations.{name}") for name, of in blocks.items()}


def _colors(subject: Subject) -> str:
    """How the clean view normalizes."""
    clean = subject.sections["data"].arguments()["clean"]
    ops = [op for op in (clean.arguments()["ops"] or {}).values() if op is not None]
    normal = [op.arguments() for op in ops if op.type == "Normalize"]
    return ", ".join(f"mean {of['mean']}, std {of['std']}" for of in normal) or "not at all"


def keep(subject: Subject, name: str, result: Mapping[str, Any], outcome: Outcome) -> None:
    """Beside what was judged, in place of an earlier one of the same. Not of random weights."""
    if subject.untrained:
        return
    folder = place_of(subject.path)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{result['hash']}-{subject.path.stem}.json"
    if outcome.rows is not None:
        write_text(file.with_suffix(".csv"), outcome.rows.csv())
    known = {"name": name, "file": subject.path.name, "step": subject.step}
    known |= {"sha256": subject.sha256, **result}
    write_text(file, json.dumps(known, indent=2) + "\n")


def results_of(path: Path) -> Iterator[Kept]:
    """Of a run's folder, what was measured in training and later, at whatever step; of a file what
    was measured of that. ValueError for a damaged file.
    """
    if path.is_dir():
        run = RunFolder(path)
        for file in sorted(run.path.glob("evaluations/*/result.json")):
            name = file.parent.name
            yield Kept(name, run.evaluation(name), run.rows_path(name))
        folder = run.path / "evaluations" / "by_hand"
    else:
        folder = place_of(path)
    files = sorted(folder.glob("*.json"))
    digest = None if path.is_dir() or not files else sha256(path)
    for file in files:
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            name, of = result.pop("name"), (result.pop("file"), result.pop("sha256", None))
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{file}: damaged, delete it; expected a kept result") from error
        if path.is_dir() or of == (path.name, digest):
            yield Kept(name, result, file.with_suffix(".csv"))
