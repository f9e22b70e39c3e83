"""NewPart: one sentence on the idea."""

from __future__ import annotations

from typing import ClassVar

import torch

from ssl_zoo.config import EVALUATIONS
from ssl_zoo.data import Splits
from ssl_zoo.evaluation.base import UNTRAINED, Evaluation, Outcome, Rows
from ssl_zoo.evaluation.features import Labeled, check_usable


@EVALUATIONS.register_module()
class NewPart(Evaluation):
    """A test image is of the class whose mean feature is nearest (arXiv:1703.05175, equation 1).

    Args:
        center: whether the training features' mean is taken away first.
    """

    metric = "accuracy"
    baselines: ClassVar = {UNTRAINED: None}  # what has to be beaten

    def __init__(self, *, center: bool = True):
        self.center = center

    def check(self, splits: Splits) -> None:
        check_usable(
            "NewPart",
            train_split=splits.split("train"),
            test_split=splits.split("test"),
        )

    def judge(self, train: Labeled, test: Labeled, device: torch.device | str = "cpu") -> Outcome:
        middle = train.features.mean(0) if self.center else 0.0
        x, y = train.features - middle, train.labels  # [n, F], [n]
        means = torch.stack([x[y == label].mean(0) for label in y.unique()])  # [C, F]
        distance = torch.cdist(test.features - middle, means)  # [m, C]
        nearest = distance.argmin(dim=1)
        predicted = y.unique()[nearest]  # [m]
        accuracy = 100 * (predicted == test.labels).float().mean().item()
        protocol = {"center": self.center, "train": len(y), "test": len(predicted)}
        return Outcome(
            {"accuracy": accuracy}, protocol, Rows.of(test, predicted, -distance.min(dim=1).values)
        )
