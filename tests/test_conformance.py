"""The conformance kit notices what it is there for: each check fails on a method wrong in it."""

from __future__ import annotations

import conformance as kit
import pytest
import torch
from ranks import on_ranks
from torch import nn

from ssl_zoo.config import METHODS, PositiveFloat, Scheduled
from ssl_zoo.methods.rotation import Rotation

RECIPE = "fashion_mnist/rotation"


class CountsNoSteps(Rotation):
    def after_step(self, batch, out):
        pass


class LeavesAParameterUnused(Rotation):
    def __init__(self, backbone: nn.Module):
        super().__init__(backbone)
        self.unused = nn.Parameter(torch.zeros(3))


class LearnsNothing(Rotation):
    def forward(self, batch):
        out = super().forward(batch)
        return out | {"loss": out["loss"].detach() + 0 * out["loss"]}


class KeepsStateOutsideTheCheckpoint(Rotation):
    age = 0

    def after_step(self, batch, out):
        super().after_step(batch, out)
        self.age += 1

    def forward(self, batch):
        out = super().forward(batch)
        return out | {"loss": out["loss"] * (1 + self.age)}


class TrainsInTelemetry(Rotation):
    def telemetry(self, labels):
        self.encoder(torch.randn(4, 1, 28, 28))  # in training mode: BatchNorm's statistics move
        return {}


class ReturnsHalfPrecision(Rotation):
    def forward(self, batch):
        return {"loss": self.encoder(batch.views[0]).mean()}


class DrawsByPlaceInTheBatch(Rotation):
    def forward(self, batch):
        torch.manual_seed(0)
        noisy = batch.views[0] + torch.randn_like(batch.views[0])
        return super().forward(batch._replace(views=[noisy]))


class ForgetsTheOtherRanks(Rotation):
    def forward(self, batch):
        logits = self.encoder(batch.views[0])
        return {"loss": logits.var(dim=0).mean() - logits.mean()}


class ComparesWithinTheBatch(Rotation):
    def forward(self, batch):
        logits = self.encoder(batch.views[0])
        return {"loss": logits.sub(logits.mean(dim=0)).square().mean()}


class CopiesWhatIsScheduled(Rotation):
    def __init__(self, backbone: nn.Module, *, weight: Scheduled[PositiveFloat] = 2.0):
        super().__init__(backbone)
        self.weight, self.copied = weight, weight

    def forward(self, batch):
        out = super().forward(batch)
        return out | {"loss": out["loss"] * self.copied}


@pytest.mark.parametrize(
    ("method", "check"),
    [
        (CountsNoSteps, kit.test_one_seed_gives_one_result_and_another_seed_another),
        (
            LeavesAParameterUnused,
            kit.test_the_loss_is_finite_and_every_trainable_parameter_gets_a_gradient,
        ),
        (LearnsNothing, kit.test_one_batch_is_learned_while_its_targets_stand_still),
        (
            KeepsStateOutsideTheCheckpoint,
            kit.test_a_checkpoint_brings_everything_back_to_the_bit,
        ),
        (TrainsInTelemetry, kit.test_evaluation_leaves_the_method_as_it_was),
        (ReturnsHalfPrecision, kit.test_bf16_agrees_with_fp32),
        (ComparesWithinTheBatch, kit.test_a_last_batch_of_one_is_refused_or_trains),
        (
            CopiesWhatIsScheduled,
            kit.test_every_scheduled_value_is_an_attribute_that_training_reads,
        ),
    ],
    ids=lambda x: x.__name__,
)
def test_a_wrong_method_is_found_out(method, check, tmp_path, monkeypatch):
    check(RECIPE, tmp_path)
    monkeypatch.setitem(METHODS.module_dict, "Rotation", method)
    with pytest.raises(AssertionError):
        check(RECIPE, tmp_path)


def two_steps_of(method, folder):
    METHODS.module_dict["Rotation"], usual = method, METHODS.module_dict["Rotation"]
    try:
        return kit.two_steps(RECIPE, folder)
    finally:
        METHODS.module_dict["Rotation"] = usual


@pytest.mark.parametrize("method", [DrawsByPlaceInTheBatch, ForgetsTheOtherRanks])
def test_a_method_that_differs_on_two_processes_is_found_out(method, tmp_path, monkeypatch):
    def wrong(world, function, recipe, folder):
        return on_ranks(world, two_steps_of, method, folder)

    monkeypatch.setitem(METHODS.module_dict, "Rotation", method)
    monkeypatch.setattr(kit, "on_ranks", wrong)
    with pytest.raises(AssertionError):
        kit.test_two_processes_equal_one_in_loss_gradient_and_state(RECIPE, tmp_path)


def test_a_method_without_a_config_is_found_out(monkeypatch):
    class Unconfigured(Rotation):
        """Which way is up (arXiv:1803.07728)?"""

    monkeypatch.setitem(METHODS.module_dict, "Unconfigured", Unconfigured)
    with pytest.raises(AssertionError):
        kit.test_a_method_cites_its_paper_names_its_family_and_has_a_config("Unconfigured")
