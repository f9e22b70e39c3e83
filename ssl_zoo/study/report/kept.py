"""A study boiled down to one small file, from which tables, figures and verdicts can be made anew.

The file holds what the study's folders said, rounded to what matters, and the recipe: what all runs
have in common once, and for each point what it sets. `load` gives it back as a `Table`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ssl_zoo import experiment
from ssl_zoo.config import Config, ConfigError
from ssl_zoo.study.classes import Hits
from ssl_zoo.study.costs import Cost
from ssl_zoo.study.grid import Contrast, Point, Run, Study
from ssl_zoo.study.report import results
from ssl_zoo.study.report.results import Baseline, Column, Outcome, Row, Table
from ssl_zoo.system.files import write_json

FORMAT = 1
DIGITS = {"images_per_s": 0, "seconds": 1, "peak_memory_gb": 3, "pretext_top1": 3, "loss": 4}
WATCHED = ("own_older_keys", "same_label_negatives", "key_age", "key_cosine")  # by observers


@dataclass(frozen=True)
class Kept(Table):
    """The table of a kept study; its runs have no folders.

    Attributes:
        data: the file as it stands.
        recipes: by point, what `recipe` says of its runs.
    """

    data: dict[str, Any]
    recipes: dict[Point, dict[str, Any]]

    def hits(self, row: Row, column: Column, seeds: Container[int]) -> Hits | None:
        """Of the main evaluation and all seeds that the row has; else it is not known."""
        is_main = self.main is not None and column.title == self.main.title
        for of in self.data["classes"] if is_main else ():
            if (of["arm"], of["x"]) == row.point and all(s in seeds for s in of["seeds"]):
                right = np.array(of["right"], dtype=float)
                return Hits(np.broadcast_to(of["images"], right.shape), right)
        return None


def recipe(run: Run) -> dict[str, Any]:
    """The config of what a run computes, whatever its seed and wherever it runs."""
    whole = experiment.parse(Config(run.config), trained=True).spelled_out(machine=False)
    del whole["seed"]
    return json.loads(json.dumps(whole))  # as a file has it: no tuples


def _leaves(block: dict[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """By path. Names may hold dots, as those of schedules do."""
    found: dict[tuple[str, ...], Any] = {}
    for name, value in block.items():
        inner = isinstance(value, dict) and value
        found |= _leaves(value, (*above, name)) if inner else {(*above, name): value}
    return found


def _nested(leaves: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for (*above, last), value in leaves.items():
        block = whole
        for name in above:
            block = block.setdefault(name, {})
        block[last] = value
    return whole


def keep(study: Study) -> dict[str, Any]:
    """What a kept study's file holds, from the study's folders.

    A run that is not finished is recorded with its state and without scores.

    Raises:
        ConfigError: a folder holds a run of another config than the grid's.
    """
    for run in study.runs:
        _check_config(run)
    table = results.read(study)
    points = {row.point: _leaves(recipe(row.outcomes[0].run)) for row in table.rows}
    first, *others = points.values()
    common = {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
    own = {p: {k: v for k, v in r.items() if k not in common} for p, r in points.items()}
    environments = [outcome.environment for outcome in table.outcomes if outcome.environment]
    return {
        "format": FORMAT,
        "name": study.name,
        "command": _anywhere(study.command),
        "commit": _all(environment.get("git_commit") for environment in environments),
        "date": max((e["started"][:10] for e in environments if "started" in e), default=None),
        "machine": _machine(table.outcomes),
        "x": study.x,
        "seeds": sorted({run.seed for run in study.runs}),
        "contrasts": [str(contrast) for contrast in study.contrasts],
        "twins": {twin: list(of) for twin, of in study.twins.items()},
        "main": table.main.evaluation if table.main else None,
        "evaluations": {column.evaluation: _evaluation(column, table) for column in table.columns},
        "config": _nested(common),
        "points": [{"arm": arm, "x": x, "set": _nested(own[arm, x])} for arm, x in points],
        "baselines": list(chain.from_iterable(_baselines(c, table) for c in table.columns)),
        "costs": [asdict(cost) for cost in table.costs],
        "runs": [_run(outcome, table) for outcome in table.outcomes],
        "classes": [found for row in table.rows if (found := _classes(row, table))],
    }


def write(study: Study, path: Path) -> None:
    write_json(path, keep(study))


def _check_config(run: Run) -> None:
    written = run.files.config() if run.trained else None
    changed = experiment.changes(written, run.config) if written is not None else []
    if changed:
        problem = f"a study is kept as its grid says, and the folder holds another run: {run}"
        expected = "the same config as the grid's"
        where = str(run.folder)
        raise ConfigError("", problem, found="; ".join(changed), expected=expected, where=where)


def _anywhere(command: str) -> str:
    """Without the folder, which is of the machine."""
    words = shlex.split(command)
    if "--out" in words:
        at = words.index("--out")
        del words[at : at + 2]
    return shlex.join(words)


def _all(values: Iterable[Any]) -> str | None:
    """The value; several separated by commas, where runs differ."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or None


def _machine(outcomes: list[Outcome]) -> dict[str, str | None]:
    """What the runs ran on, in words: cpu (or cuda), cores, versions, precision, threads."""
    environments = [outcome.environment for outcome in outcomes if outcome.environment]
    devices = dict.fromkeys(e["device"] for e in environments if "device" in e)
    machine = {}
    for device in devices:
        kind, _, name = device.partition(": ")
        kind = kind.partition(":")[0]
        machine[kind] = _all(filter(None, [machine.get(kind), name]))
    machine["cores"] = _all(environment.get("cores") for environment in environments)
    for package in ("python", "torch", "timm", "faiss-cpu"):
        machine[package] = _all(e.get("versions", {}).get(package) for e in environments)
    for name in ("precision", "threads"):
        machine[name] = _all(outcome.result.get(name) for outcome in outcomes)
    return machine


def _evaluation(column: Column, table: Table) -> dict[str, Any]:
    first = next(iter(_made(column.evaluation, table.outcomes)), {})
    return {
        "metric": column.metric,
        "unit": column.unit,
        "higher_is_better": column.higher_is_better,
        "protocol": results.describe(first) if first else None,
        "hash": first.get("hash"),
    }


def _made(evaluation: str, outcomes: list[Outcome]) -> list[results.Result]:
    return [o.evaluations[evaluation] for o in outcomes if evaluation in o.evaluations]


def _baselines(column: Column, table: Table) -> Iterable[dict[str, Any]]:
    """One for all arms where they share it, else one for each point."""
    for baseline in column.baselines:
        of = {"evaluation": column.evaluation, "name": baseline.name}
        if baseline.shared:
            groups: list[tuple[dict, list[Outcome]]] = [({}, table.outcomes)]
        else:
            groups = [({"arm": row.arm, "x": row.x}, row.outcomes) for row in table.rows]
        for where, outcomes in groups:
            if found := results.distinct(outcomes, column.evaluation, baseline.name):
                scores = {"scores": [round(results.score(result), 5) for result in found]}
                if baseline.seeded:
                    scores["seeds"] = [result["depends_on"]["seed"] for result in found]
                yield {**of, **where, **scores, "protocol": baseline.protocol}


def _run(outcome: Outcome, table: Table) -> dict[str, Any]:
    run = outcome.run
    kept: dict[str, Any] = {"arm": run.arm, "x": run.x, "seed": run.seed, "state": outcome.state}
    scores = {column.evaluation: outcome.score(column.evaluation) for column in table.columns}
    kept["scores"] = {name: round(score, 5) for name, score in scores.items() if score is not None}
    for column in table.columns:
        of, usual = outcome.evaluations.get(column.evaluation), _evaluation(column, table)
        if of and of["hash"] != usual["hash"]:
            other = {"protocol": results.describe(of), "hash": of["hash"]}
            kept.setdefault("made_otherwise", {})[column.evaluation] = other
    if table.main:
        kept["curve"] = [[round(e, 4), round(v, 3)] for e, v in outcome.curve(table.main)]
    for name in ("epochs", "steps", *DIGITS):
        if (value := outcome.result.get(name)) is not None:
            kept[name] = round(value, DIGITS[name]) if name in DIGITS else value
    lines = [line for line in run.files.metrics() if line["kind"] == "train"]
    for name in WATCHED:  # what the second half of training saw, since a memory fills up first
        if seen := [line[name] for line in lines[len(lines) // 2 :] if name in line]:
            kept[name] = round(fmean(seen), 4)
    return kept


def _classes(row: Row, table: Table) -> dict[str, Any] | None:
    """Of the main evaluation, how many images of each class were named right, over all seeds."""
    seeds = [outcome.run.seed for outcome in row.finished]
    hits = table.hits(row, table.main, seeds) if seeds and table.main else None
    if hits is None:
        return None
    images, right = (list(map(int, counts)) for counts in hits)
    of = {"arm": row.arm, "x": row.x, "seeds": seeds}
    return {**of, "images": images[0] if len(set(images)) == 1 else images, "right": right}


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError("", f"not JSON: {error}", where=str(path)) from error


def load(path: str | Path) -> Kept:
    """A kept study as a table.

    Raises:
        ConfigError: the file is none, or of another form.
    """
    path = Path(path)
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        shown = f"the keys {', '.join(data)}" if isinstance(data, dict) else type(data).__name__
        found = f"format {data['format']!r}" if "format" in data else shown
        expected = f"format {FORMAT}, of `ssl-zoo ablate GRID --keep`"
        raise ConfigError("", "no kept study", found=found, expected=expected, where=str(path))
    points = [(point["arm"], point["x"]) for point in data["points"]]
    common = _leaves(data["config"])
    configs = [_nested(common | _leaves(point["set"])) for point in data["points"]]
    recipes = dict(zip(points, configs, strict=True))
    runs = [
        Run(r["arm"], r["x"], r["seed"], Path(), {"seed": r["seed"], **recipes[r["arm"], r["x"]]})
        for r in data["runs"]
    ]
    study = Study(
        name=data["name"],
        out=path.parent,
        x=data["x"],
        runs=runs,
        blocks={arm: {} for arm, _ in points},
        contrasts=[Contrast.read(text, points, baselines=None) for text in data["contrasts"]],
        twins={twin: tuple(of) for twin, of in data["twins"].items()},
        command=data["command"],
    )
    outcomes = [_outcome(run, of, data) for run, of in zip(runs, data["runs"], strict=True)]
    columns = {name: _column(name, data) for name in data["evaluations"]}
    groups = {p: [o for o in outcomes if o.run.point == p] for p in points}
    main = columns.get(data["main"])
    rows = results.rows_of(groups, main.evaluation if main else "", study)
    costs = [Cost(**cost) for cost in data["costs"]]
    return Kept(study, rows, list(columns.values()), main, costs, data, recipes)


def _outcome(run: Run, kept: dict[str, Any], data: dict[str, Any]) -> Outcome:
    evaluations = {}
    for name, score in kept["scores"].items():
        of = data["evaluations"][name] | kept.get("made_otherwise", {}).get(name, {})
        result = {"metrics": {of["metric"]: score}, "main": of["metric"], "unit": of["unit"]}
        evaluations[name] = result | {"protocol": of["protocol"], "hash": of["hash"]}
    main = data["main"]
    lines = [
        {"name": main, "epoch": epoch, data["evaluations"][main]["metric"]: value}
        for epoch, value in kept.get("curve", ())
    ]
    result = {**kept, "evaluations": evaluations} if kept["state"] == "finished" else {}
    environment = {"git_commit": data["commit"], **data["machine"]}
    return Outcome(run, kept["state"], result, lines, environment, _starts(run, data), "")


def _starts(run: Run, data: dict[str, Any]) -> dict[str, dict[str, results.Result | None]]:
    """The run's own baselines, by evaluation and name."""
    starts: dict[str, dict[str, results.Result | None]] = {}
    for of in data["baselines"]:
        if (of.get("arm", run.arm), of.get("x", run.x)) != run.point:
            continue
        # A number that depends on no seed is every seed's.
        by_seed = dict(zip(of.get("seeds", [run.seed]), of["scores"], strict=True))
        if run.seed in by_seed:
            metric = data["evaluations"][of["evaluation"]]["metric"]
            depends_on = {name: of.get(name) for name in ("arm", "x")}
            depends_on["seed"] = run.seed if "seeds" in of else None
            result = {"metrics": {metric: by_seed[run.seed]}, "main": metric}
            result |= {"protocol": of["protocol"], "depends_on": depends_on}
            starts.setdefault(of["evaluation"], {})[of["name"]] = result
    return starts


def _column(name: str, data: dict[str, Any]) -> Column:
    of = data["evaluations"][name]
    baselines: dict[str, Baseline] = {}
    for b in data["baselines"]:
        if b["evaluation"] == name:
            scores = [
                *(baselines[b["name"]].scores if b["name"] in baselines else ()),
                *b["scores"],
            ]
            shared, seeded = "arm" not in b, "seeds" in b
            baselines[b["name"]] = Baseline(b["name"], shared, seeded, scores, b["protocol"])
    how = (of["metric"], of["unit"], of["higher_is_better"])
    return Column(name, *how, tuple(baselines.values()))
