"""What evaluations share that train a linear layer, alone or with the backbone below it.

By the run's own `Trainer`, so that they are resumed and stopped as a run is.
"""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ssl_zoo.config import ConfigError, Part
from ssl_zoo.core import Batch, Method
from ssl_zoo.core.encoder import without_drops
from ssl_zoo.data import Splits, Views
from ssl_zoo.engine.schedules import Schedule
from ssl_zoo.engine.stop import NonFiniteLoss
from ssl_zoo.evaluation.base import Context, Evaluation, Outcome, Rows, top1_and_top5
from ssl_zoo.evaluation.features import (
    Labeled,
    Precision,
    check_usable,
    extract_split,
    main_buffers,
)
from ssl_zoo.evaluation.labeled_views import LabeledViews, clean_size, crops_and_flips
from ssl_zoo.ops.batchnorm import join_batchnorm
from ssl_zoo.system import distributed, rng
from ssl_zoo.system.rng import seed_all


class Classifier(Method):
    """Cross-entropy of a linear layer on features.

    The layer starts as in the code of arXiv:1911.05722: weights from N(0, 0.01^2), biases zero.

    Attributes:
        backbone: images [N, C, H, W] -> features [N, F].
        head: features [N, F] -> logits [N, classes].
    """

    family = "baseline"
    backbone: nn.Module

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, F]."""
        return self.backbone(images)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.head(self.features(batch.views[0])).float()  # [N, classes]
        top1 = 100 * (logits.argmax(dim=1) == batch.label).float().mean()
        return {"loss": F.cross_entropy(logits, batch.label), "top1": top1}


class OnFrozen(Classifier):
    """The backbone as it is: in evaluation mode, and on every rank with rank 0's statistics.

    It is no part of this module, so it is neither trained nor saved.
    """

    def __init__(self, backbone: nn.Module, classes: int, device: torch.device):
        super().__init__(backbone.num_features, classes)
        self._outside = backbone, main_buffers(backbone, device)

    @property
    def backbone(self) -> nn.Module:
        return self._outside[0]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        backbone, buffers = self._outside
        return functional_call(backbone, buffers, images)


class Tuned(Classifier):
    """A copy of the backbone, all of whose weights are trained."""

    def __init__(self, backbone: nn.Module, classes: int, device: torch.device):
        super().__init__(backbone.num_features, classes)
        self.backbone = copy_to_train(backbone, device)


def copy_to_train(backbone: nn.Module, device: torch.device) -> nn.Module:
    """A copy of which all weights can be trained.

    It starts from rank 0's running statistics; BatchNorm normalizes a process's batch as a whole.
    Drop path and dropout drop nothing, whatever they did in pre-training.
    """
    copied = without_drops(copy.deepcopy(backbone)).requires_grad_(True)
    copied.zero_grad()
    copied.load_state_dict(main_buffers(backbone, device), strict=False)
    return join_batchnorm(copied)


class TrainedClassifier(Evaluation):
    """Trains a `Classifier` on views of the training images made anew each epoch, and scores it on
    the clean test images.

    Of several learning rates each is tried without a held-out part of the training images; the best
    on that, of equals the first, is trained again on all. With a single one nothing is held out.

    A subclass says `kind`, `optimizer` and perhaps `images`, and has in its constructor what YAML
    may set.

    Args:
        schedule: of the learning rate.
        limits: images of the training and of the test split; None: all.

    Attributes:
        kind: which classifier.
        drop_last: of `Sampler`.
    """

    wants = "backbone"
    kind: type[Classifier]
    drop_last = False

    def __init__(
        self,
        lrs: list[float],
        schedule: Schedule,
        *,
        held_out: float,
        epochs: float,
        batch_size: int,
        views: Part[Views] | None,
        limits: tuple[int | None, int | None],
        precision: Precision,
    ):
        self.lrs, self.schedule, self.held_out = lrs, schedule, held_out
        self.epochs, self.batch_size, self.views = epochs, batch_size, views
        self.limits, self.precision = limits, precision
        self._known: dict[str, LabeledViews] = {}

    def optimizer(self, classifier: Classifier, lr: float) -> torch.optim.Optimizer:
        raise NotImplementedError

    def recipe(self) -> dict[str, Any]:
        """What is trained how, for the protocol, as plain values."""
        raise NotImplementedError

    def images(self, splits: Splits) -> Tensor:
        """Positions of the training images to learn from, [n]; ValueError where there are none."""
        return splits.chosen("train", self.limits[0])

    def check(self, splits: Splits) -> None:
        of = {f"{name}_split": splits.split(name) for name in ("train", "test")}
        check_usable(self._name, **of)
        images = self.images(splits)
        if len(self.lrs) > 1:
            self._batches(splits, self._divided(images, splits)[1], "kept")
        self._batches(splits, images, "whole")

    def evaluate(self, context: Context) -> Outcome:
        context = context.of_these_weights()
        images = self.images(context.splits)
        trials = self._trials(context, images) if len(self.lrs) > 1 else []
        lr = self._best_of(trials) if trials else self.lrs[0]
        batches = self._batches(context.splits, images, "whole")
        classifier = self._trained(context, lr, batches, "whole")
        context.leave_out_unreadable("train", images)
        seen = context
        if classifier.backbone is not context.backbone:
            seen = replace(context, backbone=classifier.backbone, cache={})
        test = seen.features("test", self.precision, self.limits[1])

        def judged() -> Outcome:
            check_usable(self._name, test_split=test)
            best = guesses(classifier.head, test)
            metrics = top1_and_top5(best.indices == test.labels[:, None])
            rows = Rows.of(test, best.indices[:, 0], best.values[:, 0])
            protocol = self._protocol(context.splits, batches, test)
            details = {"lr": lr, "trials": trials}
            return Outcome(metrics, protocol, rows, details, _remarks(lr, trials))

        return distributed.attempt(judged)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _divided(self, images: Tensor, splits: Splits) -> tuple[Tensor, Tensor]:
        """Positions that are held out, and the others; ValueError where none would be left."""
        count = max(1, round(self.held_out * len(images)))
        if count >= len(images):
            found = f"{count} of {len(images)} training images"
            raise ValueError(f"{self._name}: {found} held out to select lr leaves none")
        order = rng.permutation(len(images), splits.seed, "held out")
        return images[order[:count].sort().values], images[order[count:].sort().values]

    def _trials(self, context: Context, images: Tensor) -> list[dict[str, Any]]:
        """Of each lr its accuracy in % on the held-out images; None if it diverged."""
        held, kept = self._divided(images, context.splits)
        batches = self._batches(context.splits, kept, "kept")
        trials = []
        for lr in self.lrs:
            try:
                classifier = self._trained(context, lr, batches, f"lr_{lr}")
            except NonFiniteLoss:
                trials.append({"lr": lr, "held_out_top1": None})
                continue
            features = extract_split(
                classifier.backbone, context.splits, "train", context.device, held, self.precision
            )
            score = distributed.attempt(partial(top1_of, classifier.head, features))
            trials.append({"lr": lr, "held_out_top1": score})
        return trials

    def _best_of(self, trials: list[dict[str, Any]]) -> float:
        finite = [trial for trial in trials if trial["held_out_top1"] is not None]
        if not finite:
            raise ValueError(f"{self._name}: all of {self.lrs} diverged; lower `lrs` needed")
        return max(finite, key=lambda trial: trial["held_out_top1"])["lr"]

    def _batches(self, splits: Splits, images: Tensor, name: str) -> LabeledViews:
        """Made once: what reads images is sent to processes that live as long as the run."""
        known = self._known.get(name)
        if known is None or known.splits is not splits:
            views = crops_and_flips(splits) if self.views is None else self.views()
            known = LabeledViews(splits, views, images, self.batch_size, self.drop_last)
            self._known[name] = known
        return known

    def _trained(self, context: Context, lr: float, batches: LabeledViews, name: str) -> Classifier:
        """A classifier trained in a folder of its own, from the run's seed."""
        splits, device = context.splits, context.device
        seed_all(splits.seed)  # after another trial as after none
        classifier = self.kind(context.backbone, classes_of(splits), device).to(device)
        replace(context, folder=context.folder.inside(name)).train(
            classifier,
            batches,
            self.optimizer(classifier, lr),
            {"optimizer.lr": self.schedule},
            epochs=self.epochs,
            precision=self.precision,
        )
        return classifier

    def depends_on(self, splits: Splits) -> dict[str, Any]:
        return self._shared()

    def _protocol(self, splits: Splits, batches: LabeledViews, test: Labeled) -> dict[str, Any]:
        if self.views is None:
            height, width = clean_size(splits)
            views = f"random crops of {height} x {width} pixels, flips, and the colors of `clean`"
        else:
            views = self.views.spelled_out()["ops"]
        held = f"the best of {self.lrs} on {self.held_out:g} of the training images, held out"
        return {
            "views": views,
            "train": f"{len(batches.images)} images",
            "test": f"{len(test.labels)} images, clean views",
            "lr": held if len(self.lrs) > 1 else self.lrs[0],
            "epochs": self.epochs,
            "batch_size": batches.batch_size,
            **self.recipe(),
            "classes": classes_of(splits),
            "precision": self.precision,
            **self._shared(),
        }

    def _shared(self) -> dict[str, int]:
        """How many processes share a batch, where BatchNorm of a tuned copy sees so many fewer."""
        world = distributed.world()
        return {"processes": world} if self.kind is Tuned and world > 1 else {}


def check_lrs(lrs: list[float]) -> None:
    """Raises ConfigError for none."""
    if not lrs:
        raise ConfigError("lrs", "no values", found="[]", expected="at least one")


def classes_of(splits: Splits) -> int:
    """One more than the largest label, whichever classes have no image."""
    return 1 + int(max(splits.split(name).labels.max() for name in ("train", "test")))


@torch.no_grad()
def guesses(head: nn.Linear, of: Labeled) -> torch.return_types.topk:
    """The five likeliest classes of each image, [m, up to 5], and their softmax."""
    p = head(of.features.to(head.weight.device)).softmax(dim=1).cpu()
    return p.topk(min(5, p.shape[1]), dim=1)


def top1_of(head: nn.Linear, of: Labeled) -> float:
    """Accuracy in %."""
    return 100 * (guesses(head, of).indices[:, 0] == of.labels).float().mean().item()


def _remarks(lr: float, trials: list[dict[str, Any]]) -> tuple[str, ...]:
    lines = [f"selected: lr {lr:g}; held out:"] if trials else []
    for trial in trials:
        top1 = trial["held_out_top1"]
        lines.append(f"  lr {trial['lr']:<10g} {'diverged' if top1 is None else f'{top1:.2f}%'}")
    tried = [trial["lr"] for trial in trials]
    if trials and lr in (min(tried), max(tried)):
        lines.append("the selected lr is at the end of those tried: wider `lrs` may do better")
    return tuple(lines)
