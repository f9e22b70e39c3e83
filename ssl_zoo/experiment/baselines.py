"""What a run has to beat, and how fast it steps; for studies, which ask it once for many runs."""

import tempfile
import time
from functools import partial
from typing import Any

import torch

from ssl_zoo.config import Config, Part
from ssl_zoo.data import Splits
from ssl_zoo.evaluation.monitor import baseline_network, baselines_for, splits_of
from ssl_zoo.experiment.sections import build_trainer, parse, seeded
from ssl_zoo.experiment.subject import Subject, run_splits
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed
from ssl_zoo.system.rng import kept_random_state


def baselines_of(config: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """What each baseline of each evaluation of a resolved config depends on, as plain values.

    Reads no data. The untrained network's depends on the backbone's block and the seed as well, and
    is the one that a run with `nudge_weights` has moved away from: arms keep one start in common.
    """
    sections = parse(Config(config)).arguments()
    network = {"backbone": sections["backbone"].spelled_out(), "seed": sections["seed"]}
    baselines: dict[str, dict[str, dict[str, Any]]] = {}
    for name in sections["evaluations"]:
        part, splits = _block(sections, name)
        shared = {n: block.spelled_out(machine=False) for n, block in splits.blocks.items()}
        shared["evaluation"] = part.replaced(part.target).spelled_out(machine=False)
        baselines[name] = {
            baseline: shared | ({"network": baseline} if make else network)
            for baseline, make in baselines_for(part(), splits).items()
        }
    return baselines


def measure_baselines(
    config: dict[str, Any], name: str, wanted: list[str]
) -> dict[str, dict[str, Any]]:
    """Results of some baselines of one evaluation, by name; ValueError if the data do not fit."""
    sections = parse(Config(config)).arguments()
    seed, device = sections["seed"], distributed.start()
    part, splits = _block(sections, name)
    results = {}
    with kept_random_state(device):
        for baseline, make in baselines_for(part(), splits).items():
            if baseline in wanted:
                make = make or partial(seeded, seed, sections["backbone"], device)
                network = baseline_network(make, seed, device)
                subject = Subject(sections, network, baseline)
                ((_, results[baseline], _),) = subject.evaluate({name: part}, device)
                network.cpu()  # the arms, in processes of their own, need the GPU's memory
    return results


def _block(sections: dict[str, Any], name: str) -> tuple[Part, Splits]:
    part = sections["evaluations"][name]
    return part, splits_of({name: part}, run_splits(sections))[name]


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
