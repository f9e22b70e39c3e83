"""Whole runs of one recipe by ours and by others' code: is the representation as good?

    python benchmarks/equality.py run --out runs/equality --jobs 2
    python benchmarks/equality.py report runs/equality --keep results/equality.json

MoCo v1 on textures (configs/textures/moco_v1.yaml, 6 epochs) by ours, by the paper's Algorithm 1
written out, and by lightly's parts; SimCLR and BYOL (2 epochs) by ours and by lightly's. Runs of
one seed share weights, images and views (equality_workers.py), and are judged by our kNN. They are
judged over seeds: two one-sided tests at 5%, that is, whether the 90% interval of the paired
difference in kNN top-1 lies within one point. That the steps are the same is shown beside it by
short runs in double precision, whose losses are compared one by one.

`run` adds a line to runs.jsonl for each finished run and leaves out those that are there: killed
at any time, the same command goes on. A run takes one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import ROOT, add_run, finished_runs, table, told
from equality_workers import CONTENDERS, FIRST, OURS, RECIPES, Task
from scipy import stats

from ssl_zoo.system.files import write_json

EPOCHS = {"moco": 6.0, "simclr": 2.0, "byol": 2.0}
MARGIN = 1.0  # points
SHORT = 0.04  # epochs in double precision, of seed 0
# Their losses say nothing of the code: lightly's ShuffleBN draws orders of its own.
NOT_STEP_BY_STEP = {("moco", "lightly")}


# Running.


def missing(
    done: list[dict[str, Any]], methods: Sequence[str], seeds: Sequence[int], epochs: float | None
) -> list[Task]:
    """What is still to run, seed after seed, so that a broken-off benchmark has whole pairs.

    Raises:
        ValueError: a finished run of one of these methods had another length.
    """
    there = {(line["method"], line["by"], line["seed"], line["double"]) for line in done}
    wanted = {method: epochs or EPOCHS[method] for method in methods}
    for line in done:
        found, expected = line["epochs"], wanted.get(line["method"])
        if not line["double"] and expected not in (None, found):
            problem = f"runs of {line['method']} of {found:g} epochs, expected {expected:g}"
            raise ValueError(f"runs.jsonl has {problem}; give another --out, or --epochs {found:g}")
    pairs = [(method, by) for method in methods for by in CONTENDERS[method]]
    tasks = [Task(*p, 0, SHORT, double=True) for p in pairs if p not in NOT_STEP_BY_STEP]
    tasks += [
        Task(method, by, seed, wanted[method])
        for method in methods
        for seed in seeds
        for by in CONTENDERS[method]
    ]
    return [t for t in tasks if (t.method, t.by, t.seed, t.double) not in there]


def trained(task: Task) -> dict[str, Any]:
    """The line of a run, from a process of its own; RuntimeError with the end of its log."""
    one_thread = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(ROOT / "benchmarks/equality_workers.py")]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, json.dumps(asdict(task))],
            env=os.environ | one_thread,
            stdin=subprocess.PIPE,  # held open: the process ends when this one does
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with process:
            answer = process.stdout.read()
            process.wait()
        if process.returncode:
            log.seek(0)
            tail = "\n".join(log.read().strip().splitlines()[-15:])
            raise RuntimeError(f"{task}: exit code {process.returncode}\n{tail}")
    return json.loads(answer)


def run(
    folder: Path, methods: Sequence[str], seeds: Sequence[int], epochs: float | None, jobs: int
) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    tasks = missing(finished_runs(folder / "runs.jsonl"), methods, seeds, epochs)
    print(f"{len(tasks)} runs to go", flush=True)
    failed = False
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = [pool.submit(trained, task) for task in tasks]
        for number, future in enumerate(as_completed(futures), start=1):
            try:
                line = future.result()
            except RuntimeError as error:
                print(error, file=sys.stderr, flush=True)
                failed = True
                continue
            add_run(folder / "runs.jsonl", line)
            what = f"{line['method']} by {line['by']}, seed {line['seed']}"
            found = f"kNN {line['knn']:.2f}" if "knn" in line else "in double precision"
            took = f"{line['seconds'] / 60:.1f} min"
            print(f"{number}/{len(tasks)}  {what}: {found}, {took}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # a Ctrl-C starts nothing new
    return int(failed)


# Reporting.


class Equivalence(NamedTuple):
    """The mean of paired differences, its 90% t interval, and p of two one-sided tests."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def shown(self) -> bool:
        return self.p < 0.05


def equivalence(differences: Sequence[float], margin: float) -> Equivalence:
    """Whether a mean difference lies within +-margin; ValueError for fewer than two differences."""
    if len(differences) < 2:
        raise ValueError(f"an interval takes two seeds or more, found {len(differences)}")
    if np.ptp(differences) == 0:  # bitwise equal runs: scipy would give nan
        same = float(differences[0])
        return Equivalence(same, same, same, float(abs(same) >= margin))
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(0.90)
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    return Equivalence(*map(float, (np.mean(differences), low, high, max(above, below))))


def compared(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method and each other code, over the seeds that both have finished.

    Raises:
        ValueError: lines that are not of one length, or not judged alike.
    """
    rows = []
    for method, contenders in CONTENDERS.items():
        of_method = [x for x in lines if x["method"] == method and not x["double"]]
        for key in ("epochs", "steps", "evaluation"):
            found = sorted({line[key] for line in of_method})
            if len(found) > 1:
                raise ValueError(f"runs.jsonl: {method} has runs of more than one {key}: {found}")
        by = {name: {r["seed"]: r for r in of_method if r["by"] == name} for name in contenders}
        for other in contenders:
            seeds = sorted(by[OURS].keys() & by[other].keys())
            if other == OURS or not seeds:
                continue
            pairs = [(by[OURS][seed], by[other][seed]) for seed in seeds]
            row = {
                "method": method,
                "against": other,
                "epochs": pairs[0][0]["epochs"],
                "steps": pairs[0][0]["steps"],
                "seeds": seeds,
                "ours": [round(a["knn"], 3) for a, _ in pairs],
                "theirs": [round(b["knn"], 3) for _, b in pairs],
                "losses": {
                    "first": largest_gap(pairs, 1),
                    "fp32": largest_gap(pairs, FIRST),
                    **in_double(lines, method, other),
                },
            }
            if len(seeds) > 1:
                found = equivalence([a["knn"] - b["knn"] for a, b in pairs], MARGIN)
                row |= {key: rounded(x, 3) for key, x in found._asdict().items()}
                row["within"] = found.shown
            rows.append(row)
    return rows


def largest_gap(pairs: Sequence[tuple[dict, dict]], steps: int) -> float:
    """Between the losses of two lines in the first steps, over all pairs."""
    gaps = [np.abs(np.subtract(a["losses"][:steps], b["losses"][:steps])) for a, b in pairs]
    return rounded(max(float(gap.max()) for gap in gaps))


def in_double(lines: list[dict[str, Any]], method: str, other: str) -> dict[str, Any]:
    """How far the losses in double precision are apart, and over how many steps; {} without."""
    short = {x["by"]: x for x in lines if x["method"] == method and x["double"]}
    if not {OURS, other} <= short.keys():
        return {}
    pair = short[OURS], short[other]
    return {"double": largest_gap([pair], FIRST), "double_steps": pair[0]["steps"]}


def rounded(x: float, digits: int = 2) -> float:
    return float(f"{x:.{digits}g}")


def boiled_down(lines: list[dict[str, Any]], command: str) -> dict[str, Any]:
    """What is kept of runs.jsonl, plain values."""
    said = {key: ", ".join(sorted({x[key] for x in lines})) for key in ("commit", "machine")}
    dates = sorted({x["date"] for x in lines})
    return {
        "name": "equality",
        "command": command,
        "commit": said["commit"],
        "date": " to ".join(dict.fromkeys([dates[0], dates[-1]])),
        "machine": f"{said['machine']}, fp32, one thread a run",
        "protocol": {
            "config": "configs/textures/moco_v1.yaml",
            "set": RECIPES,
            "evaluation": next(x["protocol"] for x in lines if "protocol" in x),
            "margin": MARGIN,
            "interval": 0.9,
        },
        "rows": compared(lines),
    }


def markdown(kept: dict[str, Any]) -> str:
    """The table of a kept file, and the line below it."""
    header = ["method", "ours against", "seeds", "ours", "theirs", "difference", "90% interval"]
    header += ["within one point", "losses of the first steps differ at most by"]
    rows = []
    for row in kept["rows"]:
        means = [f"{np.mean(row[side]):.2f}" for side in ("ours", "theirs")]
        difference = np.mean(np.subtract(row["ours"], row["theirs"]))
        verdict = ["", "two seeds or more are needed"]
        if "within" in row:
            said = "yes" if row["within"] else "not shown"
            verdict = [f"{row['low']:+.2f} to {row['high']:+.2f}", f"{said}, p {row['p']:.2g}"]
        losses = row["losses"]
        gaps = f"{losses['first']:.0e} in the first, {losses['fp32']:.2f} in {FIRST}"
        if "double" in losses:
            gaps += f"; in double precision {losses['double']:.0e} in {losses['double_steps']}"
        what = f"{row['method']}, {row['epochs']:g} epochs"
        cells = [what, row["against"], len(row["seeds"]), *means, f"{difference:+.2f}"]
        rows.append([*cells, *verdict, gaps])
    return f"{table(rows, header)}\n\n{told(kept)}\n"


def report(folder: Path, keep: Path | None) -> None:
    lines = finished_runs(folder / "runs.jsonl")
    if all(line["double"] for line in lines):
        raise ValueError(f"{folder}: no finished run of whole length in runs.jsonl")
    kept = boiled_down(lines, f"python benchmarks/equality.py run --out {folder}")
    print(markdown(kept))
    if keep is not None:
        write_json(keep, kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    running = commands.add_parser("run")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    running.add_argument("--seeds", nargs="+", type=int, default=list(range(8)))
    running.add_argument("--epochs", type=float, help=f"of each run {EPOCHS}")
    running.add_argument("--jobs", type=int, default=1, help="runs side by side [1]")
    reporting = commands.add_parser("report")
    reporting.add_argument("folder", type=Path)
    reporting.add_argument("--keep", type=Path, help="a file for the table, JSON")
    given = parser.parse_args()
    try:
        if given.command == "run":
            return run(given.out, given.only, given.seeds, given.epochs, given.jobs)
        report(given.folder, given.keep)
    except ValueError as error:
        print(f"equality.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
