"""The contenders of peers.py: each trains MoCo v2 in its own process, and counts.

python benchmarks/peer_workers.py '{"contender": "plain", ...}'

A contender is a function `train(task, tick)` that trains forever, the way its own documentation
says, and calls `tick(images)` after each step. `Clock.tick` does the rest: it holds the loop until
the parent writes a line, times a round, and answers with a line of JSON. So a training loop that
belongs to somebody's framework is measured like one written out here.

This file runs under the interpreters of the peers too: it imports ssl_zoo for ssl_zoo alone.
"""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

ROOT = Path(__file__).parents[1]
DIM, MOMENTUM, TEMPERATURE = 128, 0.999, 0.2
GRAY = ([0.286], [0.353])
COLOR = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
Tick = Callable[[int], None]


@dataclass
class Task:
    """What one contender is to do; the same for all but `contender`, `precision` and `workers`.

    Args:
        model: timm's name.
        options: of timm's model, as `backbone.options` in a YAML file.
        side: of a view, in pixels.
        data: an .npy file of uint8 images [n, H, W] or [n, H, W, 3], or a folder train/CLASS/*.jpg.
        queue: K.
        workers: of the peers' data loaders; ssl_zoo chooses its own.
        folder: scratch, empty.
        fair: a clone of facebookresearch/moco, for `fair` alone.
    """

    contender: str
    precision: str
    model: str
    options: dict
    small_images: bool
    channels: int
    side: int
    data: str
    batch: int
    queue: int
    workers: int
    folder: str
    fair: str | None = None

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

    def backbone(self, num_classes: int = 0) -> nn.Module:
        """The network of all contenders; the stem of small images is the one ssl_zoo makes."""
        if self.model == "conv4":
            return Conv4(self.channels, num_classes)
        net = timm.create_model(
            self.model, num_classes=num_classes, in_chans=self.channels, **self.options
        )
        if self.small_images:
            net.conv1 = nn.Conv2d(self.channels, net.conv1.out_channels, 3, padding=1, bias=False)
            net.maxpool = nn.Identity()
        return net


class Conv4(nn.Module):
    """Four convolutions of 64 filters, stride 2: MAML's network for 28 x 28 (arXiv:1703.03400)."""

    num_features = 64

    def __init__(self, channels: int, num_classes: int = 0):
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, 64, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(64),
                    nn.ReLU(inplace=True),
                )
                for before in (channels, 64, 64, 64)
            )
        )
        self.fc = nn.Linear(64, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x).mean(dim=(2, 3)))


# The clock.


class Clock:
    """Rounds of a loop that does not know of them.

    A round begins with a quarter of its length and at least one step that are not counted:
    memory that lay idle comes back, caches fill.

    Workers of a data loader go on while the loop is held, until their queues are full, so counting
    begins with some batches that cost nothing. Therefore it also ends only when this process and
    its workers have come to rest, which is when the queues are full again: as many batches have
    been made as were used. Where the network is the slower part this adds nothing; where the data
    is, it adds what was given. And nobody's workers run in another contender's round.
    """

    LEAD = 0.25  # of a round's length
    REST = 0.2  # seconds without work that count as rest
    SPIN = 0.05  # seconds for which threads may wait for more before they sleep: not work
    IDLE = 0.03  # share of one core that is still rest: Python's timers, sleeping pools

    def __init__(self, replies):
        self.replies = replies
        self.counts = True  # so that the first step, which builds things, ends a round of one
        self.begin(0.0)

    def begin(self, length: float) -> None:
        self.length, self.images, self.steps = length, 0, 0
        self.machine, self.process = machine_seconds(), cpu_seconds()
        self.started = time.perf_counter()

    def tick(self, images: int) -> None:
        """After each step."""
        now = time.perf_counter()
        self.images += images
        self.steps += 1
        if now - self.started < self.length:
            return
        rested = self.rest(now)
        if not self.counts:  # warmed up
            self.counts = True
            return self.begin(self.length / self.LEAD)
        length = self.answer(now, rested)
        self.counts = False
        self.begin(length * self.LEAD)

    def answer(self, now: float, rested: float) -> float:
        """Tells the parent of this round; returns the length of the next."""
        seconds = rested - self.started
        others = machine_seconds() - self.machine - (cpu_seconds() - self.process)
        values = {
            "images": self.images,
            "steps": self.steps,
            "seconds": seconds,
            "refill": rested - now,  # the part of `seconds` in which data workers alone were busy
            "others": max(0.0, others) / seconds / os.cpu_count(),  # their share of the machine
            "peak_gb": peak_memory(),
        }
        self.replies.write(json.dumps(values) + "\n")
        self.replies.flush()
        line = sys.stdin.readline()
        if not line:
            sys.exit()
        return float(line)

    def rest(self, now: float) -> float:
        """Waits for the end of all work here; the moment of it, `now` or later."""
        last, used = now, cpu_seconds()
        seen = time.perf_counter()
        while seen - last < self.REST:
            time.sleep(0.02)
            then, before = seen, used
            seen, used = time.perf_counter(), cpu_seconds()
            if used - before > self.IDLE * (seen - then):
                last = seen
        return last if last - now > self.SPIN else now


def cpu_seconds() -> float:
    """Used by this process and its children until now."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):  # it ended just now
            total += time.clock_gettime((~child.pid << 3) | 2)  # Linux: the clock of a process
    return total


def machine_seconds() -> float:
    """Processor time that was not idle, of all cores, and what a host took from this machine."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle, waiting = fields[3:5]
    return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def peak_memory() -> float:
    """GB of RAM that this process ever held at once; its data workers not counted."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


# Data and views of the peers: PIL images, one at a time, by torchvision.


class Arrays(Dataset):
    """Images of an .npy file as PIL images."""

    def __init__(self, path: str, transform: Callable):
        self.images, self.transform = np.load(path, mmap_mode="r"), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), 0


def images(task: Task, transform: Callable) -> Dataset:
    if task.data.endswith(".npy"):
        return Arrays(task.data, transform)
    dataset = ImageFolder(f"{task.data}/train", transform)
    dataset.samples *= 1000  # few files: without this, new workers would start every few steps
    return dataset


def loader(task: Task, transform: Callable, **options) -> DataLoader:
    return DataLoader(
        images(task, transform),
        batch_size=task.batch,
        shuffle=True,
        drop_last=True,
        num_workers=task.workers,
        persistent_workers=task.workers > 0,
        **options,
    )


def endless(batches: DataLoader) -> Iterator:
    while True:
        yield from batches


class Blur:
    """Gaussian blur of a PIL image, sigma in 0.1 .. 2 (arXiv:2002.05709)."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class Two:
    """Two views of an image."""

    def __init__(self, view: Callable):
        self.view = view

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [self.view(image), self.view(image)]


def view(task: Task) -> transforms.Compose:
    """MoCo v2's (arXiv:2003.04297), without operations on color where there is none."""
    gray = task.channels == 1
    jitter = (
        transforms.ColorJitter(0.4, 0.4) if gray else transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    )
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(task.side, scale=(0.2, 1.0)),
            transforms.RandomApply([jitter], p=0.8),
            *([] if gray else [transforms.RandomGrayscale(p=0.2)]),
            transforms.RandomApply([Blur()], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(*(GRAY if gray else COLOR)),
        ]
    )


def sgd(parameters) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.03, momentum=0.9, weight_decay=1e-4)


# The contenders.


def ssl_zoo(task: Task, tick: Tick) -> None:
    """`ssl-zoo train CONFIG key=value ...`, with one hook more."""
    sys.path.insert(0, str(ROOT))
    from ssl_zoo import config
    from ssl_zoo.backbones import Backbone
    from ssl_zoo.config import BACKBONES, DATASETS
    from ssl_zoo.data import InMemory
    from ssl_zoo.engine.hooks.base import Hook
    from ssl_zoo.experiment import build_trainer
    from ssl_zoo.runs import RunFolder
    from ssl_zoo.system import distributed

    @BACKBONES.register_module(name="conv4")
    class Network(Conv4, Backbone):
        def __init__(self, *, in_chans: int):
            super().__init__(in_chans)

    @DATASETS.register_module()
    class NumPy(InMemory):
        def __init__(self, split: str, *, path: str):
            pixels = torch.from_numpy(np.load(path))
            pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
            super().__init__(pixels, torch.full((len(pixels),), -1), 1, split)

    class Tell(Hook):
        def after_step(self, trainer, batch, out) -> None:
            tick(len(batch.index))

    in_memory = task.data.endswith(".npy")
    dataset = (
        f"type: NumPy, path: {task.data}" if in_memory else f"type: ImageFolder, root: {task.data}"
    )
    backbone = [
        f"backbone.name={task.model}",
        f"backbone.in_chans={task.channels}",
        f"backbone.small_images={json.dumps(task.small_images)}",
        f"backbone.options={json.dumps(task.options)}",
        "backbone.bn_groups=1",
    ]
    if task.model == "conv4":
        backbone = [f"backbone={{type: conv4, in_chans: {task.channels}}}"]
    overrides = [
        f"data.dataset={{{dataset}}}",
        f"data.views.ops.crop.size={task.side}",
        f"data.batch_size={task.batch}",
        *backbone,
        f"method.memory.size={task.queue}",
        f"method.memory.momentum={MOMENTUM}",
        f"train.precision={task.precision}",
        "train.epochs=100000",
        "checkpoint.every_epochs=100000",  # no peer writes any
        "evaluations.knn=null",
    ]
    if in_memory and task.channels == 3:
        overrides += ["data.clean.ops.resize=null", "data.clean.ops.crop=null"]
    file = "fashion_mnist/moco_v2.yaml" if task.channels == 1 else "imagenet/moco_v2.yaml"
    cfg = config.load(ROOT / "configs" / file, overrides)
    trainer = build_trainer(cfg, distributed.start("cpu"), RunFolder(task.folder))
    trainer.hooks["tell"] = Tell()
    trainer.fit()


def plain(task: Task, tick: Tick) -> None:
    """What one writes in an afternoon: torchvision's transforms, a loader, a loop, a queue."""

    def network() -> nn.Module:
        body = task.backbone()
        width = body.num_features
        return nn.Sequential(body, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, DIM))

    query = network()
    key = copy.deepcopy(query).requires_grad_(False)
    queue = F.normalize(torch.randn(task.queue, DIM), dim=1)  # [K, D]
    pointer = 0
    optimizer = sgd(query.parameters())
    for (x_q, x_k), _ in endless(loader(task, Two(view(task)))):
        with task.autocast():
            q = F.normalize(query(x_q), dim=1)  # [N, D]
            with torch.no_grad():
                for p, m in zip(query.parameters(), key.parameters(), strict=True):
                    m.mul_(MOMENTUM).add_(p, alpha=1 - MOMENTUM)
                k = F.normalize(key(x_k), dim=1)  # [N, D]
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1)  # [N, 1 + K]
            loss = F.cross_entropy(logits / TEMPERATURE, torch.zeros(len(q), dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue[(pointer + torch.arange(len(k))) % len(queue)] = k.float()
        pointer = (pointer + len(k)) % len(queue)
        tick(len(q))


def lightly(task: Task, tick: Tick) -> None:
    """lightly's documented MoCo example in plain PyTorch, with MoCo v2's transform."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform

    class MoCo(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = task.backbone()
            width = self.backbone.num_features
            self.projection_head = MoCoProjectionHead(width, width, DIM)
            self.backbone_momentum = copy.deepcopy(self.backbone)
            self.projection_head_momentum = copy.deepcopy(self.projection_head)
            deactivate_requires_grad(self.backbone_momentum)
            deactivate_requires_grad(self.projection_head_momentum)

        def forward(self, x: Tensor) -> Tensor:
            return self.projection_head(self.backbone(x).flatten(start_dim=1))

        def forward_momentum(self, x: Tensor) -> Tensor:
            key = self.backbone_momentum(x).flatten(start_dim=1)
            return self.projection_head_momentum(key).detach()

    model = MoCo()
    # MoCoV2Transform works on colors; gray images take torchvision's views.
    color = task.channels == 3
    transform = MoCoV2Transform(input_size=task.side) if color else Two(view(task))
    criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(task.queue, DIM))
    optimizer = sgd(model.parameters())
    for (x_q, x_k), _ in endless(loader(task, transform)):
        update_momentum(model.backbone, model.backbone_momentum, m=MOMENTUM)
        update_momentum(model.projection_head, model.projection_head_momentum, m=MOMENTUM)
        with task.autocast():
            loss = criterion(model(x_q), model.forward_momentum(x_k))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        tick(len(x_q))


def fair(task: Task, tick: Tick) -> None:
    """FAIR's own builder in the loop of its main_moco.py, with one process of gloo.

    It speaks to a GPU; here `.cuda()` gives back the tensor itself.
    """
    if task.fair is None:
        raise SystemExit("fair: --fair names a clone of facebookresearch/moco")
    sys.path.insert(0, task.fair)
    from moco.builder import MoCo

    Tensor.cuda = lambda self, *_, **__: self
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    model = MoCo(
        lambda num_classes: task.backbone(num_classes), DIM, task.queue, MOMENTUM, TEMPERATURE, True
    )
    model = nn.parallel.DistributedDataParallel(model)
    criterion = nn.CrossEntropyLoss()
    optimizer = sgd(model.parameters())
    for (x_q, x_k), _ in endless(loader(task, Two(view(task)))):
        with task.autocast():
            output, target = model(im_q=x_q, im_k=x_k)
            loss = criterion(output, target)
        loss.item()  # its meters read it at each step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tick(len(x_q))


class Reshaped:
    """A loader whose batches take the form that a framework asks for."""

    def __init__(self, batches: DataLoader, form: Callable):
        self.batches, self.form = batches, form

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator:
        return (self.form(views, label) for views, label in self.batches)


def lightning(pl, task: Task, tick: Tick, module, batches: Reshaped, *callbacks) -> None:
    """Trains under Lightning, of whichever version `pl` is, without its loggers."""

    class Tell(pl.Callback):
        def on_train_batch_end(self, *_) -> None:
            tick(task.batch)

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=100_000,
        precision={"fp32": 32, "bf16": "bf16-mixed" if pl.__version__ >= "2" else "bf16"}[
            task.precision
        ],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=task.folder,
        callbacks=[*callbacks, Tell()],
    )
    trainer.fit(module, batches)


def stable_pretraining(task: Task, tick: Tick) -> None:
    """Its MoCov2 and Module, its EMA callback, Lightning."""
    import lightning as pl
    from stable_pretraining.callbacks import TeacherStudentCallback
    from stable_pretraining.methods import MoCov2

    class Network(nn.Module):
        """MoCov2 measures its network's width with an image of three channels, always."""

        def __init__(self):
            super().__init__()
            self.net = task.backbone()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x[:, : task.channels])

    class Run(MoCov2):
        def forward(self, batch: dict, stage: str) -> dict:
            return {"loss": super().forward(*batch["views"]).loss}

    net = Network()
    width = net.net.num_features
    model = Run(net, (width, DIM), task.queue, TEMPERATURE, MOMENTUM, MOMENTUM)
    # Its queue starts empty, and scores against a few keys cost less than the recipe does.
    model.queue.append(F.normalize(torch.randn(task.queue, DIM), dim=1))
    model.optim = {
        "optimizer": {"type": "SGD", "lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4},
        "scheduler": "ConstantLR",
    }
    batches = Reshaped(loader(task, Two(view(task))), lambda views, label: {"views": views})
    lightning(pl, task, tick, model, batches, TeacherStudentCallback())


def solo_learn(task: Task, tick: Tick) -> None:
    """Its MoCoV2Plus under the Lightning of its time."""
    import pytorch_lightning as pl
    import torchvision

    def network(**_) -> nn.Module:
        net = task.backbone()
        net.inplanes = net.num_features  # where it looks for the width
        return net

    torchvision.models.resnet18 = network  # it knows torchvision's networks alone
    from solo.methods.mocov2plus import MoCoV2Plus

    class Run(MoCoV2Plus):
        def on_train_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0) -> None:
            super().on_train_batch_end(outputs, batch, batch_idx, dataloader_idx)

    width = task.backbone().num_features
    model = Run(
        proj_output_dim=DIM,
        proj_hidden_dim=width,
        temperature=TEMPERATURE,
        queue_size=task.queue,
        base_tau_momentum=MOMENTUM,
        final_tau_momentum=MOMENTUM,
        momentum_classifier=False,
        encoder="resnet18",
        num_classes=10,
        backbone_args={},
        max_epochs=100_000,
        batch_size=task.batch,
        optimizer="sgd",
        lars=False,
        lr=0.03,
        weight_decay=1e-4,
        classifier_lr=0.03,
        exclude_bias_n_norm=False,
        accumulate_grad_batches=1,
        extra_optimizer_args={"momentum": 0.9},
        scheduler="none",
        min_lr=0.0,
        warmup_start_lr=0.0,
        warmup_epochs=0,
        num_large_crops=2,
        num_small_crops=0,
    )
    batches = Reshaped(loader(task, Two(view(task))), lambda views, label: [label, views, label])
    lightning(pl, task, tick, model, batches)


CONTENDERS = {
    f.__name__: f for f in (ssl_zoo, plain, lightly, fair, stable_pretraining, solo_learn)
}


def main() -> None:
    # Whatever a peer prints goes to the log; the parent reads a line of its own.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    task = Task(**json.loads(sys.argv[1]))
    torch.manual_seed(0)
    CONTENDERS[task.contender](task, Clock(replies).tick)


if __name__ == "__main__":
    main()
