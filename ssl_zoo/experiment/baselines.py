"""What a run has to beat, and how fast it steps; for studies, which ask it once for many runs."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ssl_zoo.config import Config, Part
from ssl_zoo.data import Splits
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.evaluation.monitor import baseline_network, baselines_for, splits_of
from ssl_zoo.experiment.sections import build_trainer, parse, seeded
from ssl_zoo.experiment.subject import Subject, run_splits
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed
from ssl_zoo.system.hardware import keep_freed_memory, kept_threads
from ssl_zoo.system.rng import kept_random_state


def baselines_of(config: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """What each baseline of each evaluation of a resolved config depends on, as plain values.

    Reads no data. The untrained network's depends on the backbone's block and the seed as well, and
    is the one that a run with `nudge_weights` has moved away from: arms keep one start in common.
    """
    sections = parse(Config(config), trained=True).arguments()  # initial weights may be gone
    network = {"backbone": sections["backbone"].spelled_out(), "seed": sections["seed"]}
    baselines: dict[str, dict[str, dict[str, Any]]] = {}
    for name in sections["evaluations"]:
        part, splits = _block(sections, name)
        shared = splits.declared()
        shared["evaluation"] = part.replaced(part.target).spelled_out(machine=False)
        baselines[name] = {
            baseline: shared | ({"network": baseline} if make else network)
            for baseline, make in baselines_for(part(), splits).items()
        }
    return baselines


def measure_baselines(
    config: dict[str, Any], name: str, wanted: list[str]
) -> dict[str, dict[str, Any]]:
    """Results of some baselines of one evaluation, by name, with as many threads as training has.

    Raises:
        ValueError: the data do not fit.
    """
    sections = parse(Config(config)).arguments()
    seed, device = sections["seed"], distributed.start()
    part, splits = _block(sections, name)
    results, threads = {}, config["train"]["threads"]
    with kept_random_state(device), kept_threads():
        if threads != "auto":
            torch.set_num_threads(threads)
        for baseline, make in baselines_for(part(), splits).items():
            if baseline in wanted:
                make = make or partial(seeded, seed, sections["backbone"], device)
                network = baseline_network(make, seed, device)
                subject = Subject(sections, {baseline: network}, untrained=True)
                ((_, results[baseline], _),) = subject.evaluate({name: part}, device)
                network.cpu()  # the arms, in processes of their own, need the GPU's memory
    return results


def images_of(config: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Which images an evaluation judges by now, as its results say it.

    None of a set in RAM, whose block says it: its baselines depend on that already.
    """
    part, splits = _block(parse(Config(config)).arguments(), name)
    in_ram = getattr(splits.blocks["dataset"].target, "in_ram", False)
    of_files = part.target.own_data or not in_ram
    return part().data_identity(splits) if of_files else None


def _block(sections: dict[str, Any], name: str) -> tuple[Part, Splits]:
    part = sections["evaluations"][name]
    return part, splits_of({name: part}, run_splits(sections))[name]


def seconds_per_step(config: dict[str, Any], threads: int, steps: int = 20) -> float:
    """The median time of a training step of a resolved config on this CPU, after a warm-up."""
    with _built(config, threads, torch.device("cpu")) as trainer:
        times = []
        for batch in trainer.data.batches(0, min(steps, trainer.total_steps), trainer.device):
            began = time.perf_counter()
            trainer.train_step(batch)
            times.append(time.perf_counter() - began)
    return _median_of_late(times)


def cost_of_step(
    config: dict[str, Any], threads: int, steps: int = 30, limit_s: float = 20.0
) -> tuple[float, int]:
    """What a training step costs on this machine, the making of its batch included.

    Returns:
        Its median seconds after a warm-up, and the peak memory in bytes, see `PeakMemory`. Of so
        many steps, or as many as fit into `limit_s`, at least three.
    """
    keep_freed_memory()
    with _built(config, threads, distributed.start()) as trainer:
        trainer.peak_memory.restart()
        times: list[float] = []
        began = time.perf_counter()
        for batch in trainer.data.batches(0, min(steps, trainer.total_steps), trainer.device):
            trainer.train_step(batch)
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
            began = time.perf_counter()
            if len(times) >= 3 and sum(times) > limit_s:
                break
        return _median_of_late(times), trainer.peak_memory.peak()


@contextmanager
def _built(config: dict[str, Any], threads: int, device: torch.device) -> Iterator[Trainer]:
    """A run that is ready for its first step."""
    torch.set_num_threads(threads)
    config = {**config, "train": {**config["train"], "threads": threads}}
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(Config(config), device, RunFolder(folder), False)
        trainer.method.train()
        trainer.begin_epoch()
        yield trainer


def _median_of_late(times: list[float]) -> float:
    late = sorted(times[len(times) // 3 :])
    return late[len(late) // 2]
