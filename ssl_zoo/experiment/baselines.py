"""What a run has to beat, and how fast it steps; for studies, which ask it once for many runs."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch

from ssl_zoo.config import Config
from ssl_zoo.engine.stop import StopSignal
from ssl_zoo.evaluation.base import Context, identity, result
from ssl_zoo.evaluation.monitor import offered, splits_of
from ssl_zoo.experiment.sections import build_trainer, parse, seeded
from ssl_zoo.experiment.subject import run_splits
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed
from ssl_zoo.system.rng import kept_random_state


def baselines_of(config: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """What each baseline of each evaluation of a resolved config depends on, as plain values.

    Reads no data. The untrained network's depends on the backbone's block and the seed as well.
    """
    sections = parse(Config(config)).arguments()
    network = {"backbone": sections["backbone"].spelled_out(), "seed": sections["seed"]}
    of: dict[str, dict[str, dict[str, Any]]] = {}
    for name, part in sections["evaluations"].items():
        splits = splits_of({name: part}, run_splits(sections))[name]
        images = {n: block.spelled_out(machine=False) for n, block in splits.blocks.items()}
        images["evaluation"] = part.replaced(part.target).spelled_out(machine=False)
        of[name] = {
            baseline: images | (network if module is None else {"network": baseline})
            for baseline, module in part().baselines(offered(splits)).items()
        }
    return of


def measure_baselines(
    config: dict[str, Any], name: str, wanted: list[str]
) -> dict[str, dict[str, Any]]:
    """Results of some baselines of one evaluation, by the baseline's name.

    Raises:
        ValueError: the data do not go with the evaluation.
    """
    sections = parse(Config(config)).arguments()
    device = distributed.start()
    part = sections["evaluations"][name]
    splits = splits_of({name: part}, run_splits(sections))[name]
    evaluation = part()
    evaluation.check(splits)
    results = {}
    for baseline, module in evaluation.baselines(offered(splits)).items():
        if baseline not in wanted:
            continue
        network = module or seeded(sections["seed"], sections["backbone"], device)
        context = Context(
            network.to(device),
            baseline,
            splits,
            device,
            "fp32",
            RunFolder(tempfile.mkdtemp(prefix="ssl_zoo-")),
            StopSignal(),
        )
        with kept_random_state(device):
            outcome = evaluation.evaluate(context)
        results[baseline] = result(part, evaluation, outcome, identity(part, splits, baseline))
        network.cpu()  # the arms, in processes of their own, need the GPU's memory
    return results


def seconds_per_step(config: dict[str, Any], threads: int, steps: int = 20) -> float:
    """The median time of a training step of a resolved config on this CPU, after a warm-up."""
    torch.set_num_threads(threads)
    config = {**config, "train": {**config["train"], "threads": threads}}
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(Config(config), torch.device("cpu"), RunFolder(folder), False)
        trainer.method.train()
        trainer.method.before_epoch(trainer.data.clean_share(trainer.device))
        times = []
        for batch in trainer.data.batches(0, min(steps, trainer.total_steps), trainer.device):
            began = time.perf_counter()
            trainer.train_step(batch)
            times.append(time.perf_counter() - began)
    late = sorted(times[len(times) // 3 :])
    return late[len(late) // 2]
