"""What an evaluation is: a registered part that judges a backbone on data of its own.

    evaluations:
      knn: {type: KNN, k: 200, every_epochs: 1}

`every_epochs` and `data` are the monitor's; what remains is the evaluation's own constructor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ssl_zoo.config import Part
from ssl_zoo.core import Batch
from ssl_zoo.data import Splits
from ssl_zoo.data.files import some
from ssl_zoo.engine.hooks import Checkpoints, MetricsLogger, ProgressBar, Unreadable
from ssl_zoo.engine.hooks.scheduling import Schedules
from ssl_zoo.engine.settings import TrainSettings
from ssl_zoo.engine.stop import StopSignal
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.evaluation.features import Labeled, Precision, extract_split
from ssl_zoo.ops.modes import eval_mode
from ssl_zoo.ops.weights import digest_of_weights
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed
from ssl_zoo.system.rng import kept_random_state, seed_all, seed_rank
from ssl_zoo.system.text import one_line

UNTRAINED = "random backbone"
# What each method's paper evaluates, whatever its name, is this in hashes: so methods compare.
NETWORK = "backbone"
# What a line of metrics.jsonl says besides an evaluation's metrics.
LINE_KEYS = {"name", "kind", "hash", "step", "epoch", "seconds", "baseline"}


class Rows(NamedTuple):
    """Of m test images, [m] each: position in the split, label, prediction, how sure that is."""

    index: Tensor
    label: Tensor
    prediction: Tensor
    score: Tensor

    @classmethod
    def of(cls, test: Labeled, prediction: Tensor, score: Tensor) -> Rows:
        index = torch.arange(len(test.labels)) if test.index is None else test.index
        return cls(index, test.labels, prediction.cpu(), score.float().cpu())

    def csv(self) -> str:
        rows = zip(*(column.tolist() for column in self), strict=True)
        return "".join(",".join(map(str, row)) + "\n" for row in (self._fields, *rows))


def top1_and_top5(hits: Tensor) -> dict[str, float]:
    """Accuracies in %; hits [m, up to 5] bool: whether the label is a row's i-th guess."""
    accuracy = (100 * hits.sum(0).float().cumsum(0) / len(hits)).tolist()
    return {"top1": accuracy[0], "top5": accuracy[-1]}


class Outcome(NamedTuple):
    """What an evaluation has measured.

    Attributes:
        metrics: by name, among them the evaluation's `metric`.
        protocol: what a reader should know of how they were made, as plain values.
        details: further plain values for the result's file.
        remarks: further lines for a person who evaluates by hand.
        pictures: files below the context's folder, which a study's report shows.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]
    rows: Rows | None = None
    details: Mapping[str, Any] = {}
    remarks: tuple[str, ...] = ()
    pictures: tuple[Path, ...] = ()


class Evaluation:
    """Judges a backbone. A new one is a registered class in a file of its own and a YAML block.

    Attributes:
        metric: the main one, which tables, best.pt and the progress bar show; a static method of
            the YAML arguments, if it depends on them (an object then has the name), see
            `declared`.
        higher_is_better: of `metric` and of what else `best` may name.
        unit: of its metrics.
        wants: the clean images' 'features', extracted once for all evaluations over the same
            data, for `judge`; the 'backbone', for an `evaluate` of its own; or the 'run', to
            learn beside it step by step.
        needs: of a backbone, as `Method.needs`; or a method as above.
        own_data: whether it judges by data of its own and makes no use of the run's images; its
            durations count epochs of those.
        given: the splits whose features `judge` is given, in this order.
        precision: of the backbone's pass.
        limits: images of the training and of the test split, evenly spaced; None: all.
        baselines: what has to be beaten, makers of networks by name; None: the run's own network,
            untrained.
        offered_baselines: whether what the data set offers is to be beaten as well.
    """

    metric: str | Callable[..., str] = "top1"
    higher_is_better = True
    unit = "%"
    wants: Literal["features", "backbone", "run"] = "features"
    needs: str | Callable[..., str] = "features"
    own_data = False
    given: tuple[str, ...] = ("train", "test")
    precision: Precision = "fp32"
    limits: tuple[int | None, int | None] = (None, None)
    baselines: ClassVar[dict[str, Callable[[], nn.Module] | None]] = {}
    offered_baselines = False

    def check(self, splits: Splits) -> None:
        """Raises ValueError for data that `evaluate` would refuse, before anything is paid for."""

    def depends_on(self, splits: Splits) -> dict[str, Any]:
        """What its numbers depend on besides its arguments and the images, as plain values."""
        return {}

    def data_identity(self, splits: Splits) -> dict[str, Any]:
        """Which data it judges by, wherever they lie: plain values."""
        return splits.identity()

    def judge(self, *given: Labeled, device: torch.device | str = "cpu") -> Outcome:
        """On rank 0 alone, with the threads of all, so that the world's size changes nothing."""
        raise NotImplementedError

    def evaluate(self, context: Context) -> Outcome:
        """All ranks call it and get the same; random numbers start from the run's seed."""
        limits = dict(zip(("train", "test"), self.limits, strict=True))
        given = [context.features(split, self.precision, limits[split]) for split in self.given]
        with distributed.borrowed_threads():
            return distributed.attempt(lambda: self.judge(*given, device=context.device))

    # For `wants = "run"`: what learns beside a method and leaves no trace on it.

    def begin(self, backbone: nn.Module, splits: Splits, device: torch.device) -> None:
        """Before the first step of a sitting, and before a state is loaded."""

    def after_step(self, backbone: nn.Module, batch: Batch) -> None:
        """Every step, with the backbone frozen; random numbers drawn leave no trace."""

    def state_dict(self) -> dict[str, Any]:
        """What a bitwise resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` has given."""


@dataclass
class Context:
    """What an evaluation is given.

    Attributes:
        backbone: images [n, C, H, W] -> features [n, F], on the device; not to be changed.
        network: which network of the method it is, or which baseline.
        evaluated: which one the method's paper evaluates; None beside a baseline.
        folder: below the run's; `measure` adds the hash, so that each protocol has its own.
        precision: in which an evaluation that trains should do it.
        stop: shared with the run.
        cache: features of this very network, shared by the evaluations of one moment.
        left_out: split -> names of the images that should have been among the features, and cannot
            be read.
    """

    backbone: nn.Module
    network: str
    splits: Splits
    device: torch.device
    folder: RunFolder
    evaluated: str | None = None
    precision: str = "fp32"
    stop: StopSignal = field(default_factory=StopSignal)
    cache: dict = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def features(
        self, split: str, precision: Precision = "fp32", limit: int | None = None
    ) -> Labeled | None:
        """Of a split's clean images, see `extract_split`; on rank 0, None on the other ranks."""
        key = (id(self.splits), split, precision, limit)
        if key not in self.cache:
            self.cache[key] = extract_split(
                self.backbone, self.splits, split, self.device, limit, precision
            )
        found: Labeled | None = self.cache[key]

        def missing() -> list[str]:
            asked = self.splits.chosen(split, limit)
            whole = len(asked) == len(found.index)
            lost = asked[:0] if whole else asked[~torch.isin(asked, found.index)]
            return self.splits.split(split).names(lost) if len(lost) else []

        if names := distributed.attempt(missing):
            self.left_out[split] = names
        return found

    def leave_out_unreadable(self, split: str, images: Tensor) -> None:
        """Notes which of these, by position [n], some training has met and could not read."""
        met = set().union(*distributed.collect(set(self.splits.unreadable.get(split, ()))))
        names = self.splits.split(split).names(images) if met else []
        if lost := [name for name in names if name in met]:
            self.left_out[split] = lost

    def of_these_weights(self, *further: Any) -> Context:
        """The same in a folder that only they have: what others have trained is not gone on with.

        As after a file was replaced, or a run came to a step again in another way.
        """
        digest = distributed.attempt(lambda: digest_of_weights(self.backbone, *further))
        return replace(self, folder=self.folder.inside(digest))

    def train(
        self,
        method,
        data,
        optimizer,
        schedules: dict | None = None,
        *,
        epochs: float,
        seed: int | None = None,
        **settings,
    ) -> None:
        """Trains a method of the evaluation's own, or goes on where that was interrupted.

        By the same `Trainer` as the run's, in this context's folder. Module modes of the backbone
        come back as they were.

        Args:
            schedules: by dotted name.
            seed: of what is drawn while it trains; None: the run's.
            settings: further ones of `TrainSettings`, among them another `precision`.

        Raises:
            Interrupted: asked to stop; the same call goes on.
            FileExistsError: another process trains the same.
        """
        scheduled = Schedules(schedules or {})
        unreadable = Unreadable(self.splits.unreadable)
        unreadable.load_state_dict({})  # what was met before has been told
        hooks = {
            "unreadable": unreadable,
            "progress": ProgressBar(live=False),
            "schedules": scheduled,
            "metrics": MetricsLogger(scheduled),
            "checkpoints": Checkpoints(every_epochs=min(1.0, epochs / 10), keep=1),
        }
        settings = TrainSettings(**{"epochs": epochs, "precision": self.precision} | settings)
        with eval_mode(self.backbone):
            trainer = Trainer(
                method, data, optimizer, hooks, self.device, self.folder, settings, self.stop
            )
            trainer.name = one_line("/".join(self.folder.path.parts[-3:]))  # of which evaluation
            scheduled.attach(trainer)
            seed_rank(self.splits.seed if seed is None else seed)
            with distributed.held(self.folder.lock):
                trainer.resume()
                if trainer.step < trainer.total_steps:
                    trainer.fit()


def identity(
    part: Part,
    evaluation: Evaluation,
    splits: Splits,
    network: str,
    evaluated: str | None = None,
) -> dict[str, Any]:
    """Arguments, images and which network: what two numbers need in common to be compared.

    `evaluated`, see `Context`, is NETWORK in every method.
    """
    if evaluated is not None:
        network = NETWORK if network == evaluated else f"{network}, not {evaluated}"
    alone = part.replaced(part.target).spelled_out(machine=False)
    further = evaluation.depends_on(splits)
    return {**alone, **further, "data": evaluation.data_identity(splits), "network": network}


def declared(part: Part, name: str) -> str:
    """What a block's evaluation says of `metric` or `needs`, which may depend on its arguments."""
    value = getattr(part.target, name)
    return value(**part.kwargs) if callable(value) else value


def hashed(identity: Mapping[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def measure(part: Part, evaluation: Evaluation, context: Context) -> tuple[dict, Outcome]:
    """An evaluation's result as it stands in files, and its outcome.

    Global random numbers start from the run's seed, and are afterwards as they were. Raises
    ValueError for metrics of names that are taken.
    """
    with kept_random_state(context.device):
        of = identity(part, evaluation, context.splits, context.network, context.evaluated)
        digest = hashed(of)
        # What an earlier sitting left half trained under another config is not gone on with.
        context = replace(context, folder=RunFolder(f"{context.folder.path}-{digest}"))
        seed_all(context.splits.seed)
        outcome = evaluation.evaluate(context)
    if counts := {split: len(names) for split, names in context.left_out.items()}:
        # Over fewer images: another number, which has to say so.
        of["unreadable"], digest = counts, f"{digest}-{hashed(context.left_out)[:6]}"
        said = ", ".join(f"{count} of {split}" for split, count in counts.items())
        names = "; ".join(f"{split}: {some(names)}" for split, names in context.left_out.items())
        outcome = outcome._replace(
            protocol={**outcome.protocol, "unreadable": said},
            details={**outcome.details, "unreadable": context.left_out},
            remarks=(*outcome.remarks, f"left out, as they cannot be read: {names}"),
        )
    if taken := LINE_KEYS & outcome.metrics.keys():
        raise ValueError(f"{part.type}: {min(taken)!r} is no name for a metric, as lines have it")
    result = {
        "type": part.type,
        "metrics": outcome.metrics,
        "main": evaluation.metric,
        "higher_is_better": evaluation.higher_is_better,
        "unit": evaluation.unit,
        "network": context.network,
        "protocol": outcome.protocol,
        "of": of,
        "hash": digest,
        **outcome.details,
    }
    if outcome.pictures:
        beside = context.folder.path.parent  # in a run where result.json will be
        result["pictures"] = [path.relative_to(beside).as_posix() for path in outcome.pictures]
    return result, outcome
