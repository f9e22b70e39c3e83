"""The linear classification of MoCo's paper, on crops and flips made anew in every epoch."""

from typing import Any

import torch

from ssl_zoo.config import (
    EVALUATIONS,
    ConfigError,
    HalfOpenUnitInterval,
    NonNegativeFloat,
    Part,
    PositiveFloat,
    PositiveInt,
)
from ssl_zoo.data import Views
from ssl_zoo.engine.optimizers import SGD
from ssl_zoo.engine.schedules import Step
from ssl_zoo.evaluation.classifier import Classifier, OnFrozen, TrainedClassifier, check_lrs
from ssl_zoo.evaluation.features import Precision
from ssl_zoo.evaluation.linear import Share


@EVALUATIONS.register_module()
class LinearAugmented(TrainedClassifier):
    """MoCo's own protocol: a linear layer on frozen features of random crops (arXiv:1911.05722).

    Section 4.1, and the authors' code, of which the defaults are.

    Args:
        lrs: one, or several of which a held-out part of the training images selects.
        epochs, batch_size, momentum, weight_decay: of SGD.
        milestones, gamma: lr is multiplied by gamma at each milestone, in epochs.
        held_out: this fraction of the training images selects lr, if there are several.
        views: of the training images; null: random crops of the clean images' size, and flips, then
            what the clean view does with colors.
        train_limit, test_limit: images used of the split; null: all.
        precision: of all passes.
    """

    kind = OnFrozen

    def __init__(
        self,
        *,
        lrs: list[PositiveFloat] = [30.0],  # noqa: B006
        epochs: PositiveFloat = 100.0,
        milestones: list[PositiveFloat] = [60.0, 80.0],  # noqa: B006
        gamma: NonNegativeFloat = 0.1,
        batch_size: PositiveInt = 256,
        momentum: HalfOpenUnitInterval = 0.9,
        weight_decay: NonNegativeFloat = 0.0,
        held_out: Share = 0.1,
        views: Part[Views] | None = None,
        train_limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
        precision: Precision = "fp32",
    ):
        self.momentum, self.weight_decay = momentum, weight_decay
        super().__init__(
            lrs,
            Step(milestones=milestones, gamma=gamma),
            held_out=held_out,
            epochs=epochs,
            batch_size=batch_size,
            views=views,
            limits=(train_limit, test_limit),
            precision=precision,
        )

    @staticmethod
    def validate(*, lrs: list[float], epochs: float, milestones: list[float], **_) -> None:
        check_lrs(lrs)
        if late := [milestone for milestone in milestones if milestone >= epochs]:
            problem = f"the training ends after {epochs:g} epochs, before lr falls"
            raise ConfigError("milestones", problem, found=str(late), expected="fewer epochs")

    def optimizer(self, classifier: Classifier, lr: float) -> torch.optim.Optimizer:
        return SGD(classifier, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def recipe(self) -> dict[str, Any]:
        return {
            "trained": "a linear layer on frozen features",
            "optimizer": f"SGD, momentum {self.momentum:g}, weight decay {self.weight_decay:g}",
            "schedule": f"times {self.schedule.gamma:g} at epochs {self.schedule.milestones}",
        }
