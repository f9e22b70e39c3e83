"""What an evaluation is: a registered part that judges a backbone on data of its own.

    evaluations:
      knn: {type: KNN, k: 200, every_epochs: 1}

`every_epochs` and `data` are the monitor's; what remains is the evaluation's own constructor.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ssl_zoo.config import Part
from ssl_zoo.core import Batch
from ssl_zoo.data import Splits
from ssl_zoo.engine.hooks import Checkpoints, MetricsLogger, ProgressBar
from ssl_zoo.engine.schedules import Schedules
from ssl_zoo.engine.stop import StopSignal
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.evaluation.features import Labeled, extract_split
from ssl_zoo.ops.modes import eval_mode
from ssl_zoo.runs import RunFolder
from ssl_zoo.system.rng import kept_random_state

UNTRAINED = "random backbone"


class Rows(NamedTuple):
    """One for each test image, [m] each: its position in the split, its label, the prediction and
    a score of it, larger for a surer one."""

    index: Tensor
    label: Tensor
    prediction: Tensor
    score: Tensor

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self._fields)
        writer.writerows(zip(*(column.tolist() for column in self), strict=True))
        return text.getvalue()


class Outcome(NamedTuple):
    """What an evaluation has measured.

    Attributes:
        metrics: by name, among them the evaluation's `metric`.
        protocol: all that the metrics depend on and a reader wants to see, as plain values.
        rows: one for each test image; None where there is no such thing.
        details: further plain values for the result's file.
        remarks: further lines for a person who evaluates by hand.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]
    rows: Rows | None = None
    details: Mapping[str, Any] = {}
    remarks: tuple[str, ...] = ()


class Evaluation:
    """Judges a backbone. A new one is a registered class in a file of its own and a YAML block.

    Attributes:
        metric: the main one, which tables, best.pt and the progress bar show.
        higher_is_better, unit: of the main metric.
        wants: 'features' of the clean images, extracted once for all evaluations over the same
            data; the 'backbone' itself; or the 'run', to learn beside it step by step.
    """

    metric = "top1"
    higher_is_better = True
    unit = "%"
    wants: Literal["features", "backbone", "run"] = "features"

    def check(self, splits: Splits) -> None:
        """Refuses what `evaluate` would refuse, before anything is paid for.

        Raises:
            ValueError: the data do not go with this evaluation.
        """

    def evaluate(self, context: Context) -> Outcome:
        """All ranks call it and get the same.

        Raises:
            ValueError: the data, or features that are not finite.
        """
        raise NotImplementedError

    def baselines(self, offered: Mapping[str, Callable[[], nn.Module]]) -> dict[str, Any]:
        """What has to be beaten: networks by name; None is the run's own, untrained.

        Args:
            offered: what the data set has to offer, see `ImageSet.baselines`.
        """
        return {}

    # For `wants = "run"`: what learns beside a method and leaves no trace on it.

    def begin(self, backbone: nn.Module, splits: Splits, device: torch.device) -> None:
        """Before the first step of a sitting, and before a state is loaded."""

    def after_step(self, backbone: nn.Module, batch: Batch) -> None:
        """Every step, within a frozen backbone's context; random numbers are the evaluation's."""

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
        splits: the data.
        device: of the images and the backbone.
        precision: in which an evaluation that trains should do it.
        folder: of its own, for what it writes; below the run's.
        stop: shared with the run.
        say: a line for the person and the log.
        cache: features of this very network, shared by the evaluations of one moment.
    """

    backbone: nn.Module
    network: str
    splits: Splits
    device: torch.device
    precision: str
    folder: RunFolder
    stop: StopSignal = field(default_factory=StopSignal)
    say: Callable[[str], None] = print
    cache: dict = field(default_factory=dict)

    def features(
        self, split: str, precision: str = "fp32", limit: int | None = None
    ) -> Labeled | None:
        """Of a split's clean images, see `extract_split`; on rank 0, None on the other ranks."""
        key = (id(self.splits), split, precision, limit)
        if key not in self.cache:
            self.cache[key] = extract_split(
                self.backbone, self.splits, split, self.device, limit, precision
            )
        return self.cache[key]

    def train(
        self, method, data, optimizer, schedules: dict | None = None, *, epochs: float, **settings
    ) -> None:
        """Trains a method of the evaluation's own, to be continued if it is interrupted.

        The same `Trainer` as the run's, in this context's folder, and no trace on the run: random
        states and module modes are as they were.

        Args:
            method, data, optimizer: see `Trainer`.
            schedules: by dotted name.
            settings: `accumulate`, `clip_grad`, `log_every`.

        Raises:
            Interrupted: asked to stop; the same call goes on.
        """
        scheduled = Schedules(schedules or {})
        keeper = Checkpoints(every_epochs=max(epochs / 10, 1e-9), keep=1)
        hooks = {
            "progress": ProgressBar(live=False),
            "schedules": scheduled,
            "metrics": MetricsLogger(scheduled),
            "checkpoints": keeper,
        }
        with kept_random_state(self.device), eval_mode(self.backbone):
            trainer = Trainer(
                method,
                data,
                optimizer,
                hooks,
                self.device,
                self.folder,
                epochs=epochs,
                precision=self.precision,
                stop=self.stop,
                **settings,
            )
            scheduled.attach(trainer)
            trainer.resume()
            if trainer.step < trainer.total_steps:
                trainer.fit()


def identity(part: Part, splits: Splits, network: str) -> dict[str, Any]:
    """All that makes two numbers of an evaluation comparable, as plain values.

    Its arguments, the images and which network; not when it is due, versions or the device.
    """
    alone = part.replaced(part.target)
    arguments = alone.spelled_out(machine=False)
    return {**arguments, "data": splits.identity(), "network": network}


def hashed(identity: dict[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def result(part: Part, evaluation: Evaluation, outcome: Outcome, of: dict[str, Any]) -> dict:
    """An outcome as it stands in result files; `of` is its `identity`."""
    return {
        "type": part.type,
        "metrics": outcome.metrics,
        "main": evaluation.metric,
        "higher_is_better": evaluation.higher_is_better,
        "unit": evaluation.unit,
        "protocol": outcome.protocol,
        "of": of,
        "hash": hashed(of),
        **outcome.details,
    }
