"""The page: one HTML file that needs no other."""

from __future__ import annotations

import base64
import html
import shlex
from pathlib import Path
from typing import Any

from ssl_zoo import config
from ssl_zoo.study.grid import Run, Study
from ssl_zoo.study.report.results import Outcome, Table
from ssl_zoo.study.report.tables import cells, notes

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 70rem;
       margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 }
h2 { margin-top: 2.2rem; font-size: 1.15rem; border-bottom: 1px solid #ddd }
h3 { font-size: 1rem; margin-bottom: .3rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap }
td { border-bottom: 1px solid #eee }
th { border-bottom: 2px solid #999 }
th:first-child, td:first-child { text-align: left }
tr.best td { font-weight: 600; background: #eef6fc }
pre { background: #f6f6f6; padding: .7rem; white-space: pre-wrap }
img { width: 100% }
.scroll { overflow-x: auto }
.failed { color: #a03000 }
.quiet { color: #666 }
"""


def render(table: Table, picture: Path) -> str:
    """One file that needs no other."""
    study, outcomes = table.study, table.outcomes
    encoded = base64.b64encode(picture.read_bytes()).decode()
    header, body, best = cells(table)
    lines = [_tr("th", header)]
    lines += [_tr("td", row, "best" if i == best else "") for i, row in enumerate(body)]
    finished = sum(outcome.state == "finished" for outcome in outcomes)
    seeds = ", ".join(map(str, dict.fromkeys(run.seed for run in study.runs)))
    parts = [
        f"<h1>{_escape(study.name)}</h1>",
        f"<p class=quiet>{finished} of {len(outcomes)} runs finished; seeds {seeds}</p>",
        f'<img alt="the arms compared" src="data:image/png;base64,{encoded}">',
        f"<h2>Result</h2><div class=scroll><table>{''.join(lines)}</table></div>",
        "<ul>" + "".join(f"<li>{_escape(note)}</li>" for note in notes(table)) + "</ul>",
        _failures(outcomes),
        "<h2>What the arms set</h2>",
        *(
            f"<h3>{_escape(name)}</h3><pre>{_escape(_yaml(block))}</pre>"
            for name, block in {"all of them": study.common, **study.blocks}.items()
        ),
        f"<p>{_same(study)}</p>",
        "<h2>To run it again</h2>",
        f"<pre>{_escape(study.command)}</pre>",
        "<p>One run alone, from its resolved config:</p>",
        f"<pre>{_escape(_command(study.runs[0]))}</pre>",
        _environment(outcomes),
    ]
    title = f"<title>{_escape(study.name)}</title>"
    meta = f'<meta charset="utf-8">{title}<style>{STYLE}</style>'
    return (
        f'<!doctype html><html lang="en"><head>{meta}</head><body>{"".join(parts)}</body></html>\n'
    )


def _same(study: Study) -> str:
    text = (
        "All else is the same: with one seed the arms see the same images in the same order "
        "through the same views and start from the same weights."
    )
    bases = any("base" in block for block in study.blocks.values())
    return text.replace("the arms", "arms of one base") if bases else text


def _escape(text: object) -> str:
    return html.escape(str(text))


def _yaml(block: dict[str, Any]) -> str:
    return config.dump(block).strip() if block else "nothing"


def _tr(tag: str, row: list[str], kind: str = "") -> str:
    inner = "".join(f"<{tag}>{_escape(cell)}</{tag}>" for cell in row)
    return f'<tr class="{kind}">{inner}</tr>' if kind else f"<tr>{inner}</tr>"


def _command(run: Run) -> str:
    written = run.folder / "config.yaml"
    return shlex.join(["ssl-zoo", "train", str(written), "--out", f"{run.folder}-again"])


def _failures(outcomes: list[Outcome]) -> str:
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not failed:
        return ""
    items = (
        f"<h3>{_escape(o.run)}</h3><pre class=failed>{_escape(o.reason)}</pre>"
        f"<p class=quiet>{_escape(o.run.folder)}</p>"
        for o in failed
    )
    return "<h2>Failed runs</h2>" + "".join(items)


def _environment(outcomes: list[Outcome]) -> str:
    """What the runs ran on; several values where the runs differ."""
    values: dict[str, list[str]] = {}
    for outcome in outcomes:
        facts = {**outcome.environment, **outcome.environment.get("versions", {})}
        for name, value in facts.items():
            if name not in ("versions", "command", "started"):  # the last two are each run's own
                texts = values.setdefault(name, [])
                texts += [str(value)] if str(value) not in texts else []
    lines = "".join(_tr("td", [name, " | ".join(texts)]) for name, texts in values.items())
    return f"<h2>Environment</h2><div class=scroll><table>{lines}</table></div>" if values else ""
