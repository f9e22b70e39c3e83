"""The trainings of equality.py: one method by ours, by a plain loop, by lightly's parts.

python benchmarks/equality_workers.py '{"method": "moco", "by": "plain", "seed": 0, "epochs": 6}'

All of a seed start from the same weights (and MoCo from the same queue) and are shown the same
images through the same views at the same step; the views and the kNN evaluation are ours for all.
What is theirs is the training: networks, key encoder, queue, loss, optimizer, schedules. The
network is timm's as timm makes it, without our layers for CPUs. The line of JSON at the end is what
equality.py keeps.

Runs are in fp32, on one thread. There a few of a step's million activations lie so close to a
ReLU's zero that rounding decides their gradient; some decisions later the losses differ by
hundredths, though every step is right. So a short run may be in double precision: no activation is
as close as that, and the losses of equal steps stay equal.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from common import commit, machine  # noqa: E402

from ssl_zoo import config as configs  # noqa: E402
from ssl_zoo.core import Batch  # noqa: E402
from ssl_zoo.engine.hooks import Hook  # noqa: E402
from ssl_zoo.evaluation.base import NETWORK  # noqa: E402
from ssl_zoo.experiment import Subject, build_trainer, parse  # noqa: E402
from ssl_zoo.runs import RunFolder  # noqa: E402
from ssl_zoo.system import rng  # noqa: E402

CONFIG = ROOT / "configs" / "textures" / "moco_v1.yaml"
CPU = torch.device("cpu")
FIRST = 50  # steps whose losses are kept
AS_FLOAT = Tensor.float
MLP = "{type: MLP, hidden_features: 512, out_features: 128, batch_norm: true}"
# What a method sets in CONFIG.
RECIPES: dict[str, list[str]] = {
    "moco": [],
    "simclr": [
        "backbone.bn_groups=1",
        "method.symmetric=true",
        "method.head={type: MLP, out_features: 128}",
        "method.memory={type: EndToEnd, same_view_negatives: true, shuffle_bn: false}",
        "method.loss.temperature=0.2",
    ],
    "byol": [  # its BatchNorms want a batch: at 32 a run says little of the next
        "data.batch_size=128",
        "optimizer.lr=0.06",
        "backbone.bn_groups=1",
        f"method={{type: BYOL, head: {MLP}, predictor: {MLP}, momentum: 0.98}}",
        "schedules={method.momentum: {type: Cosine, final: 1.0}}",
    ],
}


@dataclass(frozen=True)
class Task:
    method: str
    by: str
    seed: int
    epochs: float
    double: bool = False


class Trained(NamedTuple):
    """A backbone's state_dict, the loss of each step, and of MoCo the key's and the queue."""

    backbone: dict[str, Tensor]
    losses: list[Tensor]
    key_backbone: dict[str, Tensor] | None = None
    queue: Tensor | None = None


class Start:
    """A run of ours at its first step, and what others need of it to start from there.

    Args:
        double: in double precision, for which `Tensor.float` has to be `float_or_double`.

    Attributes:
        settings: the resolved config, plain values.
        head, predictor: state_dicts; queue: [K, D].
    """

    def __init__(self, config: Path, overrides: list[str], folder: Path, double: bool = False):
        overrides = ["train.precision=fp32", "train.threads=1", "data.workers=0", *overrides]
        whole = parse(configs.load(config, overrides))
        self.sections, self.settings = whole.arguments(), whole.spelled_out()
        # The evaluation is for all alike, after the training.
        alone = configs.load(config, [*overrides, "evaluations.knn=null"])
        self.trainer = build_trainer(alone, CPU, RunFolder(folder), baselines=False)
        method = self.trainer.method
        self.dtype = torch.float64 if double else torch.float32
        method.to(self.dtype)
        self._views = self.trainer.data.batches
        self.trainer.data.batches = self._batches
        self._backbone = copy.deepcopy(method.encoder.backbone.model.state_dict())
        self.head = copy.deepcopy(method.encoder.head.state_dict())
        if hasattr(method, "predictor"):
            self.predictor = copy.deepcopy(method.predictor.state_dict())
        if hasattr(method, "memory") and hasattr(method.memory, "queue"):
            self.queue = method.memory.queue.keys.clone()
            self._shuffle_seed = method.memory.seed.clone()

    @property
    def steps(self) -> int:
        return self.trainer.total_steps

    def batches(self) -> Iterator[Batch]:
        return self._batches(0, self.steps, CPU)

    def _batches(self, *steps_and_device) -> Iterator[Batch]:
        for batch in self._views(*steps_and_device):
            yield batch._replace(views=[view.to(self.dtype) for view in batch.views])

    def filled(self, module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
        module.to(self.dtype).load_state_dict(weights)
        return module

    def order(self, step: int, n: int) -> Tensor:
        """The order in which ours encodes the keys of a step, [n] int64."""
        return rng.permutation(n, self._shuffle_seed, torch.tensor(step), "shuffle")

    def backbone(self) -> nn.Module:
        """timm's network with the first weights: images [N, C, H, W] -> features [N, F]."""
        block = self.settings["backbone"]
        norm = partial(GroupedBatchNorm2d, groups=block["bn_groups"])
        options = {"in_chans": block["in_chans"], "num_classes": 0, "norm_layer": norm}
        network = timm.create_model(block["name"], **options, **block["options"])
        return self.filled(network, self._backbone)

    def sgd(self, *modules: nn.Module) -> torch.optim.SGD:
        block = self.settings["optimizer"]
        settings = {name: block[name] for name in ("lr", "momentum", "weight_decay")}
        return torch.optim.SGD([p for m in modules for p in m.parameters()], **settings)

    def minimized(
        self, loss_of: Callable[[int, Batch], Tensor], *modules: nn.Module
    ) -> list[Tensor]:
        """Steps on a loss of step and batch, in torch's own order, with its cosine: the losses."""
        optimizer = self.sgd(*modules)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        losses = []
        for step, batch in enumerate(self.batches()):
            loss = loss_of(step, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.detach())
        return losses

    def judge(self, weights: dict[str, Tensor]) -> dict[str, Any]:
        """The result of our kNN evaluation of a backbone with these weights."""
        backbone = self.trainer.method.encoder.backbone.to(torch.float32)
        backbone.model.load_state_dict(weights)
        part = self.sections["evaluations"]["knn"]
        subject = Subject(self.sections, {NETWORK: backbone})
        ((_, result, _),) = subject.evaluate({"knn": part}, CPU)
        return result


def float_or_double(x: Tensor) -> Tensor:
    """`Tensor.float`, by which ours leaves autocast, but for doubles."""
    return x if x.dtype == torch.float64 else AS_FLOAT(x)


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """As on `groups` processes without SyncBatchNorm: each part of the batch normalized alone."""

    def __init__(self, width: int, groups: int, **place):
        super().__init__(width, **place)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(self.groups) if self.training else [x]
        return torch.cat([nn.BatchNorm2d.forward(self, part) for part in parts])


# Ours.


def ours(start: Start) -> Trained:
    losses: list[Tensor] = []

    class Note(Hook):
        def after_step(self, trainer, batch: Batch, out: dict[str, Tensor]) -> None:
            losses.append(out["loss"])

    start.trainer.hooks["note"] = Note()
    start.trainer.fit()
    method = start.trainer.method
    weights = method.encoder.backbone.model.state_dict()
    if not hasattr(start, "queue"):
        return Trained(weights, losses)
    key = method.memory.key_encoder.encoder.backbone.model.state_dict()
    return Trained(weights, losses, key, method.memory.queue.keys)


# By a plain loop.


def algorithm_1(start: Start) -> Trained:
    """MoCo's Algorithm 1 (arXiv:1911.05722), line by line, with ShuffleBN (section 3.3)."""
    t = start.settings["method"]["loss"]["temperature"]
    m = start.settings["method"]["memory"]["momentum"]
    linear = nn.Linear(*reversed(start.head["layers.0.weight"].shape))
    start.filled(linear, {k.removeprefix("layers.0."): x for k, x in start.head.items()})
    f_q = nn.Sequential(start.backbone(), linear)
    f_k = copy.deepcopy(f_q).requires_grad_(False)
    queue, oldest = start.queue.clone(), 0  # [K, D]
    optimizer = start.sgd(f_q)
    lr = optimizer.param_groups[0]["lr"]
    losses = []
    for step, batch in enumerate(start.batches()):
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / start.steps)) / 2
        x_q, x_k = batch.views  # [N, C, H, W]
        q = F.normalize(f_q(x_q), dim=1)  # [N, D]
        order = start.order(step, len(x_k))
        with torch.no_grad():
            k = F.normalize(f_k(x_k[order]), dim=1)[order.argsort()]  # [N, D]
        positive = (q * k).sum(dim=1, keepdim=True)  # [N, 1]
        negative = q @ queue.T  # [N, K]
        logits = torch.cat([positive, negative], dim=1)  # [N, 1 + K]
        loss = F.cross_entropy(logits / t, torch.zeros(len(q), dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for p_k, p_q in zip(f_k.parameters(), f_q.parameters(), strict=True):
                p_k.copy_(m * p_k + (1 - m) * p_q)
        queue[oldest : oldest + len(k)] = k  # the batch divides K
        oldest = (oldest + len(k)) % len(queue)
        losses.append(loss.detach())
    return Trained(f_q[0].state_dict(), losses, f_k[0].state_dict(), queue)


# By lightly's parts, in the order of its documented examples in plain PyTorch.


def lightly_moco(start: Start) -> Trained:
    """Other than in ours: lightly's own draws for ShuffleBN; the key encoder moves at the head of
    a step and not at the end of the one before, and the queue is written in the loss, after it was
    read and before the optimizer's step: the same sequence of weights and keys.

    Its head for MoCo is v2's, so v1's single layer is its `ProjectionHead` of one block.
    """
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import ProjectionHead
    from lightly.models.utils import (
        batch_shuffle,
        batch_unshuffle,
        deactivate_requires_grad,
        update_momentum,
    )

    m = start.settings["method"]["memory"]["momentum"]
    backbone = start.backbone()
    head = start.filled(
        ProjectionHead([(*reversed(start.head["layers.0.weight"].shape), None, None)]), start.head
    )
    key_backbone, key_head = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(key_backbone)
    deactivate_requires_grad(key_head)
    temperature = start.settings["method"]["loss"]["temperature"]
    criterion = NTXentLoss(temperature, memory_bank_size=tuple(start.queue.shape)).to(start.dtype)
    criterion.memory_bank.bank.copy_(start.queue)  # its own are random unit vectors as well

    def loss_of(step: int, batch: Batch) -> Tensor:
        update_momentum(backbone, key_backbone, m=m)
        update_momentum(head, key_head, m=m)
        x_q, x_k = batch.views
        query = head(backbone(x_q))
        x_k, shuffle = batch_shuffle(x_k)
        key = batch_unshuffle(key_head(key_backbone(x_k)).detach(), shuffle)
        return criterion(query, key)

    losses = start.minimized(loss_of, backbone, head)
    return Trained(
        backbone.state_dict(), losses, key_backbone.state_dict(), criterion.memory_bank.bank
    )


def lightly_simclr(start: Start) -> Trained:
    """Its head would have BatchNorms by default; that is switched off here as in ours."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    backbone = start.backbone()
    hidden, width = start.head["layers.0.weight"].shape
    out = len(start.head["layers.2.weight"])
    head = start.filled(SimCLRProjectionHead(width, hidden, out, batch_norm=False), start.head)
    criterion = NTXentLoss(start.settings["method"]["loss"]["temperature"])

    def loss_of(step: int, batch: Batch) -> Tensor:
        x_0, x_1 = batch.views
        return criterion(head(backbone(x_0)), head(backbone(x_1)))

    losses = start.minimized(loss_of, backbone, head)
    return Trained(backbone.state_dict(), losses)


def lightly_byol(start: Start) -> Trained:
    """Other than in ours: the target moves at the head of a step, not at the end of the one before.

    The two directions are summed as in the paper's equation 2, where lightly's example takes a
    quarter of that: 2 - 2 cos each and not -cos / 2. Else one lr would mean two things.
    """
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.utils.scheduler import cosine_schedule

    m = start.settings["method"]["momentum"]
    backbone = start.backbone()
    hidden, width = start.head["layers.0.weight"].shape
    out = len(start.head["layers.3.weight"])
    head = start.filled(BYOLProjectionHead(width, hidden, out), start.head)
    predictor = BYOLPredictionHead(out, len(start.predictor["layers.0.weight"]), out)
    start.filled(predictor, start.predictor)
    target_backbone, target_head = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(target_backbone)
    deactivate_requires_grad(target_head)
    criterion = NegativeCosineSimilarity()

    def loss_of(step: int, batch: Batch) -> Tensor:
        # Its schedule ends at `max_steps - 1`; the first update changes nothing.
        now = cosine_schedule(max(step - 1, 0), start.steps + 1, m, 1.0)
        update_momentum(backbone, target_backbone, m=now)
        update_momentum(head, target_head, m=now)
        x_0, x_1 = batch.views
        p_0, p_1 = predictor(head(backbone(x_0))), predictor(head(backbone(x_1)))
        z_0, z_1 = (target_head(target_backbone(x)).detach() for x in (x_0, x_1))
        return 4 + 2 * (criterion(p_0, z_1) + criterion(p_1, z_0))

    losses = start.minimized(loss_of, backbone, head, predictor)
    return Trained(backbone.state_dict(), losses)


OURS = "ours"
CONTENDERS: dict[str, dict[str, Callable[[Start], Trained]]] = {
    "moco": {OURS: ours, "Algorithm 1": algorithm_1, "lightly": lightly_moco},
    "simclr": {OURS: ours, "lightly": lightly_simclr},
    "byol": {OURS: ours, "lightly": lightly_byol},
}


def run(task: Task, folder: Path) -> dict[str, Any]:
    """Trains and judges; a line of runs.jsonl."""
    overrides = [*RECIPES[task.method], f"seed={task.seed}", f"train.epochs={task.epochs}"]
    if task.double:
        Tensor.float = float_or_double
    start = Start(CONFIG, overrides, folder, task.double)
    began = time.perf_counter()
    trained = CONTENDERS[task.method][task.by](start)
    seconds = time.perf_counter() - began
    line = {
        **vars(task),
        "losses": [float(loss) for loss in trained.losses[:FIRST]],
        "steps": len(trained.losses),
        "seconds": round(seconds, 1),
        "commit": commit(),
        "date": str(date.today()),
        "machine": machine(),
    }
    if task.double:
        return line
    result = start.judge(trained.backbone)
    judged = {"knn": result["metrics"]["top1"], "evaluation": result["hash"]}
    return line | judged | {"protocol": result["protocol"]}


def end_with_parent() -> None:
    """A parent that is killed closes our standard input."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    end_with_parent()
    # What the trainer prints goes to the log; the parent reads the last line alone.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    task = Task(**json.loads(sys.argv[1]))
    torch.manual_seed(task.seed)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(task, Path(folder))), file=replies, flush=True)


if __name__ == "__main__":
    main()
