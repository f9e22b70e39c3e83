"""Whether verdicts keep what they promise: level, coverage and power; and studies of nothing.

python benchmarks/verdicts.py                  # 10,000 simulated studies of each kind, 1 core
python benchmarks/verdicts.py --aa FOLDER      # 200 real studies of two arms that are the same

The first writes results/verdicts.json, the second results/verdicts_aa.json once all studies are
there. FOLDER holds a line for each run; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from common import ROOT, add_run, finished_runs, made_by, table
from scipy import stats

from ssl_zoo import config, experiment
from ssl_zoo.runs import RunFolder
from ssl_zoo.study.verdict import (
    EXACT,
    LEVEL,
    POWER,
    ROUNDING,
    half_width,
    holm,
    seeds_needed,
    sign_flip_p,
    smallest_p,
)
from ssl_zoo.system.files import write_json

SEED, STUDIES, CONTRASTS = 0, 10_000, 3
SEEDS = (8, 12)
EFFECTS = (2.0, 1.5, 1.0)  # true differences, in standard deviations of paired differences

# Arms' scores over seeds, of standard deviation 1. A difference of two arms that are alike is
# symmetric, which is all that the sign-flip test asks for.
ARMS: dict[str, Callable[..., np.ndarray]] = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "skewed (exponential)": lambda rng, size: rng.exponential(size=size) - 1,
    "heavy-tailed (t, 3 degrees of freedom)": lambda rng, size: rng.standard_t(3, size) / 3**0.5,
}
SKEWED_DIFFERENCES = "skewed differences (exponential)"  # where the test's assumption is wrong


def differences(kind: str, rng: np.random.Generator, studies: int, seeds: int) -> np.ndarray:
    """[studies, contrasts, seeds] of standard deviation 1 and mean 0.

    The contrasts are of one arm with three others, as in a grid.
    """
    if kind == SKEWED_DIFFERENCES:
        return rng.exponential(size=(studies, CONTRASTS, seeds)) - 1
    scores = ARMS[kind](rng, (studies, 1 + CONTRASTS, seeds))
    return (scores[:, :1] - scores[:, 1:]) / 2**0.5


def fast_p(values: np.ndarray) -> np.ndarray:
    """`sign_flip_p` of [..., S] for many studies at once, S at most 16: all flips as one matrix.

    Flips come in pairs of opposite sign, so half of them are enough. The first studies are checked
    against the library.
    """
    flat = values.reshape(-1, values.shape[-1])
    signs = np.array(list(itertools.product([1.0], *[[1.0, -1.0]] * (flat.shape[1] - 1))))
    p = np.empty(len(flat))
    chunk = max(1, 2**22 // len(signs))
    for start in range(0, len(flat), chunk):
        part = flat[start : start + chunk]
        least = abs(part.sum(1)) - ROUNDING * abs(part).max(1)
        p[start : start + chunk] = (abs(part @ signs.T) >= least[:, None]).mean(1)
    assert np.allclose(p[:5], sign_flip_p(flat[:5]), atol=1e-12)
    return p.reshape(values.shape[:-1])


def percent(hits: np.ndarray) -> float:
    return round(100 * float(np.mean(hits)), 2)


def of_nothing(kind: str, seeds: int, studies: int) -> dict:
    """Level and coverage where no arm is better than another."""
    values = differences(kind, np.random.default_rng([SEED, 1, seeds]), studies, seeds)
    p = fast_p(values)
    covered = abs(values.mean(-1)) <= half_width(values)
    return {
        "kind": kind,
        "seeds": seeds,
        "one_contrast_%": percent(p[:, 0] < LEVEL),
        "any_of_3_by_holm_%": percent((holm(p) < LEVEL).any(1)),
        "interval_covers_%": percent(covered[:, 0]),
    }


def found(values: np.ndarray, contrasts: int) -> np.ndarray:
    """[studies] bool: whether the first contrast is settled; of three, two are of nothing."""
    p = fast_p(values[:, :contrasts])
    return (holm(p)[:, 0] < LEVEL) & (values[:, 0].mean(-1) > 0)


def of_something(kind: str, effect: float, contrasts: int, studies: int) -> dict:
    """Power with as many seeds as `seeds_needed` says, the standard deviation known."""
    seeds = seeds_needed(1.0, effect, contrasts)
    rng = np.random.default_rng([SEED, 2, seeds])
    values = differences(kind, rng, studies, seeds)
    values[:, 0] += effect
    of = {"kind": kind, "difference_in_sd": effect, "contrasts": contrasts, "seeds": seeds}
    return of | {"promised_%": 100 * POWER, "found_%": percent(found(values, contrasts))}


def after_a_pilot(kind: str, effect: float, studies: int, pilot: int = 8) -> dict:
    """The same for one contrast of which 8 seeds have said how many more there should be.

    Studies that should have more than 16 seeds in all stop there, to stay with exact tests.
    """
    values = differences(kind, np.random.default_rng([SEED, 3]), studies, EXACT)[:, :1]
    values += effect
    needed = cache(lambda std: seeds_needed(std, effect))
    std = values[:, 0, :pilot].std(-1, ddof=1)
    seeds = np.array([max(pilot, needed(round(float(s), 2))) for s in std])
    settled = np.zeros(studies, dtype=bool)
    for count in np.unique(np.minimum(seeds, EXACT)):
        those = np.minimum(seeds, EXACT) == count
        settled[those] = found(values[those, :, :count], 1)
    return {
        "kind": kind,
        "difference_in_sd": effect,
        "pilot": pilot,
        "median_seeds": float(np.median(seeds)),
        "stopped_at_16_%": percent(seeds > EXACT),
        "promised_%": 100 * POWER,
        "found_%": percent(settled),
    }


def simulate(out: Path, studies: int) -> None:
    began = time.perf_counter()
    kinds = list(ARMS)
    nothing = [of_nothing(k, s, studies) for k in (*kinds, SKEWED_DIFFERENCES) for s in SEEDS]
    something = [
        of_something(k, e, c, studies) for k in kinds for e in EFFECTS for c in (1, CONTRASTS)
    ]
    pilots = [after_a_pilot(k, e, studies) for k in kinds for e in EFFECTS]
    for title, rows in (
        ("no difference, in % of studies", nothing),
        ("a true difference, the standard deviation known", something),
        ("a true difference, seeds as 8 of them have said", pilots),
    ):
        print("", title, "", table([list(row.values()) for row in rows], list(rows[0])), sep="\n")
    parts = {"nothing": nothing, "something": something, "pilots": pilots}
    made = made_by("python benchmarks/verdicts.py")
    write_json(out, {**made, "studies": studies, "seed": SEED, **parts})
    print(f"\n{time.perf_counter() - began:.0f} s; {out}")


# ---------------------------------------------------------------- real studies of nothing

AA_STUDIES, AA_PAIRS = 200, 6  # five pairs could not show p below 0.05
DIGITS = ROOT / "configs" / "digits" / "moco_v2.yaml"
TINY = [
    "backbone.options={layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}",
    "backbone.bn_groups=1",
    "method.memory.size=512",
    "data.batch_size=64",
    "train={epochs: 1, threads: 1, precision: fp32}",
    "evaluations={knn: {type: KNN, k: 20, every_epochs: null}}",
    "checkpoint.every_epochs=1",
    "data.workers=0",
    "observers={}",
]


def tiny_run(seed: int) -> float:
    """kNN top-1 in % after one epoch on digits, half a second of one core."""
    with tempfile.TemporaryDirectory() as path, contextlib.redirect_stdout(io.StringIO()):
        cfg = config.load(DIGITS, [*TINY, f"seed={seed}"])
        folder = RunFolder(path)
        experiment.build_trainer(cfg, torch.device("cpu"), folder, baselines=False).fit()
        return folder.result()["evaluations"]["knn"]["metrics"]["top1"]


def aa(folder: Path, out: Path, studies: int) -> None:
    """Runs what is lacking, pair by pair, no seed twice; then the table of what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "runs.jsonl"
    done = {line["seed"]: line["top1"] for line in finished_runs(path)}
    lacking = [seed for seed in range(2 * AA_PAIRS * studies) if seed not in done]
    began = time.perf_counter()
    for count, seed in enumerate(lacking, 1):
        done[seed] = tiny_run(seed)
        add_run(path, {"seed": seed, "top1": done[seed]})
        if count % 20 == 0:
            each = (time.perf_counter() - began) / count
            left = each * (len(lacking) - count) / 60
            print(f"{count} of {len(lacking)} runs, {each:.2f} s each, {left:.0f} minutes left")
    scores = np.array([done[seed] for seed in range(2 * AA_PAIRS * studies)])
    values = scores.reshape(studies, AA_PAIRS, 2)
    values = values[..., 0] - values[..., 1]
    p = sign_flip_p(values)
    positive = int((p < LEVEL).sum())
    # What a test of level 0.05 at most exceeds in one of forty benchmarks.
    most = int(stats.binom.ppf(0.975, studies, LEVEL))
    covered = int((abs(values.mean(1)) <= half_width(values)).sum())
    result = {
        "studies": studies,
        "pairs": AA_PAIRS,
        "smallest_p": smallest_p(AA_PAIRS),
        "false_positives": positive,
        "at_most_by_chance": most,
        "intervals_that_cover_0": covered,
        "mean_top1": round(float(scores.mean()), 2),
        "sd_of_top1": round(float(scores.std(ddof=1)), 2),
        "differences_of_0": int((values == 0).sum()),
        "p": [round(float(x), 5) for x in np.sort(p)],
    }
    shown = {name: value for name, value in result.items() if name != "p"}
    print("", table(list(shown.items()), ("of studies of nothing", "")), sep="\n")
    if studies == AA_STUDIES:
        write_json(out, made_by("python benchmarks/verdicts.py --aa FOLDER") | result)
        print(f"\n{out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--aa", type=Path, metavar="FOLDER", help="real studies of nothing instead")
    number = f"of each kind [{STUDIES}; with --aa {AA_STUDIES}, and fewer write no result]"
    parser.add_argument("--studies", type=int, help=number)
    parser.add_argument("--out", type=Path, help="result file [results/verdicts.json, ..._aa.json]")
    given = parser.parse_args()
    if given.aa:
        out = given.out or ROOT / "results" / "verdicts_aa.json"
        aa(given.aa, out, given.studies or AA_STUDIES)
    else:
        simulate(given.out or ROOT / "results" / "verdicts.json", given.studies or STUDIES)


if __name__ == "__main__":
    main()
