"""A study's runs beside a kept study: do they lie where one more run was expected?"""

from __future__ import annotations

from ssl_zoo.config import differences
from ssl_zoo.study.grid import title
from ssl_zoo.study.report import verdicts
from ssl_zoo.study.report.kept import Kept, load, recipe
from ssl_zoo.study.report.results import Outcome, Table
from ssl_zoo.study.report.verdicts import Section
from ssl_zoo.study.verdict import of_one_more

ENOUGH = 3  # seeds for an interval; two say too little
IN, OUTSIDE = "in the prediction interval", "outside of the prediction interval"
MANY = 8  # runs; of more, those that lie where one more was expected are only counted


def beside(table: Table) -> Kept | None:
    """The kept study that the grid names; None where it names none, or there is no file yet."""
    path = table.study.kept
    return load(path) if path is not None and path.exists() else None


def comparable(table: Table) -> Kept | None:
    """The same, if all that the study asks for is what the kept one has done."""
    other = beside(table)
    return other if other and not _why_not(table, other) else None


def section(table: Table) -> Section | None:
    """In words; None for a grid that names no kept study."""
    heading = "Beside the kept study"
    if table.study.kept is None:
        return None
    other = beside(table)
    if other is None:
        return Section(heading, [f"there is none yet: {table.study.kept}"], "")
    data = other.data
    note = f"{table.study.kept}: {data['date']}, commit {data['commit']}; " + ", ".join(
        f"{name} {value}" for name, value in data["machine"].items() if value
    )
    again = sorted({o.run.seed for o in table.outcomes} & set(data["seeds"]))
    if again:  # so a run is not a new draw, of which alone the interval speaks
        seeds = f"seed{'s' * (len(again) > 1)} {', '.join(map(str, again))}"
        note += f"; it has {seeds} too, which here is the same run but for rounding"
    if why := _why_not(table, other):
        return Section(heading, [f"not compared: {reason}" for reason in why], note)
    lines = [_line(outcome, other) for outcome in table.outcomes if outcome.state == "finished"]
    if len(lines) > MANY:
        told = [line for line in lines if IN not in line]
        inside = f"{len(lines) - len(told)} of {len(lines)} runs lie {IN} of their point"
        lines = [f"{inside}; the others:" if told else inside, *told]
    return Section(heading, [*lines, *what_it_shows(other)], note)


def _why_not(table: Table, other: Kept) -> list[str]:
    """Each way in which numbers of the two would not be of one kind."""
    main, made = table.main, other.main
    if main is None or made is None or main.title != made.title:
        mains = [column.title if column else "nothing" for column in (main, made)]
        return ["the main evaluation is {}, and was {}".format(*mains)]
    found = []
    for row in table.rows:
        name = title(row.point)
        if row.point not in other.recipes:
            found.append(f"{name}: no such point in the kept study")
            continue
        changed = differences(other.recipes[row.point], recipe(row.outcomes[0].run))
        found += [f"{name}: {change}" for change in changed]
        made = [_made(of.finished, main.evaluation) for of in (other.at[row.point], row)]
        for what in made[0]:
            theirs, ours = (of[what] for of in made)
            if ours and theirs and ours != theirs:
                texts = (", ".join(sorted(map(str, some))) for some in (theirs, ours))
                found.append(f"{name}: {what} {' -> '.join(texts)}")
    return found


def _made(outcomes: list[Outcome], evaluation: str) -> dict[str, set]:
    """In which ways."""
    protocols = {outcome.evaluations[evaluation]["hash"] for outcome in outcomes}
    return {"protocol": protocols, "epochs": {outcome.result["epochs"] for outcome in outcomes}}


def _line(outcome: Outcome, other: Kept) -> str:
    run, main = outcome.run, other.main
    score, scores = outcome.score(main.evaluation), main.of(other.at[run.point])
    text = f"{run}: {score:.2f}"
    if len(scores) < ENOUGH:
        return f"{text}; of this point the kept study has too few finished runs: {len(scores)}"
    low, high = of_one_more(scores)
    where = IN if low <= score <= high else OUTSIDE
    return f"{text}, {where} of {len(scores)} seeds, {low:.2f} to {high:.2f}"


def what_it_shows(other: Table) -> list[str]:
    """Two sentences at the most, of its planned contrasts: what is shown, and what is not."""
    contrasts = verdicts.planned(other)
    shown = [c.sentence for c in contrasts if c.verdict == "better"]
    rest = [c.sentence for c in contrasts if c.verdict != "better"]
    others = "It does not show the rest" if shown else "The kept study shows none of its contrasts"
    told = {"The kept study shows": shown, others: rest}
    return [f"{words}: {'; '.join(sentences)}." for words, sentences in told.items() if sentences]
