"""How far the training step is from what this machine could do, and what our own loop adds.

python benchmarks/floor.py --out results/speed_floor.json
python benchmarks/floor.py --net demo --precision bf16 --steps 200
python benchmarks/floor.py --short

measures the machine's matmul and copy rates and each convolution of a network at its true size,
then times `Trainer.fit` from outside, phase by phase, and sets each phase beside two floors:

floor          its FLOPs at the matmul rate (the highest rate that a product of large matrices or
               any layer reached) and its bytes at the copy rate: what a perfect implementation
               could reach
as layers run  its FLOPs at the rates at which torch runs these very convolutions and linear layers,
               and the same bytes: what our code could reach with torch's kernels

FLOPs are those of convolutions, linear layers and the loss's similarities. Bytes are those that
have to be read and written once FLOPs are perfect; ReLU and residual additions count as fused with
BatchNorm. A copy is measured at the size of what is moved, so small tensors move at the speed of
the caches.

The last table is the loop's overhead: `Trainer.fit` with all its hooks against forward, backward,
step and `after_step` written by hand, on a network whose step takes about 5 ms.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import count, islice
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from common import ROOT, Measured, Table, seconds, spread
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_zoo import config
from ssl_zoo.backbones import Backbone
from ssl_zoo.config import BACKBONES
from ssl_zoo.core import Batch
from ssl_zoo.engine.precision import DTYPES, autocast
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.experiment import build_trainer
from ssl_zoo.memory import MoCoQueue
from ssl_zoo.runs import RunFolder
from ssl_zoo.system.hardware import keep_freed_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MATMUL = {"cpu": 2048, "cuda": 8192}  # side of the matrices that show the matmul rate
PHASES = [
    "data",
    "key forward",
    "query forward",
    "loss",
    "backward",
    "optimizer",
    "EMA",
    "memory",
    "hooks",
    "loop",
]


# ------------------------------------------------------------------------------------ machine


def best(function: Callable[[], object], repeats: int = 3, budget: float = 0.3) -> float:
    """Seconds of the fastest call: at least `repeats`, and more of a short one within `budget`."""
    seconds(function)
    fastest = first = seconds(function)
    for _ in range(max(repeats, min(100, int(budget / max(first, 1e-6)))) - 1):
        fastest = min(fastest, seconds(function))
    return fastest


def matmul_rates(precision: str, side: int) -> dict[str, float]:
    """FLOP/s of a product of two [side, side] matrices, by the library that computes it.

    A 1x1 convolution is the same product, and on CPUs another library's: MKL multiplies matrices
    of fp32 and oneDNN convolves, and MKL is slow on processors of other makers.
    """
    a, b = (torch.randn(side, side, device=DEVICE, dtype=DTYPES[precision]) for _ in range(2))
    x = a.view(1, side // 32, 32, side).permute(0, 3, 1, 2)  # [1, side, side / 32, 32]
    kernel = b[:, :, None, None].to(memory_format=torch.channels_last)
    runs = {"matmul": lambda: a @ b, "as 1x1 convolution": lambda: F.conv2d(x, kernel)}
    return {name: 2 * side**3 / best(run, 5) for name, run in runs.items()}


@lru_cache
def copy_rate(size: int) -> float:
    """Bytes a second, read and written, of what moves about `size` bytes, at its fastest.

    A copy counts two passes and an addition in place three; on CPUs a copy also has to fetch what
    it overwrites, so it seems slower.
    """
    source = torch.zeros(max(1, size // 8), device=DEVICE)
    target = torch.zeros_like(source)
    copying = 2 * source.nbytes / best(lambda: target.copy_(source), 5, 0.05)
    adding = 3 * source.nbytes / best(lambda: target.add_(source), 5, 0.05)
    return max(copying, adding)


def moving(size: float) -> float:
    """Seconds to move so many bytes, at the rate of a copy of about that size, at most 512 MB."""
    return size / copy_rate(2 ** min(29, max(10, round(size).bit_length())))


# ------------------------------------------------------------------------------------- layers


class Layer(NamedTuple):
    """A convolution at its true size; a linear layer is one with a weight of two dimensions."""

    images: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    @property
    def flops(self) -> int:
        """Of the forward pass; each gradient takes as many."""
        return 2 * prod(self.output) * prod(self.weight[1:])

    @property
    def output(self) -> tuple[int, ...]:
        if len(self.weight) == 2:
            return (*self.images[:-1], self.weight[0])
        sides = zip(
            self.images[2:], self.weight[2:], self.stride, self.padding, self.dilation, strict=True
        )
        side = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides]
        return (self.images[0], self.weight[0], *side)


class Network(NamedTuple):
    """What one forward pass of a network consists of.

    Attributes:
        layers: in order; the first takes the images, which need no gradient.
        norms: bytes of each BatchNorm's input.
    """

    layers: list[Layer]
    norms: list[int]

    @property
    def flops(self) -> int:
        return sum(layer.flops for layer in self.layers)

    @property
    def backward_flops(self) -> int:
        return 2 * self.flops - self.layers[0].flops


@torch.no_grad()
def inspect(encoder: nn.Module, images: Tensor, precision: str) -> Network:
    """Counts from the shapes that one forward pass meets."""
    network = Network([], [])

    def of_layer(module, inputs, output) -> None:
        shapes = tuple(inputs[0].shape), tuple(module.weight.shape)
        if isinstance(module, nn.Linear):
            layer = Layer(*shapes)
        else:
            layer = Layer(*shapes, module.stride, module.padding, module.dilation, module.groups)
        network.layers.append(layer)

    def of_norm(module, inputs, output) -> None:
        network.norms.append(inputs[0].nbytes)

    kinds = ((nn.Conv2d, of_layer), (nn.Linear, of_layer), (_BatchNorm, of_norm))
    handles = [
        module.register_forward_hook(hook)
        for module in encoder.modules()
        for kind, hook in kinds
        if isinstance(module, kind)
    ]
    with autocast(DEVICE, precision):
        encoder(images)
    for handle in handles:
        handle.remove()
    return network


@lru_cache
def layer_seconds(layer: Layer, precision: str, repeats: int) -> tuple[float, float, float]:
    """Of the forward pass, the gradient of the input and the gradient of the weight."""
    options = {"device": DEVICE, "dtype": DTYPES[precision]}
    x, w, grad = (torch.randn(s, **options) for s in (layer.images, layer.weight, layer.output))
    if len(layer.weight) == 2:
        x, grad = x.flatten(0, -2), grad.flatten(0, -2)
        runs = (lambda: x @ w.T, lambda: grad @ w, lambda: grad.T @ x)
        return tuple(best(run, repeats) for run in runs)
    x, w, grad = (t.to(memory_format=torch.channels_last) for t in (x, w, grad))
    shape = (layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups)

    def backward(data: bool) -> tuple:
        mask = [data, not data, False]
        return torch.ops.aten.convolution_backward(grad, x, w, None, *shape, mask)

    return (
        best(lambda: torch.ops.aten.convolution(x, w, None, *shape), repeats),
        best(lambda: backward(True), repeats),
        best(lambda: backward(False), repeats),
    )


# ------------------------------------------------------------------------------------- phases


class Stopwatch:
    """Seconds of named phases. What a phase spends in another counts for the other alone."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.within: list[float] = []  # seconds of inner phases, for each open one
        self.laps: list[dict[str, float]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.within.append(0.0)
        start = now()
        yield
        took = now() - start
        self.spent[name] += took - self.within.pop()
        if self.within:
            self.within[-1] += took

    def wrap(self, owner: object, method: str, name: str) -> None:
        """From here on, calls of `owner.method` are a phase."""
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            with self.phase(name):
                return original(*args, **kwargs)

        setattr(owner, method, timed)

    def lap(self, begin: float) -> float:
        """Ends a step that began then; what no phase claims is the loop's. Returns now."""
        end = now()
        self.spent["loop"] += end - begin - sum(self.spent.values())
        self.laps.append({**self.spent, "step": end - begin})
        self.spent.clear()
        return end


def now() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def watched(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    """Seconds of each phase in each of so many steps of `Trainer.fit`, and of the whole step.

    A step lasts from one request for a batch to the next.
    """
    watch, method = Stopwatch(), trainer.method
    make = trainer.data.batches

    def batches(*args) -> Iterator[Batch]:
        items, begin = make(*args), now()
        watch.spent.clear()  # what hooks did before the first step
        while True:
            with watch.phase("data"):
                batch = next(items, None)
            if batch is None:
                return
            yield batch
            begin = watch.lap(begin)

    trainer.data.batches = batches
    watch.wrap(trainer, "_tell", "hooks")
    watch.wrap(trainer, "train_step", "backward")  # all of it that is not another phase
    watch.wrap(method, "forward", "loss")  # likewise: normalizing, look-up, loss, accuracy
    watch.wrap(method.encoder, "forward", "query forward")
    watch.wrap(method.memory, "encode", "key forward")
    watch.wrap(method.memory, "update", "memory")
    watch.wrap(method.memory.key_encoder, "follow", "EMA")
    watch.wrap(trainer.optimizer, "step", "optimizer")
    watch.wrap(trainer.optimizer, "zero_grad", "optimizer")
    trainer.total_steps = steps
    trainer.fit()
    return watch.laps


class Floor(NamedTuple):
    """What a phase has to do, and how fast the machine and its layers would.

    Attributes:
        flops: operations.
        layers: seconds of the convolutions and linear layers, as torch runs them.
        other: seconds of the FLOPs of other operations, at the matmul rate.
        moved: seconds of moving bytes.
    """

    flops: float = 0.0
    layers: float = 0.0
    other: float = 0.0
    moved: float = 0.0


def floors(trainer: Trainer, network: Network, rate: float, repeats: int) -> dict[str, Floor]:
    """By phase, for one step; none for what is overhead through and through."""
    method, precision, data = trainer.method, trainer.precision, trainer.data
    timed = [layer_seconds(layer, precision, repeats) for layer in network.layers]
    forward = sum(f for f, _, _ in timed)
    backward = sum(d + w for _, d, w in timed) - timed[0][1]  # images need no gradient
    weights = sum(p.nbytes for p in method.encoder.parameters())
    n, (k, d) = data.batch_size, method.memory.stored.shape
    # BatchNorm reads for the statistics, reads again and writes; backward, both times with the
    # gradient.
    normalize = sum(moving(3 * size) for size in network.norms)
    passes = Floor(network.flops, forward, 0, normalize)
    # q . k for all pairs and the weighted sum of k; an exponential goes through the cache.
    similarities = 4 * n * k * d
    pairs = n * k * 8 / copy_rate(2**20)
    views = sum(prod((n, *view.shape[1:])) * 4 for view in next(data.batches(0, 1, DEVICE)).views)
    return {
        "data": Floor(moved=moving(views)),  # written once
        "key forward": passes,
        "query forward": passes,
        "loss": Floor(similarities, 0, similarities / rate, pairs + moving(k * d * 4)),
        "backward": Floor(
            network.backward_flops, backward, 0, sum(moving(5 * size) for size in network.norms)
        ),
        "optimizer": Floor(moved=moving(5 * weights)),  # weight and momentum twice, gradient
        "EMA": Floor(moved=moving(3 * weights)),  # the query's weight, the key's twice
        "memory": Floor(moved=moving(2 * n * d * 4)),
    }


# ---------------------------------------------------------------------------------- networks


class Net(NamedTuple):
    title: str
    config: str
    overrides: list
    steps: dict[str, int]  # by precision


def images(size: int, channels: int) -> tuple[str, dict]:
    """Made on the spot, so that no data set is needed; they take as long as real ones."""
    kind = {"type": "Synthetic", "num_samples": 4096, "size": size, "channels": channels}
    return ("data.dataset", kind)


NETS = {
    "demo": Net(
        "ResNet-10 of half the width, 28 x 28 gray",
        "fashion_mnist/demo.yaml",
        [images(28, 1)],
        {"fp32": 80, "bf16": 80},
    ),
    "resnet18": Net(
        "ResNet-18, 32 x 32",
        "cifar10/moco_v2.yaml",
        [
            images(32, 3),
            ("data.batch_size", 256),
            ("backbone.bn_groups", 1),
            ("method.memory.size", 65536),
        ],
        {"fp32": 5, "bf16": 7},
    ),
}
SHORT = {"demo": 20, "resnet18": 2}
TOY = [
    ("data.batch_size", 16),
    ("backbone.options", {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}),
    ("method.memory.size", 64),
]


def make(path: str, overrides: list, precision: str, folder: str) -> Trainer:
    """A trainer as a YAML file makes it, without evaluation, that saves after its last step."""
    quiet = [
        ("evaluations.knn", None),
        ("train.precision", precision),
        ("checkpoint.every_epochs", 1e6),
    ]
    whole = config.load(ROOT / "configs" / path, [*overrides, *quiet])
    trainer = build_trainer(whole, DEVICE, RunFolder(folder))
    # A live progress bar, as a person sees it, on a terminal that is not there.
    trainer.console = Console(file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    if not isinstance(trainer.method.memory, MoCoQueue):
        raise ValueError(f"{path}: the phases are those of a MoCoQueue")
    return trainer


class Report(NamedTuple):
    """A network in one precision.

    Attributes:
        laps: seconds of each phase and of 'step', for each step.
        floors: of each phase that has one.
        rate: the highest of matmul and layers, in FLOP/s.
        rates: of matmul, by library.
    """

    title: str
    network: Network
    batch: int
    queue: int
    laps: list[dict[str, float]]
    floors: dict[str, Floor]
    rate: float
    rates: dict[str, float]

    @property
    def took(self) -> dict[str, float]:
        """Seconds of each phase and of 'step', medians over steps."""
        names = [*PHASES, "step"]
        return {name: statistics.median(lap.get(name, 0.0) for lap in self.laps) for name in names}

    @property
    def whole(self) -> Floor:
        return Floor(*(sum(column) for column in zip(*self.floors.values(), strict=True)))

    def phases(self) -> Table:
        """A row for each phase; the fractions say how much of a floor's speed is reached."""
        columns = {
            "phase": "",
            "ms": ".2f",
            "share": ".1%",
            "GFLOP": ".2f",
            "floor, ms": ".2f",
            "of the floor": ".0%",
            "as layers run, ms": ".2f",
            "of the layers": ".0%",
        }
        took, rows = self.took, []
        for name, spent in took.items():
            row = [name, 1e3 * spent, spent / took["step"]]
            floor = self.whole if name == "step" else self.floors.get(name)
            rows.append([*row, *self._cells(floor, spent)])
        about = f"Batch {self.batch}, K {self.queue}."
        return Table(self.title, columns, rows, about, f"{len(self.laps)} steps")

    def _cells(self, floor: Floor | None, spent: float) -> list[float | None]:
        if floor is None:
            return [None] * 5
        lowest = floor.flops / self.rate + floor.moved
        layers = floor.layers + floor.other + floor.moved
        cells = [floor.flops / 1e9 or None, 1e3 * lowest, lowest / spent]
        return cells + ([1e3 * layers, layers / spent] if floor.layers else [None, None])

    def layers(self, precision: str, repeats: int) -> Table:
        """Each distinct layer: how often, GFLOP and GFLOP/s of its three passes."""
        columns = {
            "input": "",
            "weight": "",
            "stride": "",
            "times": "",
            "GFLOP": ".2f",
            "forward, GFLOP/s": ".0f",
            "data gradient": ".0f",
            "weight gradient": ".0f",
        }
        rows = []
        for layer in dict.fromkeys(self.network.layers):
            times = layer_seconds(layer, precision, repeats)
            rows.append(
                [
                    " x ".join(map(str, layer.images[1:])),
                    " x ".join(map(str, layer.weight)),
                    layer.stride[0] if len(layer.weight) > 2 else None,
                    self.network.layers.count(layer),
                    layer.flops / 1e9,
                    *(layer.flops / t / 1e9 for t in times),
                ]
            )
        rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in self.rates.items())
        about = (
            f"{precision}, GFLOP/s of large matrices: {rates}; the floor has {self.rate / 1e9:.0f}."
        )
        return Table(f"Layers of {self.title}", columns, rows, about)

    def row(self) -> list:
        """The step in one row, as STEP_COLUMNS."""
        step, whole = self.took["step"], self.whole
        reached = [whole.layers / step, whole.flops / self.rate / step]
        steps = [1e3 * x for x in spread([lap["step"] for lap in self.laps])]
        return [self.title, self.batch / step, *steps, whole.flops / 1e9, self.rate / 1e9, *reached]


STEP_COLUMNS = {
    "step": "",
    "images/s": ".0f",
    "ms": ".1f",
    "lowest": ".1f",
    "highest": ".1f",
    "GFLOP": ".1f",
    "highest GFLOP/s": ".0f",
    "of its layers' rate": ".0%",
    "of the highest rate": ".0%",
}


def report(name: str, precision: str, steps: int, toy: bool, repeats: int) -> Report:
    net = NETS[name]
    rates = matmul_rates(precision, 128 if toy else MATMUL[DEVICE.type])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(net.config, [*net.overrides, *(TOY if toy else [])], precision, folder)
        views = next(trainer.data.batches(0, 1, DEVICE)).views
        network = inspect(trainer.method.encoder, views[0], precision)
        # Where some layer runs faster than the large product, that is what the machine can do.
        rate = max(*rates.values(), fastest(network, precision, repeats))
        below = floors(trainer, network, rate, repeats)
        laps = watched(trainer, steps + 2)[1:-1]  # the first warms up, the last one saves
        title, queue = f"{net.title}, {trainer.precision}", len(trainer.method.memory.queue)
        return Report(title, network, trainer.data.batch_size, queue, laps, below, rate, rates)


def fastest(network: Network, precision: str, repeats: int) -> float:
    """FLOP/s of the fastest pass of any layer."""
    layers = set(network.layers)
    return max(layer.flops / min(layer_seconds(layer, precision, repeats)) for layer in layers)


# ---------------------------------------------------------------------------------- overhead


@BACKBONES.register_module()
class Plain(Backbone):
    """Three convolutions: a network whose step is short."""

    def __init__(self, *, in_chans: int = 1, width: int = 16, bn_groups: int = 1):
        super().__init__()
        self.num_features, self.bn_groups = width, bn_groups
        blocks = [
            [
                nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            for before in (in_chans, width, width)
        ]
        self.net = nn.Sequential(*(module for block in blocks for module in block))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).mean(dim=(2, 3))


def bare_step(trainer: Trainer, batch: Batch) -> None:
    """What one writes by hand."""
    with autocast(trainer.device, trainer.precision):
        out = trainer.method(batch)
    out["loss"].backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.method.after_step(batch, out)


def busy() -> float:
    """A clock of this thread's work alone: on a shared machine what others do is not in it.

    On a GPU it is `now`.
    """
    return now() if DEVICE.type == "cuda" else time.thread_time()


def bare(trainer: Trainer, batches: list[Batch]) -> float:
    """Seconds a step."""
    start = busy()
    for batch in batches:
        bare_step(trainer, batch)
    return (busy() - start) / len(batches)


def short_trainer(precision: str, folder: str, target: float) -> tuple[Trainer, list[Batch]]:
    """One whose bare step takes about `target` seconds, by the size of its batch; and batches."""
    for size in (round(8 * 1.25**i) for i in count()):
        overrides = [
            images(28, 1),
            ("backbone", {"type": "Plain", "bn_groups": 1}),
            ("data.batch_size", size),
        ]
        trainer = make("fashion_mnist/demo.yaml", overrides, precision, folder)
        batches = list(islice(trainer.data.batches(0, 8, DEVICE), 8))
        trainer.method.train()
        if min(bare(trainer, batches) for _ in range(4)) >= target or size > 1500:
            return trainer, batches
    raise AssertionError("unreachable")


def overhead(precision: str, rounds: int, block: int = 50, target: float = 5e-3) -> Table:
    """`Trainer.fit` with all hooks against the bare loop, step by step in turn.

    Both go through the same batches, half a cycle apart, so neither finds in the cache what the
    other has just read.

    Not in it: the progress bar's drawing, by a thread of its own, while either of them runs.

    Args:
        block: steps of a round, and between two lines of the log, so that each round has one.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer, batches = short_trainer(precision, folder, target)
        ours: list[float] = []  # seconds a step, by round
        theirs: list[float] = []

        def feed(*_) -> Iterator[Batch]:
            # `fit` runs while this waits at a yield, and waits while the bare step runs here.
            for _ in range(1 + rounds):
                spent = [0.0, 0.0]
                for number in range(block):
                    ahead = number + len(batches) // 2
                    start = busy()
                    yield batches[number % len(batches)]
                    turn = busy()
                    bare_step(trainer, batches[ahead % len(batches)])
                    spent[0] += turn - start
                    spent[1] += busy() - turn
                ours.append(spent[0] / block)
                theirs.append(spent[1] / block)
            yield batches[0]  # the run's last step, which saves

        trainer.data.batches = feed
        trainer.log_every = block
        trainer.total_steps = (1 + rounds) * block + 1
        trainer.fit()
    ours, theirs = ours[1:], theirs[1:]  # the first round warms up
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    more = [1e6 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    lower, _, upper = statistics.quantiles(ratios)
    row = [
        precision,
        trainer.data.batch_size,
        1e3 * statistics.median(theirs),
        1e3 * statistics.median(ours),
        statistics.median(more),
        statistics.median(ratios) - 1,
        lower - 1,
        upper - 1,
    ]
    columns = {
        "precision": "",
        "batch": "",
        "bare step, ms": ".2f",
        "Trainer.fit, ms": ".2f",
        "more, us": ".0f",
        "overhead": "+.1%",
        "lower quartile": "+.1%",
        "upper quartile": "+.1%",
    }
    clock = "seconds" if DEVICE.type == "cuda" else "the training thread's CPU time"
    about = f"A round is {block} steps of each, in turn, and a line of the log; {clock}."
    title = "Overhead of the loop and its hooks"
    return Table(title, columns, [row], about, f"{rounds} rounds")


# -------------------------------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--net", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"))
    parser.add_argument("--steps", type=int, help="of each network [80 and 5 to 7]")
    parser.add_argument("--out", type=Path, help="a result file, JSON")
    parser.add_argument(
        "--short", action="store_true", help="fewer of all, resnet18 in bf16 alone: within 45 s"
    )
    parser.add_argument("--toy", action="store_true", help="toy sizes: does it run?")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    repeats = 1 if arguments.short or arguments.toy else 3
    measured = Measured("floor.py", sys.argv[1:] if argv is None else argv)
    steps_in_short: list[list] = []
    for name in arguments.net:
        brief = arguments.short and name == "resnet18"
        for precision in arguments.precision or (("bf16",) if brief else ("fp32", "bf16")):
            steps = arguments.steps or NETS[name].steps[precision]
            if not arguments.steps and (arguments.short or arguments.toy):
                steps = 3 if arguments.toy else SHORT[name]
            found = report(name, precision, steps, arguments.toy, repeats)
            measured.add(f"{name} {precision}", found.phases())
            measured.add(f"{name} {precision} layers", found.layers(precision, repeats))
            steps_in_short.append(found.row())
    about = "Of the layers' rate: what convolutions and linear layers alone would allow."
    measured.add("steps", Table("Whole steps", STEP_COLUMNS, steps_in_short, about))
    if arguments.toy:
        measured.add("overhead", overhead("fp32", 2, 5, target=0.0))
    else:
        measured.add("overhead", overhead("fp32", 8 if arguments.short else 60))
    measured.finish(arguments.out)


if __name__ == "__main__":
    main()
