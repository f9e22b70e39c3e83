"""Linear probes on cached features: dozens of learning rates, trained side by side in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ssl_zoo.config import (
    EVALUATIONS,
    ConfigError,
    HalfOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
)
from ssl_zoo.data import Splits
from ssl_zoo.evaluation.base import UNTRAINED, Evaluation, Outcome, Rows
from ssl_zoo.evaluation.features import Labeled, Precision, check_usable
from ssl_zoo.system import rng

Share = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
# 0.001 to 100. What lr is right depends on the features' scale: MoCo's needs 30.
LRS = [round(10 ** (i / 6 - 3), 6) for i in range(31)]
VIEWS = "clean, cached; not the augmented protocol of arXiv:1911.05722, section 4.1"
LOGITS_AT_ONCE = 2**24
LOWER = "lower learning rates needed"


class Probes:
    """P linear classifiers of F features into C classes, each with a lr and a weight decay.

    Attributes:
        weight: [F, P C], a probe's C columns beside each other; bias: [P C]. They start at zero:
            the loss is convex, so no random start is needed and nothing depends on one.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        lrs: Sequence[float],
        weight_decays: Sequence[float],
        device: torch.device | str = "cpu",
    ):
        self.shape = (len(lrs), classes)
        self.lr, self.weight_decay = (
            torch.tensor(values, device=device).repeat_interleave(classes)  # [P C]
            for values in (lrs, weight_decays)
        )
        self.weight = torch.zeros(width, len(self.lr), device=device)
        self.bias = torch.zeros_like(self.lr)

    def logits(self, x: Tensor) -> Tensor:
        """[n, F] -> [n, P, C]."""
        return torch.addmm(self.bias, x, self.weight).unflatten(1, self.shape)

    def probabilities(self, x: Tensor) -> Tensor:
        """[n, F] -> [n, P, C], none below e^-60 of the largest.

        A probe of a high lr would give denormal numbers, which make all take 2.5 times as long on
        a Xeon.
        """
        logits = self.logits(x)
        return logits.sub_(logits.amax(2, keepdim=True)).clamp_(min=-60.0).softmax(2)

    def fit(
        self, x: Tensor, y: Tensor, *, epochs: int, batch_size: int, momentum: float, seed: int
    ) -> Probes:
        """v <- mu v + dL/dw + lambda w, w <- w - lr v, as torch.optim.SGD; returns itself.

        The loss is cross-entropy. lr falls to 0 along half a cosine, step by step. All probes see
        the same batches, whose order is a function of seed and epoch, so a probe ends where it
        would have ended alone. The gradient is written out: one product X^T G serves all.
        """
        n, (probes, _) = len(x), self.shape
        total = epochs * math.ceil(n / batch_size)
        state = [(w, torch.zeros_like(w)) for w in (self.weight, self.bias)]
        minus_one = x.new_tensor(-1.0)
        step = 0
        for epoch in range(epochs):
            order = rng.permutation(n, seed, "linear", epoch, device=x.device)  # [n]
            for rows in order.split(batch_size):
                inputs, target = x[rows], y[rows]  # [B, F], [B]
                gradient = self.probabilities(inputs)  # [B, P, C]; less 1 where the label is
                label = target.view(-1, 1, 1).expand(-1, probes, 1)  # [B, P, 1]
                gradient.scatter_add_(2, label, minus_one.expand_as(label))
                gradient = gradient.flatten(1) / len(rows)  # [B, P C]
                scale = (1 + math.cos(math.pi * step / total)) / 2
                for (w, v), g in zip(state, (inputs.T @ gradient, gradient.sum(0)), strict=True):
                    v.mul_(momentum).add_(g).addcmul_(self.weight_decay, w)
                    w.addcmul_(self.lr, v, value=-scale)
                step += 1
        return self

    def accuracy(self, x: Tensor, y: Tensor) -> Tensor:
        """Top-1 and top-5 of each probe in %, [P, 2]; nan for a probe that diverged."""
        probes, classes = self.shape
        hits = x.new_zeros(probes, min(5, classes), dtype=torch.float64)
        at_once = max(1, LOGITS_AT_ONCE // len(self.lr))
        for inputs, target in zip(x.split(at_once), y.split(at_once), strict=True):
            best = self.logits(inputs).topk(hits.shape[1], dim=2).indices  # [n, P, 5]
            hits += (best == target.view(-1, 1, 1)).sum(0)
        finite = self.weight.isfinite().all(0) & self.bias.isfinite()
        hits[~finite.view(self.shape).all(1)] = math.nan
        return 100 * hits.cumsum(1)[:, [0, -1]] / len(x)


def standardized(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Every feature of `train` [n, F] with mean 0 and variance 1; the others by the same map.

    Constant features become 0 in `train`.
    """
    deviation, mean = torch.std_mean(train, 0, correction=0)  # [F]
    return [(x - mean) / deviation.clamp(min=1e-6) for x in (train, *others)]


@EVALUATIONS.register_module()
class Linear(Evaluation):
    """Linear probes on clean features, cached: the best learning rate of many.

    Every pair of lr and weight decay is a probe. All are trained at once without a held-out part
    of the training split; the best on that, of equals the first, is trained again on the whole of
    it and scored on the test split, which nothing else has seen.

    Args:
        epochs, batch_size, momentum: MoCo's by default (arXiv:1911.05722, section 4.1), whose lr
            falls in steps where it falls along a cosine here.
        held_out: this fraction of the training split, drawn by `seed`, selects.
        standardize: bring each feature to mean 0 and variance 1 over the training split.
        train_limit, test_limit: images used of the split; null: all.
        precision: of the backbone's pass.
    """

    baselines: ClassVar = {UNTRAINED: None}

    def __init__(
        self,
        *,
        lrs: list[PositiveFloat] = LRS,
        weight_decays: list[NonNegativeFloat] = [0.0],  # noqa: B006
        epochs: PositiveInt = 100,
        batch_size: PositiveInt = 256,
        momentum: HalfOpenUnitInterval = 0.9,
        held_out: Share = 0.1,
        standardize: bool = False,
        seed: NonNegativeInt = 0,
        train_limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
        precision: Precision = "fp32",
    ):
        self.pairs = [(lr, weight_decay) for weight_decay in weight_decays for lr in lrs]
        self.fit = {"epochs": epochs, "batch_size": batch_size, "momentum": momentum, "seed": seed}
        self.held_out, self.standardize = held_out, standardize
        self.limits, self.precision = (train_limit, test_limit), precision

    @staticmethod
    def validate(*, lrs: list[float], weight_decays: list[float], **_) -> None:
        for name, values in (("lrs", lrs), ("weight_decays", weight_decays)):
            if not values:
                raise ConfigError(name, "no values", found="[]", expected="at least one")

    def check(self, splits: Splits) -> None:
        check_usable("linear", train_split=splits.split("train"), test_split=splits.split("test"))

    def judge(self, train: Labeled, test: Labeled, device: torch.device | str = "cpu") -> Outcome:
        """'top1' and 'top5' in %, and for each test image the softmax of its prediction.

        As details 'lr' and 'weight_decay', the selected, and 'probes', for each pair its
        'held_out_top1', None if it diverged. The features have to fit the device.

        Raises:
            ValueError: unknown labels, features that are not finite, nothing left to train on, all
                probes diverged.
        """
        check_usable("linear", train_split=train, test_split=test)
        n = len(train.labels)
        selecting = max(1, round(self.held_out * n))
        if selecting >= n:
            raise ValueError(f"linear: {selecting} of {n} training images held out leaves none")
        classes = 1 + int(max(train.labels.max(), test.labels.max()))
        (x, y), (inputs, target) = ([t.to(device) for t in split[:2]] for split in (train, test))
        if self.standardize:
            x, inputs = standardized(x, inputs)

        def trained(pairs: list[tuple[float, float]], x: Tensor, y: Tensor) -> Probes:
            probes = Probes(x.shape[1], classes, *zip(*pairs, strict=True), device=device)
            return probes.fit(x, y, **self.fit)

        order = rng.permutation(n, self.fit["seed"], "held out", device=device)
        held, kept = order[:selecting], order[selecting:]
        scores = trained(self.pairs, x[kept], y[kept]).accuracy(x[held], y[held])[:, 0]  # [P]
        if scores.isnan().all():
            raise ValueError(f"linear: all {len(self.pairs)} probes diverged; {LOWER}")
        lr, weight_decay = chosen = self.pairs[int(scores.nan_to_num(-1.0).argmax())]
        final = trained([chosen], x, y)
        top1, top5 = final.accuracy(inputs, target)[0].tolist()
        if math.isnan(top1):
            raise ValueError(f"linear: lr {lr:g}, the best, diverged on the whole split; {LOWER}")
        probes = [
            {"lr": lr, "weight_decay": wd, "held_out_top1": None if math.isnan(s) else s}
            for (lr, wd), s in zip(self.pairs, scores.tolist(), strict=True)
        ]
        details = {"lr": lr, "weight_decay": weight_decay, "probes": probes}
        surest = final.logits(inputs)[:, 0].softmax(1).max(1)
        rows = Rows.of(test, surest.indices, surest.values)
        protocol = {
            "views": VIEWS,
            "train": f"{n} images",
            "test": f"{len(target)} images",
            "selection": f"{len(self.pairs)} probes on {selecting} held-out training images, "
            "the best trained again on all",
            **self.fit,
            "schedule": "cosine",
            "standardize": self.standardize,
            "classes": classes,
            "precision": self.precision,
        }
        return Outcome({"top1": top1, "top5": top5}, protocol, rows, details, _remarks(details))


def _remarks(details: dict[str, Any]) -> tuple[str, ...]:
    lr, tried = details["lr"], {probe["lr"] for probe in details["probes"]}
    lines = [f"selected: lr {lr:g}, weight decay {details['weight_decay']:g}; held out:"]
    for probe in details["probes"]:
        top1 = probe["held_out_top1"]
        shown = "diverged" if top1 is None else f"{top1:.2f}%"
        lines.append(f"  lr {probe['lr']:<10g} weight decay {probe['weight_decay']:<8g} {shown}")
    if len(tried) > 1 and lr in (min(tried), max(tried)):
        lines.append("the selected lr is at the end of those tried: wider `lrs` may do better")
    return tuple(lines)
