"""Writes docs/reproduction.md: what papers claim, what was measured here, and the verdict.

    python tools/reproduction_page.py            # writes the page
    python tools/reproduction_page.py --check    # is the page what would be written?

Claims are in ledger/*.yaml, our numbers in results/*.json; deviations and verdicts are computed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also without installing

import claims
import kept_results
from claims import Claim, Entry, Held, Table
from kept_results import as_table

from ssl_zoo.config import ConfigError
from ssl_zoo.study.report.tables import spread

ROOT = kept_results.ROOT
PAGE = ROOT / "docs" / "reproduction.md"

ABOVE = """\
# Reproduction

What papers claim, what was measured here, and how far the two are apart. This page is written by
`python tools/reproduction_page.py` from `ledger/*.yaml` (the claims) and `results/*.json` (our
studies); no deviation and no verdict is typed where something was run.

**How to read it.** Most of these numbers are of ImageNet and days of eight GPUs; our studies are of
two CPU cores and small images. So absolute numbers are compared only where data and protocol are
the same. Elsewhere the claim itself is tested, usually an order: the same comparison at our size,
over seeds that both arms share. `theirs` has the letter of where a number was read: **P** the
paper's text, **C** the authors' code or README, **T** a third party, **M** remembered and not
looked up, so that no number is compared with it. `ours` has mean ± standard deviation over seeds,
then the paired difference with its 95% interval and p: of the sign-flip test, by Holm over the
study's planned contrasts, and marked *exploratory* where a comparison was not planned. `deviation`
is ours less theirs, in the same unit and in standard errors over seeds; between different data sets
it compares sizes of an effect, and no more. A p says that an order is no accident of seeds on these
data, and nothing of other data.

| verdict | of an order, "A is better" | of a level, "A is as good as B", or of a number |
|---|---|---|
| shown | p below 0.05 | the 95% interval lies within the margin: 1 point, of a ratio 5% |
| contradicted | p below 0.05, the other way round | the interval lies outside the margin |
| not shown | the interval lies within the margin: no difference that matters | |
| cannot tell at this size | neither | neither |

Where nothing was run the verdict is *not run*, or *cannot tell at this size* where our sizes could
not tell, with the reason. Commands for ImageNet are for one GPU; on 8 of them add
`backbone.bn_groups=1`.
A study becomes a result by `ssl-zoo ablate GRID --report-only --keep results/NAME.json`."""

HEADER = ("claim", "theirs", "ours", "deviation", "verdict")
UNITS = {"%": "points"}  # of a difference


def render(entries: list[Entry]) -> str:
    parts = [ABOVE, summary(entries)]
    for entry in entries:
        paper = entry.paper
        known_as = f"arXiv:{paper.arxiv}" if paper.arxiv else paper.url.partition("//")[2]
        parts.append(f"## {paper.title}\n\n[{known_as}]({paper.url})")
        for name, table in paper.tables.items():
            parts.append(section(name, table, entry.held[name]))
    return "\n\n".join(parts) + "\n"


def summary(entries: list[Entry]) -> str:
    """How many claims of each paper have which verdict."""
    verdicts = [claims.SHOWN, claims.CONTRADICTED, claims.NOT_SHOWN]
    verdicts += [claims.CANNOT_TELL, claims.NOT_RUN]
    rows = []
    for entry in entries:
        held = [each for table in entry.held.values() for each in table.values()]
        counts = Counter(each.verdict for each in held)
        link = f"[{entry.paper.title}](#{anchor(entry.paper.title)})"
        rows.append([link, str(len(held)), *(str(counts[v] or "") for v in verdicts)])
    return as_table(("", "claims", *verdicts), rows)


def section(name: str, table: Table, held: dict[str, Held]) -> str:
    """A table of claims; below it where our numbers come from, the commands, and the reasons."""
    rows = [
        [f"*{claim}*: {of.claim.says}", theirs(of.claim), ours(of), deviation(of), of.verdict]
        for claim, of in held.items()
    ]
    parts = [f"### {name}", f"Theirs: {table.protocol}", as_table(HEADER, rows)]
    notes = [*origins(held.values()), *commands(table, held.values()), *reasons(table, held)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])


def theirs(claim: Claim) -> str:
    numbers = [f"{label}: {number}" for label, number in claim.theirs.items()]
    return f"{', '.join(numbers) or 'in words'} ({claim.source})"


def ours(held: Held) -> str:
    if held.claim.ours is None:
        return "not run"
    if not held.measured:
        return claims.NOT_RUN
    claim, compared = held.claim, held.comparison
    scores = [spread(list(side.values()), digits(side.values())) for side in held.scores]
    seeds = f"{compared.seeds} {'seed' if compared.seeds == 1 else 'seeds'}"
    if len(scores) == 1:
        if not claim.ours.highest:
            return f"{scores[0]}, {seeds}"
        (end,) = held.at_the_end
        end = spread(list(end.values()), digits(end.values()))
        return f"highest {scores[0]}, at the end {end}, {seeds}"
    sides = " against ".join(f"{n} {s}" for n, s in zip(claim.ours.sides, scores, strict=True))
    planned = "" if compared.contrasts else ", exploratory"
    return f"{held.column.evaluation}: {sides}; {interval(held)}, {seeds}{planned}"


def interval(held: Held) -> str:
    """'+1.8 points (+0.9 to +2.7), p 0.03'; of a ratio '0.68 times (0.66 to 0.70), p 0.03'."""
    compared, ratio = held.comparison, held.claim.ours.ratio
    values = [compared.mean, *compared.interval]
    if ratio:
        mean, low, high = (f"{math.exp(value):.2f}" for value in values)
        mean += " times"
    else:
        mean, low, high = (f"{value:+.1f}" for value in values)
        mean += f" {unit_of(held)}"
    return f"{mean} ({low} to {high}), p {compared.p:.2g}" if compared.seeds > 1 else mean


def deviation(held: Held) -> str:
    """Of a ratio, how many times theirs."""
    found = held.deviation if held.claim.ours else None
    if found is None:
        return "–"
    apart, errors = found
    if held.claim.ours.ratio:
        text = f"{math.exp(apart):.2f} times theirs"
    else:
        text = f"{apart:+.1f} {unit_of(held)}"
    return text if errors is None else f"{text}, {errors:+.1f} SE"


def unit_of(held: Held) -> str:
    return UNITS.get(held.column.unit, held.column.unit)


def digits(values: Iterable[float]) -> int:
    """One decimal of what has two figures before it, more of less."""
    size = abs(fmean(values))
    return 0 if size >= 1000 else 1 if size >= 10 else 2


def origins(held: Iterable[Held]) -> list[str]:
    """Of each kept study in the table: command, date, machine, how it was judged."""
    notes = {}
    for each in held:
        if each.claim.ours is None:
            continue
        file = each.claim.ours.file
        if each.kept is None:
            notes[file] = f"Ours, `results/{file}`: not run yet. `{each.command}`."
            continue
        of = each.kept.data["evaluations"]
        how = "; ".join(f"{name}: {e['protocol']}" for name, e in of.items() if e.get("protocol"))
        notes[file] = (
            f"Ours, [results/{file}](../results/{file}): {kept_results.origin(each.kept)}. {how}."
        )
    return list(notes.values())


def commands(table: Table, held: Iterable[Held]) -> list[str]:
    """What makes their numbers."""
    of_claims = [each.claim.command for each in held if each.claim.command]
    found = dict.fromkeys(filter(None, [table.command, *of_claims]))
    if not found:
        return []
    return [f"To make their numbers: {', '.join(f'`{command}`' for command in found)}."]


def reasons(table: Table, held: dict[str, Held]) -> list[str]:
    notes = [table.reason] if table.reason else []
    of_claims = ((name, each.claim.reason) for name, each in held.items())
    return notes + [f"*{name}*: {reason}" for name, reason in of_claims if reason]


def anchor(title: str) -> str:
    """GitHub's, of a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page is old")
    arguments = parser.parse_args(argv)
    try:
        page = render(claims.read())
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not arguments.check:
        PAGE.write_text(page, encoding="utf-8")
        print(PAGE.relative_to(ROOT))
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    print("docs/reproduction.md is not what would be written: python tools/reproduction_page.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
