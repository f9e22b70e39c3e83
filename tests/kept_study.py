"""A small kept study, as `ssl-zoo ablate GRID --keep` would write it."""

from __future__ import annotations

import json
from pathlib import Path

from ssl_zoo.study.report import kept

PROTOCOL = "KNN: k 20; temperature 0.07 (hash 1a2b)"
KNN = {"metric": "top1", "unit": "%", "higher_is_better": True}
PIXELS = {"evaluation": "knn", "name": "raw pixels", "scores": [20.0], "protocol": "KNN"}


def run(arm, x, seed, knn, **more):
    """knn at the end; the epoch before it had 0.5 more."""
    curve = [[1.0, knn + 0.5], [2.0, knn]]
    costs = {"pretext_top1": 50.0, "images_per_s": 800.0, "peak_memory_gb": 1.0, "seconds": 100.0}
    run = {"arm": arm, "x": x, "seed": seed, "state": "finished", "scores": {"knn": knn}}
    return run | {"curve": curve, "epochs": 2.0, "steps": 600, **costs, **more}


def study(name, runs, contrasts=(), **more):
    return {
        "format": kept.FORMAT,
        "name": name,
        "command": f"ssl-zoo ablate configs/ablation/{name}.yaml",
        "commit": "0123456789",
        "date": "2026-11-28",
        "machine": {"cpu": "a <fake>", "cores": "2", "torch": "2.15.0", "precision": "bf16"},
        "x": "K",
        "seeds": sorted({run["seed"] for run in runs}),
        "contrasts": list(contrasts),
        "twins": {},
        "main": "knn",
        "evaluations": {"knn": {**KNN, "protocol": PROTOCOL, "hash": "1a2b"}},
        "config": {"optimizer.lr": 0.1},
        "baselines": [PIXELS],
        "costs": [],
        "runs": runs,
        "classes": [],
        **more,
    }


def fig3(seeds=8):
    """MoCo grows with K and beats the bank; end-to-end is level with its large dictionary.

    Seeds differ by two points and arms by less: it is pairing that shows the order.
    """
    runs = []
    for seed in range(seeds):
        base, noise = 60 + 2 * seed, 0.1 * (-1) ** seed
        runs += [
            run("MoCo", "32", seed, base),
            run("MoCo", "4096", seed, base + 3 + noise, seconds=80.0 + seed % 2),
            run("memory bank", "4096", seed, base + 1),
            run("end-to-end", "31", seed, base + 3, peak_memory_gb=1.5),
        ]
    contrasts = ["MoCo, 4096 > MoCo, 32", "MoCo, 4096 > memory bank, 4096"]
    return study("fig3", runs, [*contrasts, "MoCo, 4096 > end-to-end, 31"])


def write(folder: Path, data) -> Path:
    """Of the points that have runs."""
    points = dict.fromkeys((run["arm"], run["x"]) for run in data["runs"])
    path = folder / f"{data['name']}.json"
    points = [{"arm": arm, "x": x, "set": {}} for arm, x in points]
    path.write_text(json.dumps(data | {"points": points}))
    return path
