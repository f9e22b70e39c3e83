"""What a step of MoCo costs over the queue's size, over the batch, and over processes, on a CPU.

python benchmarks/scaling.py [--short] [--out FILE] [--figure FILE]

queue      the parts of a step of MoCo v2 (ResNet-18, 3x3 stem, 32x32): the network's passes, the
           optimizer, and all that a queue of K keys adds, each timed alone; whole steps beside
           their sum
batch      images/s and peak memory of whole steps over the batch
losses     NCE over K; InfoNCE end-to-end, where the batch is the dictionary and keys take gradients
world      a small network on 1, 2 and 4 processes with gloo and one thread each, the same global
           batch, and what gathering, shuffling and the gradients' all-reduce cost by themselves

Images are noise that lies ready; contenders take turns; medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import interleaved, provenance, seconds, table
from parts import Held, end_to_end_pass, loss_pass, moco_trainer, noise, queue_pass
from torch.nn import functional as F

from ssl_zoo.engine.precision import autocast
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.losses import NCE
from ssl_zoo.system import distributed
from ssl_zoo.system.hardware import PeakMemory, keep_freed_memory

CPU = torch.device("cpu")
PAPER_K = 65536
LIMIT = 0.05  # of a step, for a queue of PAPER_K keys
SMALL = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}  # a ResNet-10 of half the width


@dataclass
class Plan:
    """How much is measured.

    Args:
        batch: of the queue's and NCE's rows.
        queues: K.
        whole: those K for which whole steps are timed too.
        dictionaries: batches of the end-to-end rows.
        rounds: of the cheap parts; of whole steps, and of the batches, half as many.
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
    rounds: int = 6

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


def half(rounds: int) -> int:
    return max(1, rounds // 2)


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
    whole = medians(interleaved(steps, half(plan.rounds)))
    return (
        {name: alone[name] for name in parts},
        {k: alone[str(k)] for k in plan.queues},
        {k: whole[str(k)] for k in plan.whole},
    )


def share(queue: float, network: Times) -> float:
    """The queue's part of a step that is the sum of its parts."""
    return queue / (queue + sum(network.values()))


def queue_text(plan: Plan, network: Times, queue: dict[int, float], whole: dict[int, float]) -> str:
    rest = sum(network.values())
    rows = []
    for k, t in queue.items():
        step = f"{whole[k]:.3f}" if k in whole else ""
        rows.append([k, f"{1e3 * t:.1f}", f"{share(t, network):.1%}", f"{rest + t:.3f}", step])
    header = ["K", "queue, ms", "of the step", "sum of the parts, s", "whole step, s"]
    pieces = ", ".join(f"{name} {t:.3f} s" for name, t in network.items())
    lines = [f"Batch {plan.batch}, {plan.side}x{plan.side}. Apart from the queue: {pieces}."]
    if PAPER_K in queue:
        cost = share(queue[PAPER_K], network)
        verdict = "within" if cost < LIMIT else "BEYOND"
        lines.append(f"K = {PAPER_K} takes {cost:.1%} of the step: {verdict} the {LIMIT:.0%} set.")
    return "\n\n".join([*lines, table(rows, header)])


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
    times = medians(interleaved(contenders, half(plan.rounds), warmup=0))
    return {n: (n / times[str(n)], peaks[n]) for n in plan.batches}


def batch_text(batches: dict[int, tuple[float, float]], queue: int) -> str:
    rows = [[n, f"{speed:.1f}", f"{peak:.2f}"] for n, (speed, peak) in batches.items()]
    note = f"Whole steps, K = {queue}. Peak of the whole process, torch itself included."
    return f"{note}\n\n{table(rows, ['batch', 'images/s', 'peak GB'])}"


# Losses.


def measure_losses(plan: Plan) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds of NCE by K, and of InfoNCE end-to-end by batch."""
    nce = {f"K {k}": loss_pass(NCE(50_000), k, plan.batch, CPU) for k in plan.queues}
    end_to_end = {f"batch {n}": end_to_end_pass(n, CPU) for n in plan.dictionaries}
    runs = {name: timed(run) for name, run in (nce | end_to_end).items()}
    times = medians(interleaved(runs, half(plan.rounds)))
    return (
        {k: times[f"K {k}"] for k in plan.queues},
        {n: times[f"batch {n}"] for n in plan.dictionaries},
    )


def loss_text(plan: Plan, nce: dict[int, float], end_to_end: dict[int, float]) -> str:
    of_nce = [[k, f"{1e3 * t:.1f}"] for k, t in nce.items()]
    of_batch = [[n, f"{1e3 * t:.1f}", f"{1e6 * t / n:.1f}"] for n, t in end_to_end.items()]
    return "\n\n".join(
        [
            f"NCE, {plan.batch} queries against K keys, forward and backward.",
            table(of_nce, ["K", "NCE, ms"]),
            "InfoNCE end-to-end, gradients to queries and keys, forward and backward.",
            table(of_batch, ["batch = dictionary", "InfoNCE, ms", "us an image"]),
        ]
    )


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


def world_text(plan: Plan, worlds: dict[int, Times]) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows = []
    for world, times in worlds.items():
        speed = plan.world_batch / times["step"]
        less = [f"{1e3 * times[name]:.1f}" for name in ("without ShuffleBN", "without DDP")]
        alone = [f"{1e3 * times[name]:.2f}" for name in ("images", "keys", "gradients")]
        rows.append([world, f"{1e3 * times['step']:.1f}", f"{speed:.0f}", *less, *alone])
    header = ["processes", "step, ms", "images/s", "without ShuffleBN, ms", "without DDP, ms"]
    header += ["gather images, ms", "gather keys, ms", "all-reduce gradients, ms"]
    over = [str(world) for world in worlds if world > cores]
    crowd = f" {' and '.join(over)} processes share {cores} cores." if over else ""
    note = (
        f"Global batch {plan.world_batch}, one thread a process, gloo.{crowd} The step again with "
        "keys in their own order, and with gradients that stay on their rank; then the messages "
        "of a step by themselves, which in it wait for the slowest rank and share the cores with "
        "the backward pass."
    )
    return f"{note}\n\n{table(rows, header)}"


# The figure.


def draw(path: Path, network, queue, whole, batches, nce, end_to_end, worlds) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, ((over_k, over_n), (over_batch, over_world)) = plt.subplots(2, 2, figsize=(10, 7.5))
    rest = sum(network.values())
    over_k.loglog(list(queue), [1e3 * t for t in queue.values()], "o-", label="queue (InfoNCE)")
    over_k.loglog(list(nce), [1e3 * t for t in nce.values()], "s-", label="NCE")
    over_k.axhline(1e3 * rest, color="black", lw=1, label="the step without it")
    over_k.axhline(1e3 * rest * LIMIT / (1 - LIMIT), color="gray", ls=":", label="5% of the step")
    over_k.plot(list(whole), [1e3 * t for t in whole.values()], "k^", label="whole step")
    over_k.set(xlabel="K", ylabel="ms", title="The dictionary's size")

    over_n.loglog(list(end_to_end), [1e3 * t for t in end_to_end.values()], "o-")
    over_n.set_xticks(list(end_to_end), [str(n) for n in end_to_end], minor=False)
    over_n.xaxis.set_minor_formatter("")
    over_n.set(xlabel="batch = dictionary", ylabel="ms", title="InfoNCE end-to-end, loss alone")

    speeds, peaks = zip(*batches.values(), strict=True)
    over_batch.plot(list(batches), speeds, "o-", label="images/s")
    over_batch.set(xlabel="batch", ylabel="images/s", title="The batch", ylim=(0, None))
    of_memory = over_batch.twinx()
    of_memory.plot(list(batches), peaks, "s--", color="tab:red")
    of_memory.set(ylabel="peak GB (red, dashed)", ylim=(0, None))

    places = range(len(worlds))
    over_world.bar(places, [1e3 * t["step"] for t in worlds.values()], color="lightgray")
    bottom = [0.0] * len(worlds)
    for name in ("images", "keys", "gradients"):
        heights = [1e3 * t[name] for t in worlds.values()]
        over_world.bar(places, heights, bottom=bottom, width=0.4, label=f"{name}, alone")
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    over_world.set_xticks(list(places), [str(world) for world in worlds])
    over_world.set(xlabel="processes", ylabel="ms a step (gray)", title="Processes (gloo)")

    for axes in (over_k, over_world):
        axes.legend(fontsize=8)
    for axes in (over_k, over_n, over_batch):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="under a minute")
    parser.add_argument("--toy", action="store_true", help="tests that the script runs; no figures")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--out", type=Path, help="a file for the tables")
    parser.add_argument("--figure", type=Path, help="a PNG file")
    arguments = parser.parse_args()
    plan = TOY if arguments.toy else SHORT if arguments.short else Plan()

    torch.manual_seed(0)
    worlds = measure_worlds(plan)  # first: its processes and this one's memory never meet
    keep_freed_memory()
    queue = min(PAPER_K, max(plan.queues))
    trainer = moco_trainer(
        plan.backbone, CPU, plan.batch, queue=queue, precision=arguments.precision
    )
    batches = measure_batches(plan, trainer)
    parts = measure_queue(plan, trainer)
    losses = measure_losses(plan)

    command = " ".join(["python benchmarks/scaling.py", *sys.argv[1:]])
    threads = f"{trainer.precision}, {torch.get_num_threads()} threads, {plan.rounds} rounds"
    text = "\n\n".join(
        [
            f"# What a step costs\n\n{provenance(command)}; {threads}",
            f"## The queue\n\n{queue_text(plan, *parts)}",
            f"## The batch\n\n{batch_text(batches, queue)}",
            f"## Other losses\n\n{loss_text(plan, *losses)}",
            f"## Processes\n\n{world_text(plan, worlds)}",
        ]
    )
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    if arguments.figure:
        draw(arguments.figure, *parts, batches, *losses, worlds)


if __name__ == "__main__":
    main()
