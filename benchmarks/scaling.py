"""What a step of MoCo costs over the queue's size, over the batch, and over processes, on a CPU.

python benchmarks/scaling.py --out results/speed_scaling.json
python benchmarks/scaling.py --short

queue      the parts of a step of MoCo v2 (ResNet-18, 3x3 stem, 32x32): the network's passes, the
           optimizer, and all that a queue of K keys adds, each timed alone; whole steps beside
           their sum
batch      images/s and peak memory of whole steps over the batch
losses     InfoNCE, NCE and Margin against the same keys
end-to-end InfoNCE where the batch is the dictionary and keys take gradients
world      a small network on 1, 2 and 4 processes with gloo and one thread each, the same global
           batch, and what gathering, shuffling and the gradients' all-reduce cost by themselves

Images are noise that lies ready; contenders take turns; medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import Measured, Table, interleaved, seconds
from parts import TEMPERATURE, Held, end_to_end_pass, loss_pass, moco_trainer, noise, queue_pass
from torch.nn import functional as F

from ssl_zoo.engine.precision import autocast
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.losses import NCE, InfoNCE, Margin
from ssl_zoo.system import distributed
from ssl_zoo.system.hardware import PeakMemory, cores, keep_freed_memory

CPU = torch.device("cpu")
PAPER_K = 65536
SMALL = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}  # a ResNet-10 of half the width


@dataclass
class Plan:
    """How much is measured.

    Args:
        batch: of the queue's and the losses' rows.
        queues: K.
        whole: those K for which whole steps are timed too.
        dictionaries: batches of the end-to-end rows.
        rounds: after one that warms up.
    """

    batch: int = 256
    side: int = 32
    options: dict[str, Any] = field(default_factory=dict)
    queues: list[int] = field(default_factory=lambda: [4**n for n in range(5, 11)])
    whole: list[int] = field(default_factory=lambda: [1024, PAPER_K, 2**20])
    batches: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    dictionaries: list[int] = field(default_factory=lambda: [2**n for n in range(8, 14)])
    worlds: list[int] = field(default_factory=lambda: [1, 2, 4])
    world_batch: int = 128
    rounds: int = 3

    @property
    def backbone(self) -> dict[str, Any]:
        return {"name": "resnet18", "small_images": True, "options": self.options}


SHORT = Plan(
    whole=[PAPER_K],
    batches=[32, 128, 256],
    dictionaries=[256, 1024, 4096],
    worlds=[1, 2],
    rounds=2,
)
TOY = Plan(
    batch=8,
    side=8,
    options={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
    queues=[64, 256],
    whole=[64],
    batches=[4, 8],
    dictionaries=[8, 16],
    worlds=[1, 2],
    world_batch=8,
    rounds=1,
)
Times = dict[str, float]  # medians, s


def medians(figures: dict[str, list[float]]) -> Times:
    return {name: statistics.median(values) for name, values in figures.items()}


def timed(function: Callable[[], object]) -> Callable[[], float]:
    return lambda: seconds(function)


# The queue.


def network_parts(trainer: Trainer, batch: int, side: int) -> dict[str, Callable[[], None]]:
    """The step of `trainer` without its queue, in pieces that must run in this order."""
    method = trainer.method
    images = noise(batch, 3, side, CPU)
    views, index = images.views, images.index
    towards = F.normalize(torch.randn(batch, method.encoder.out_features), dim=1)  # [N, D]

    def keys() -> None:
        with autocast(CPU, trainer.precision):
            method.memory.encode(method.encoder, views[1], index)

    def queries() -> None:
        with autocast(CPU, trainer.precision):
            q = F.normalize(method.encoder(views[0]).float(), dim=1)  # [N, D]
        (q * towards).sum(dim=1).mean().backward()

    def moves() -> None:
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        method.memory.key_encoder.follow(method.encoder, method.memory.momentum)

    return {
        "keys forward": keys,
        "queries forward and backward": queries,
        "SGD and moving average": moves,
    }


def with_queue(trainer: Trainer, size: int) -> Callable[[], None]:
    """Gives the trainer's memory another size, keeping its key encoder."""
    queue = trainer.method.memory.queue
    buffers = {
        "keys": F.normalize(torch.randn(size, queue.keys.shape[1]), dim=1),
        "index": torch.full((size,), -1),
        "step": torch.zeros(size, dtype=torch.int64),
        "pushed": torch.zeros((), dtype=torch.int64),
    }

    def put() -> None:
        for name, value in buffers.items():
            setattr(queue, name, value)

    return put


def whole_step(trainer: Trainer, batch: int, side: int, queue: int) -> Callable[[], float]:
    put, images = with_queue(trainer, queue), noise(batch, 3, side, CPU)

    def measure() -> float:
        put()
        return seconds(lambda: trainer.train_step(images))

    return measure


def measure_queue(plan: Plan, trainer: Trainer) -> tuple[Times, dict[int, float], dict[int, float]]:
    """Medians in seconds: of the network's parts, of the queue's by K, of whole steps by K."""
    parts = network_parts(trainer, plan.batch, plan.side)
    queues = {str(k): queue_pass(k, plan.batch, CPU) for k in plan.queues}
    contenders = {name: timed(run) for name, run in (parts | queues).items()}
    alone = medians(interleaved(contenders, plan.rounds))
    steps = {str(k): whole_step(trainer, plan.batch, plan.side, k) for k in plan.whole}
    whole = medians(interleaved(steps, plan.rounds))
    return (
        {name: alone[name] for name in parts},
        {k: alone[str(k)] for k in plan.queues},
        {k: whole[str(k)] for k in plan.whole},
    )


def share(queue: float, network: Times) -> float:
    """The queue's part of a step that is the sum of its parts."""
    return queue / (queue + sum(network.values()))


def queue_table(
    plan: Plan,
    precision: str,
    network: Times,
    queue: dict[int, float],
    whole: dict[int, float],
) -> Table:
    rest = sum(network.values())
    rows = [[k, 1e3 * t, share(t, network), rest + t, whole.get(k)] for k, t in queue.items()]
    columns = {"K": "", "queue, ms": ".1f", "of the step": ".1%"}
    columns |= {"sum of the parts, s": ".3f", "whole step, s": ".3f"}
    pieces = ", ".join(f"{name} {t:.3f} s" for name, t in network.items())
    about = f"Batch {plan.batch}, {precision}. Apart from the queue: {pieces}."
    return Table("What a queue of K keys costs", columns, rows, about, f"{plan.rounds} rounds")


# The batch.


def measure_batches(plan: Plan, trainer: Trainer) -> dict[int, tuple[float, float]]:
    """Images/s and peak GB by batch.

    What malloc keeps of a smaller batch counts in a larger one's peak, which needs more anyway: so
    the peaks are taken on the way up, the first time round.
    """
    memory = PeakMemory(CPU)
    images = {n: noise(n, 3, plan.side, CPU) for n in plan.batches}
    peaks = {}
    for n in sorted(plan.batches):
        memory.bytes = 0
        memory.restart()
        trainer.train_step(images[n])
        peaks[n] = memory.peak() / 1e9
    contenders = {
        str(n): timed(lambda batch=batch: trainer.train_step(batch)) for n, batch in images.items()
    }
    times = medians(interleaved(contenders, plan.rounds, warmup=0))
    return {n: (n / times[str(n)], peaks[n]) for n in plan.batches}


def batch_table(
    plan: Plan, precision: str, batches: dict[int, tuple[float, float]], queue: int
) -> Table:
    columns = {"batch": "", "images/s": ".1f", "peak GB": ".2f"}
    rows = [[n, *found] for n, found in batches.items()]
    about = f"Whole steps, {precision}, K {queue}. Peak of the whole process, torch included."
    return Table("The batch", columns, rows, about, f"{plan.rounds} rounds")


# Losses.


def losses_table(plan: Plan, keys: int, network: Times) -> Table:
    """Each loss alone, and its part of a step that has the network's passes besides."""
    losses = {
        "InfoNCE": InfoNCE(temperature=TEMPERATURE),
        "NCE": NCE(50_000),
        "Margin": Margin(margin=0.4),
    }
    runs = {name: timed(loss_pass(loss, keys, plan.batch, CPU)) for name, loss in losses.items()}
    times = medians(interleaved(runs, plan.rounds))
    columns = {"loss": "", "ms": ".1f", "of the step": ".1%"}
    rows = [[name, 1e3 * t, share(t, network)] for name, t in times.items()]
    about = f"{plan.batch} queries against {keys} keys, forward and backward."
    return Table("Losses", columns, rows, about, f"{plan.rounds} rounds")


def end_to_end_table(plan: Plan) -> Table:
    runs = {str(n): timed(end_to_end_pass(n, CPU)) for n in plan.dictionaries}
    times = medians(interleaved(runs, plan.rounds))
    columns = {"batch = dictionary": "", "InfoNCE, ms": ".1f", "us an image": ".1f"}
    rows = [[n, 1e3 * times[str(n)], 1e6 * times[str(n)] / n] for n in plan.dictionaries]
    about = "The loss alone, gradients to queries and keys, forward and backward."
    return Table("End-to-end", columns, rows, about, f"{plan.rounds} rounds")


# Processes.


def rank_measure(backbone: dict[str, Any], global_batch: int, side: int, queue: int) -> Callable:
    """On one rank: a function of a number of steps that gives seconds for each part of a step."""
    keep_freed_memory()
    local = global_batch // distributed.world()
    torch.manual_seed(0)
    trainer = moco_trainer(backbone, CPU, global_batch, queue=queue)
    batch = noise(local, backbone["in_chans"], side, CPU, seed=distributed.rank())
    keys = F.normalize(torch.randn(local, trainer.method.encoder.out_features), dim=1)
    gradients = torch.zeros(sum(p.numel() for p in trainer.method.encoder.parameters()))

    def unshuffled() -> None:
        trainer.method.memory.shuffle_bn = False
        trainer.train_step(batch)
        trainer.method.memory.shuffle_bn = True

    def alone() -> None:
        # The ranks' weights part ways, which costs nothing.
        model, trainer.parallel.model = trainer.parallel.model, trainer.method
        trainer.train_step(batch)
        trainer.parallel.model = model

    def all_reduce() -> None:
        if distributed.world() > 1:
            dist.all_reduce(gradients)

    parts = {
        "step": lambda: trainer.train_step(batch),
        "without ShuffleBN": unshuffled,
        "without DDP": alone,
        "images": lambda: distributed.gather(batch.views[1]),
        # Once to undo the shuffle, once to be enqueued, with their positions.
        "keys": lambda: [distributed.gather(x) for x in (keys, keys, batch.index)],
        "gradients": all_reduce,
    }

    def measure(steps: int) -> Times:
        times: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(steps):
            for name, run in parts.items():
                distributed.barrier()
                times[name].append(seconds(run))
        return medians(times)

    return measure


def measure_worlds(plan: Plan) -> dict[int, Times]:
    """Medians in seconds of each part, by world size."""
    toy = plan.options  # as small here as elsewhere
    backbone = {"name": "resnet18", "in_chans": 1, "options": toy or SMALL}
    side = 28 if not toy else plan.side
    arguments = (backbone, plan.world_batch, side, min(4096, max(plan.queues)))
    held: dict[int, Held] = {}
    said: dict[int, list[Times]] = {world: [] for world in plan.worlds}
    try:
        for world in plan.worlds:
            held[world] = Held(rank_measure, *arguments, world=world)
        for number in range(plan.rounds + 1):
            for world, group in held.items():
                times = group(5)
                if number > 0:
                    said[world].append(times)
    finally:
        for group in held.values():
            group.close()
    return {
        world: medians({name: [times[name] for times in rounds] for name in rounds[0]})
        for world, rounds in said.items()
    }


def world_table(plan: Plan, worlds: dict[int, Times]) -> Table:
    alone = ("images", "keys", "gradients")
    rows = []
    for world, times in worlds.items():
        whole = [1e3 * times[name] for name in ("step", "without ShuffleBN", "without DDP")]
        speed = plan.world_batch / times["step"]
        rows.append([world, speed, *whole, *(1e3 * times[name] for name in alone)])
    columns = {"processes": "", "images/s": ".0f", "step, ms": ".1f"}
    columns |= {"without ShuffleBN": ".1f", "without DDP": ".1f"}
    columns |= {"gather images": ".2f", "gather keys": ".2f", "all-reduce gradients": ".2f"}
    over = [str(world) for world in worlds if world > cores()]
    crowd = f" {' and '.join(over)} processes share {cores()} cores." if over else ""
    about = (
        f"Global batch {plan.world_batch}, one thread a process, gloo; all in ms.{crowd} The step "
        "again with keys in their own order, and with gradients that stay on their rank; then the "
        "messages of a step by themselves, which in it wait for the slowest rank and share the "
        "cores with the backward pass."
    )
    return Table("Processes", columns, rows, about, f"{plan.rounds} rounds of 5 steps")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="under a minute")
    parser.add_argument("--toy", action="store_true", help="tests that the script runs; no figures")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--out", type=Path, help="a result file, JSON")
    arguments = parser.parse_args(argv)
    plan = TOY if arguments.toy else SHORT if arguments.short else Plan()
    measured = Measured("scaling.py", sys.argv[1:] if argv is None else argv)

    torch.manual_seed(0)
    worlds = measure_worlds(plan)  # first: its processes and this one's memory never meet
    keep_freed_memory()
    keys = min(PAPER_K, max(plan.queues))
    trainer = moco_trainer(
        plan.backbone, CPU, plan.batch, queue=keys, precision=arguments.precision
    )
    batches = measure_batches(plan, trainer)
    network, *of_queue = measure_queue(plan, trainer)
    measured.add("queue", queue_table(plan, trainer.precision, network, *of_queue))
    measured.add("batch", batch_table(plan, trainer.precision, batches, keys))
    measured.add("losses", losses_table(plan, keys, network))
    measured.add("end-to-end", end_to_end_table(plan))
    measured.add("processes", world_table(plan, worlds))
    measured.finish(arguments.out)


if __name__ == "__main__":
    main()
