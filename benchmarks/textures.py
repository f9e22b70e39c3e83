"""What has to be beaten on `Textures`: pixels, colors alone and an untrained network, by kNN.

    ssl-zoo data get textures --packages ufoai openarena nexuiz
    python benchmarks/textures.py            # five minutes on one core

Through the evaluations of the framework, by the vote of 20 and by the nearest neighbor. Results are
kept in results/textures_baselines.json, and tools/results_blocks.py shows them in docs/data.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from common import ROOT, made_by, table, told

from ssl_zoo.data.datasets.textures import Textures
from ssl_zoo.evaluation.base import UNTRAINED
from ssl_zoo.evaluation.knn import Pixels
from ssl_zoo.evaluation.monitor import baseline_network
from ssl_zoo.experiment import load_subject
from ssl_zoo.system.files import write_json

COMMAND = "python benchmarks/textures.py"
CONFIG = ROOT / "configs" / "textures" / "moco_v1.yaml"
RESULTS = ROOT / "results" / "textures_baselines.json"
NETWORKS = {"raw pixels": Pixels, **Textures.baselines, UNTRAINED: None}
K = (20, 1)
IMAGES = {
    "all": ("ufoai and openarena", ""),
    "gray": ("the same, gray", "clean: {ops: {gray: {type: Grayscale}}}"),
    "unseen": ("nexuiz", "dataset: {type: Textures, packages: [nexuiz]}"),
    "small": ("openarena", "dataset: {type: Textures, packages: [openarena]}"),
}


def evaluations() -> list[str]:
    """A block for each set of images and each k, as words of a command line."""
    return [
        f"{name}_{k}={{type: KNN, k: {k}, data: {{{data}}}}}"
        for name, (_, data) in IMAGES.items()
        for k in K
    ]


def measure(device: torch.device) -> dict[str, dict]:
    """What each evaluation finds of each of NETWORKS, beside its protocol."""
    untrained = load_subject(CONFIG, device)
    parts = untrained.parts("all", evaluations())
    del parts["knn"]  # the config's own
    found: dict[str, dict] = {name: {} for name in parts}
    for network, make in NETWORKS.items():
        subject = untrained
        if make:
            backbone = baseline_network(make, untrained.sections["seed"], device)
            subject = replace(untrained, networks={network: backbone})
        for name, result, _ in subject.evaluate(parts, device):
            metrics = {metric: round(value, 2) for metric, value in result["metrics"].items()}
            found[name] |= {"protocol": result["protocol"], network: metrics}
            print(f"{name}, {network}: {metrics}", flush=True)
    return found


def render(results: dict) -> str:
    """Top-1 / top-5 of each network, a row for each set of images and each k."""
    found, rows = results["found"], []
    for name, (images, _) in IMAGES.items():
        for k in K:
            of = found[f"{name}_{k}"]
            cells = (f"{of[x]['top1']:.1f} / {of[x]['top5']:.1f}" for x in NETWORKS)
            rows.append((images, of["protocol"]["classes"], k, *cells))
    lines = table(rows, ("images", "classes", "k", *NETWORKS))
    return f"{lines}\n\n{told(results)}."


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    write_json(RESULTS, made_by(COMMAND) | {"found": measure(torch.device("cpu"))})


if __name__ == "__main__":
    main()
