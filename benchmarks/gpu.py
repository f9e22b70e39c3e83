"""MoCo v2 on a GPU: images a second, the fraction of the GPU's measured peak, and memory.

python benchmarks/gpu.py --out results/speed_gpu.json
python benchmarks/gpu.py [--only NAME ...] [--fair PATH] [--images PATH ...]

peak         what the GPU reaches in bf16: a large matrix product, and the network's own
             convolutions, channels last, one after the other, forward and backward
step         a step of MoCo v2 (ResNet-50 at 224x224, bf16, batch 256, K 65536) with the batch
             ready on the device: ssl_zoo as it is, compiled, and with 8 BatchNorm groups; a step
             in plain PyTorch; FAIR's builder (--fair: a clone of facebookresearch/moco, whose code
             is run and never copied) as it ships and under bf16
data         ssl_zoo from random uint8 images of 256x256 in memory to the end of the step, and from
             each --images PATH, a folder of train/CLASS/*.jpg or of train.pack
mechanisms   MoCo, end-to-end and memory bank at one batch (arXiv:1911.05722, table 5, finds 5.0
             and 7.4 GB for the first two)
queue        milliseconds that a queue of K keys adds to a step
knn          images/s of feature extraction, seconds of the vote

A contender lives in a process of its own and takes turns with the others; one that waits holds
little more than its weights. `--device cpu --tiny` runs all of it at toy sizes, to test the script.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from common import ROOT, Measured, Table, interleaved, seconds, spread
from parts import TEMPERATURE, D, Held, moco_trainer, noise, queue_pass
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo import config
from ssl_zoo.config import DATASETS, Part
from ssl_zoo.data import InMemory
from ssl_zoo.evaluation import knn
from ssl_zoo.evaluation.features import Labeled, extract
from ssl_zoo.experiment import build_trainer
from ssl_zoo.losses import NCE, InfoNCE
from ssl_zoo.memory import EndToEnd, MemoryBank, MoCoQueue
from ssl_zoo.runs import RunFolder
from ssl_zoo.system.hardware import PeakMemory

MOMENTUM = 0.999
IMAGENET = 1_281_167  # images, so rows of a memory bank


@dataclass(frozen=True)
class Size:
    """What all contenders have in common.

    Args:
        stored: side of the uint8 images that views are cut from, and how many there are.
        steps: of a round.
        matrix: side of the matrices of the matmul peak.
        bank: kNN's (bank, queries, width).
    """

    device: str = "cuda"
    model: str = "resnet50"
    side: int = 224
    batch: int = 256
    queue: int = 65536
    negatives: int = 65536
    num_samples: int = IMAGENET
    stored: tuple[int, int] = (256, 4096)
    steps: int = 20
    matrix: int = 8192
    queues: tuple[int, ...] = tuple(4**n for n in range(5, 11))
    bank: tuple[int, int, int] = (200_000, 10_000, 2048)

    @property
    def on(self) -> torch.device:
        return torch.device(self.device)

    @property
    def options(self) -> dict[str, Any]:
        small = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8], "stem_width": 4}
        return small if self.model == "resnet18" else {}

    @property
    def backbone(self) -> dict[str, Any]:
        return {"name": self.model, "options": self.options}


TINY = {
    "model": "resnet18",
    "side": 32,
    "batch": 16,
    "queue": 64,
    "negatives": 64,
    "num_samples": 100,
    "stored": (40, 32),
    "steps": 1,
    "matrix": 64,
    "queues": (16, 64),
    "bank": (300, 20, 16),
}
Round = tuple[float, float]  # images/s, peak GB


# The peak.


@cache
def layers(size: Size) -> list[tuple[nn.Module, tuple[int, ...], float]]:
    """Convolutions and linear layers of the encoder: module, input's shape, FLOPs an image."""
    net = timm.create_model(size.model, num_classes=D, **size.options)
    measured = []

    def note(module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        # Each number that comes out is a sum over the weights of one output channel.
        each = 2 * module.weight[0].numel()
        measured.append((module, tuple(inputs[0].shape[1:]), each * out.numel()))

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note)
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size.side, size.side))
    return measured


def flops(size: Size, mechanism: str) -> float:
    """Of a step, an image: a backward pass is two forward ones, but for the images' gradient.

    MoCo: queries forward and backward, keys forward. End-to-end: both forward and backward. A
    memory bank: queries alone. What is not a convolution or a linear layer is not counted.
    """
    measured = layers(size)
    forward = sum(of for *_, of in measured)
    both = 3 * forward - measured[0][2]
    return {"moco": both + forward, "end_to_end": 2 * both, "bank": both}[mechanism]


def matmul_peak(size: Size) -> Callable[[], float]:
    """FLOP/s of a square bf16 product."""
    n = size.matrix
    a, b = (torch.randn(n, n, device=size.on, dtype=torch.bfloat16) for _ in range(2))
    return lambda: size.steps * 2 * n**3 / seconds(lambda: [a @ b for _ in range(size.steps)])


def convolution_peak(size: Size) -> Callable[[], float]:
    """FLOP/s of the network's convolutions by themselves, forward and backward, bf16."""
    runs, flops = [], 0.0
    for first, (module, shape, of) in enumerate(layers(size)):
        if not isinstance(module, nn.Conv2d):
            continue
        images = torch.randn(size.batch, *shape, device=size.on, dtype=torch.bfloat16)
        runs.append((module, images.shape, first > 0))
        flops += of * size.batch * (3 if first > 0 else 2)
        del images

    def measure() -> float:
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            return flops / spent()
        finally:
            torch.backends.cudnn.benchmark = before

    def spent() -> float:
        total = 0.0
        for module, shape, needs_gradient in runs:  # one after the other: one is in memory
            x = torch.randn(shape, device=size.on, dtype=torch.bfloat16)
            x = x.to(memory_format=torch.channels_last).requires_grad_(needs_gradient)
            layer = copy.deepcopy(module).to(
                size.on, torch.bfloat16, memory_format=torch.channels_last
            )
            with torch.no_grad():
                out = torch.ones_like(layer(x))

            wanted = [layer.weight, x] if needs_gradient else [layer.weight]

            # Not `backward`, which would add each call's gradients to those of the call before.
            def both(layer=layer, x=x, out=out, wanted=wanted) -> None:
                torch.autograd.grad(layer(x), wanted, out)

            both()  # chooses its algorithms
            total += seconds(lambda both=both: [both() for _ in range(size.steps)]) / size.steps
        return total

    return measure


# Steps. Each builds in its own process and returns a function of a number of steps.


def counted(size: Size, step: Callable[[], object], warm: int = 3) -> Callable[[int], Round]:
    """Images/s and peak GB of so many steps; memory goes back to the device after a round."""
    memory = PeakMemory(size.on)
    for _ in range(warm):
        step()

    def measure(steps: int) -> Round:
        step()  # memory comes back
        memory.bytes = 0
        memory.restart()
        spent = seconds(lambda: [step() for _ in range(steps)])
        peak = memory.peak() / 1e9
        if size.on.type == "cuda":
            torch.cuda.empty_cache()
        return steps * size.batch / spent, peak

    return measure


def images(size: Size):
    return noise(size.batch, 3, size.side, size.on)


def our_step(size: Size, mechanism: str = "moco", groups: int = 1, compile: bool = False):
    memory = {
        "moco": Part(MoCoQueue, size=size.queue, momentum=MOMENTUM),
        "end_to_end": Part(EndToEnd),
        "bank": Part(MemoryBank, num_negatives=size.negatives),
    }[mechanism]
    loss = Part(NCE) if mechanism == "bank" else Part(InfoNCE, temperature=TEMPERATURE)
    trainer = moco_trainer(
        size.backbone | {"bn_groups": groups},
        size.on,
        size.batch,
        memory=memory,
        loss=loss,
        num_samples=size.num_samples,
        precision="bf16",
        compile=compile,
    )
    batch = images(size)
    return counted(size, lambda: trainer.train_step(batch))


def autotuned_step(size: Size):
    torch.backends.cudnn.benchmark = True
    return our_step(size)


def plain_step(size: Size):
    """What one writes in an afternoon, with the whole matrix of similarities."""
    torch.backends.cudnn.benchmark = True

    def network() -> nn.Module:
        body = timm.create_model(size.model, num_classes=0, **size.options)
        width = body.num_features
        net = nn.Sequential(body, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, D))
        return net.to(size.on, memory_format=torch.channels_last)

    query = network()
    key = copy.deepcopy(query).requires_grad_(False)
    queue = F.normalize(torch.randn(size.queue, D, device=size.on), dim=1)  # [K, D]
    optimizer = torch.optim.SGD(query.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    x_q, x_k = images(size).views
    target = torch.zeros(size.batch, dtype=torch.long, device=size.on)
    pointer = 0

    def step() -> None:
        nonlocal pointer
        with torch.autocast(size.device, torch.bfloat16):
            q = F.normalize(query(x_q), dim=1)  # [N, D]
            with torch.no_grad():
                for p, m in zip(query.parameters(), key.parameters(), strict=True):
                    m.mul_(MOMENTUM).add_(p, alpha=1 - MOMENTUM)
                k = F.normalize(key(x_k), dim=1)  # [N, D]
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1)  # [N, 1 + K]
            loss = F.cross_entropy(logits / TEMPERATURE, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue[pointer : pointer + size.batch] = k.float()
        pointer = (pointer + size.batch) % size.queue

    return counted(size, step)


def fair_step(size: Size, path: str, bf16: bool):
    """FAIR's builder in the loop of its main_moco.py, one process; bf16 adds channels last too."""
    sys.path.insert(0, path)
    from moco.builder import MoCo

    torch.backends.cudnn.benchmark = True  # as its main_moco.py does
    if size.device == "cpu":
        Tensor.cuda = lambda self, *_, **__: self  # it speaks to a GPU alone
    torch.distributed.init_process_group(
        "nccl" if size.device == "cuda" else "gloo",
        store=torch.distributed.HashStore(),
        rank=0,
        world_size=1,
    )
    encoder = lambda num_classes: timm.create_model(  # noqa: E731
        size.model, num_classes=num_classes, **size.options
    )
    model = MoCo(encoder, D, size.queue, MOMENTUM, TEMPERATURE, True).to(size.on)
    if bf16:
        model = model.to(memory_format=torch.channels_last)
    model = nn.parallel.DistributedDataParallel(model)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    x_q, x_k = images(size).views

    def step() -> None:
        with torch.autocast(size.device, torch.bfloat16, enabled=bf16):
            output, target = model(im_q=x_q, im_k=x_k)
            loss = criterion(output, target)
        loss.item()  # its meters read it at each step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return counted(size, step)


# With data.


@DATASETS.register_module()
class RandomImages(InMemory):
    """Noise in memory, for this benchmark."""

    def __init__(self, split: str, *, side: int, count: int):
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
        super().__init__(pixels, torch.full((count,), -1), 1, split)


def with_data(size: Size, dataset: dict[str, Any]):
    """`ssl-zoo train` from the images to the end of the step, hooks left out."""
    overrides = [
        ("data.dataset", dataset),
        f"data.views.ops.crop.size={size.side}",
        f"data.batch_size={size.batch}",
        ("backbone", {"type": "Timm", "bn_groups": 1, **size.backbone}),
        f"method.memory.size={size.queue}",
        "train.precision=bf16",
        "train.epochs=1000000",
        "evaluations.knn=null",
    ]
    cfg = config.load(ROOT / "configs/imagenet/moco_v2.yaml", overrides)
    trainer = build_trainer(cfg, size.on, RunFolder(tempfile.mkdtemp()))
    trainer.method.train()
    batches = trainer.data.batches(0, trainer.total_steps, size.on)
    return counted(size, lambda: trainer.train_step(next(batches)))


def dataset_at(path: Path) -> dict[str, Any]:
    """A folder that `ssl-zoo data pack` wrote, or one of train/CLASS/*.jpg."""
    if (path / "train.pack").is_file():
        return {"type": "Packed", "path": str(path)}
    return {"type": "ImageFolder", "root": str(path)}


# Rounds and tables.


def take_turns(
    size: Size, contenders: dict[str, tuple], rounds: int
) -> tuple[dict[str, list[Round]], list[str]]:
    """Rounds of each, and what is to be said of those that did not run."""
    held: dict[str, Held] = {}
    said: dict[str, list[Round]] = {}
    notes = []
    try:
        for name, (build_step, *arguments) in contenders.items():
            try:
                held[name] = Held(build_step, size, *arguments)
            except RuntimeError as error:
                notes.append(f"{name} did not run: {last_line(error)}")
                print(error, file=sys.stderr)
        for number in range(rounds + 1):
            for name, measure in list(held.items()):
                try:
                    answer = measure(size.steps)
                except RuntimeError as error:
                    notes.append(f"{name} broke in round {number}: {last_line(error)}")
                    print(error, file=sys.stderr)
                    del held[name]
                    said.pop(name, None)
                    continue
                if number > 0:
                    said.setdefault(name, []).append(answer)
    finally:
        for measure in held.values():
            measure.close()
    return said, notes


def last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def speed_table(
    title: str,
    size: Size,
    contenders: dict[str, tuple],
    rounds: int,
    peaks: dict[str, float],
    mechanism: dict[str, str] | None = None,
    about: str = "",
) -> Table:
    """A row a contender; `mechanism` says which FLOPs a row does where it is not MoCo."""
    said, notes = take_turns(size, contenders, rounds)
    rows = []
    for name, found in said.items():
        speeds = [speed for speed, _ in found]
        each = flops(size, (mechanism or {}).get(name, "moco"))
        work = statistics.median(speeds) * each  # FLOP/s
        fractions = [work / peak for peak in peaks.values()]
        rows.append([name, *spread(speeds), work / 1e12, *fractions, max(gb for _, gb in found)])
    columns = {"contender": "", "images/s": ".1f", "lowest": ".1f", "highest": ".1f"}
    columns |= {"TFLOP/s": ".2f", **{f"of the {name} peak": ".1%" for name in peaks}}
    columns |= {"peak GB": ".2f"}
    return Table(title, columns, rows, " ".join([about, *notes]).strip(), f"{rounds} rounds")


def peak_section(size: Size, rounds: int) -> tuple[Table, dict[str, float]]:
    contenders = {"bf16 matmul": matmul_peak(size), "bf16 convolution": convolution_peak(size)}
    said = interleaved(contenders, rounds)
    peaks = {name: statistics.median(values) for name, values in said.items()}
    rows = [[name, value / 1e12] for name, value in peaks.items()]
    each = {name: flops(size, name) / 1e9 for name in ("moco", "end_to_end", "bank")}
    work = ", ".join(f"{name} {value:.3g}" for name, value in each.items())
    about = (
        f"The convolutions of {size.model} at {size.side} and batch {size.batch}, forward and "
        "backward, channels last, cuDNN's algorithms timed and chosen (`cudnn.benchmark`): their "
        f"FLOPs over their time. GFLOPs of a step, an image: {work}."
    )
    columns = {"measured": "", "TFLOP/s": ".3g"}
    return Table("Peak", columns, rows, about, f"{rounds} rounds"), peaks


def step_section(size: Size, arguments: argparse.Namespace, peaks: dict[str, float]) -> Table:
    contenders: dict[str, tuple] = {
        "ssl_zoo": (our_step,),
        "ssl_zoo, train.compile": (our_step, "moco", 1, True),
        "ssl_zoo, bn_groups 8": (our_step, "moco", 8),
        "ssl_zoo, cudnn.benchmark": (autotuned_step,),
        "plain PyTorch": (plain_step,),
    }
    if size.device == "cpu":
        del contenders["ssl_zoo, train.compile"]  # minutes of a C++ compiler
    about = ""
    if arguments.fair:
        contenders["FAIR, as it ships (fp32)"] = (fair_step, arguments.fair, False)
        contenders["FAIR, bf16 and channels last"] = (fair_step, arguments.fair, True)
    else:
        about = "FAIR: no clone named (--fair), not measured."
    return speed_table("Step", size, contenders, arguments.rounds, peaks, about=about)


def data_section(size: Size, arguments: argparse.Namespace, peaks: dict[str, float]) -> Table:
    side, count = size.stored
    noise_set = {"type": "RandomImages", "side": side, "count": count}
    contenders = {f"uint8 {side}x{side} in memory": (with_data, noise_set)}
    for path in arguments.images:
        contenders[f"{path.name} ({dataset_at(path)['type']})"] = (with_data, dataset_at(path))
    return speed_table("Data", size, contenders, arguments.rounds, peaks)


def mechanisms_section(size: Size, arguments: argparse.Namespace, peaks: dict[str, float]) -> Table:
    names = {
        f"MoCo, K {size.queue}": "moco",
        f"end-to-end, {size.batch - 1} negatives": "end_to_end",
        f"memory bank of {size.num_samples}, K {size.negatives}": "bank",
    }
    contenders = {name: (our_step, mechanism) for name, mechanism in names.items()}
    return speed_table("Mechanisms", size, contenders, arguments.rounds, peaks, names)


def queue_section(size: Size, rounds: int) -> Table:
    def repeated(run: Callable[[], None]) -> Callable[[], float]:
        return lambda: seconds(lambda: [run() for _ in range(size.steps)]) / size.steps

    runs = {str(k): repeated(queue_pass(k, size.batch, size.on)) for k in size.queues}
    said = interleaved(runs, rounds)
    rows = [[int(k), 1e3 * statistics.median(values)] for k, values in said.items()]
    about = f"Batch {size.batch}, all that the queue adds."
    return Table("Queue", {"K": "", "ms": ".3f"}, rows, about, f"{rounds} rounds")


def knn_section(size: Size, rounds: int) -> Table:
    bank, queries, width = size.bank
    net = timm.create_model(size.model, num_classes=0, **size.options)
    net = net.to(size.on, memory_format=torch.channels_last)
    x = images(size).views[0]
    label = index = torch.zeros(size.batch, dtype=torch.int64)

    def extraction(precision: str) -> Callable[[], float]:
        def run() -> object:
            return extract(net, [(x, label, index)] * size.steps, size.on, precision)

        return lambda: size.steps * size.batch / seconds(run)

    said = interleaved({f"extract, {p}": extraction(p) for p in ("fp32", "bf16")}, rounds)
    rows = [[name, statistics.median(values), None] for name, values in said.items()]
    features = [Labeled(torch.randn(n, width), torch.arange(n) % 1000) for n in (bank, queries)]
    spent = seconds(lambda: knn.KNN(k=min(200, bank)).judge(*features))
    rows.append([f"vote, {queries} queries, bank {bank} x {width}", None, spent])
    columns = {"": "", "images/s": ".1f", "s": ".2f"}
    return Table("kNN", columns, rows, "The vote once.", f"{rounds} rounds")


SECTIONS = ("peak", "step", "data", "mechanisms", "queue", "knn")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME")
    add("--rounds", type=int, default=5)
    add("--batch", type=int, help=f"[{Size.batch}]")
    add("--fair", help="a clone of facebookresearch/moco")
    add("--images", type=Path, nargs="+", default=[], help="folders, of JPEGs or packed")
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--tiny", action="store_true", help="toy sizes, to test the script")
    add("--out", type=Path, help="a result file, JSON")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu.py: torch sees no CUDA device (--device cpu --tiny tests the script)")
    sizes = TINY if arguments.tiny else {}
    if arguments.batch:
        sizes = sizes | {"batch": arguments.batch}
    size = Size(device=arguments.device, **sizes)

    measured = Measured("gpu.py", sys.argv[1:] if argv is None else argv)
    peaks: dict[str, float] = {}
    for name in SECTIONS:
        if name not in arguments.only:
            continue
        if name == "peak":
            section, peaks = peak_section(size, arguments.rounds)
        elif name == "queue":
            section = queue_section(size, arguments.rounds)
        elif name == "knn":
            section = knn_section(size, arguments.rounds)
        else:
            make = {"step": step_section, "data": data_section, "mechanisms": mechanisms_section}
            section = make[name](size, arguments, peaks)
        measured.add(name, section)
        if size.on.type == "cuda":
            torch.cuda.empty_cache()
    measured.finish(arguments.out)


if __name__ == "__main__":
    main()
