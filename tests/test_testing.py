"""The kit notices what it is there for: each check fails on a part that is wrong in it."""

from functools import partial

import pytest
import torch
from torch import nn

from ssl_zoo.config import METHODS, PositiveFloat, Scheduled
from ssl_zoo.data import InMemory
from ssl_zoo.data.source import check_split
from ssl_zoo.evaluation.base import Evaluation, Outcome
from ssl_zoo.memory import EndToEnd, MemoryBank, MoCoQueue
from ssl_zoo.methods.rotation import Rotation
from ssl_zoo.testing import (
    dataset_checks,
    datasets,
    evaluation_checks,
    evaluations,
    memories,
    memory_checks,
    method_checks,
    methods,
)
from ssl_zoo.testing.check import Check
from ssl_zoo.testing.ranks import on_ranks

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


class IsOfNoFamily(Rotation):
    family = "other"


class KeepsRowsUndeclared(Rotation):
    def __init__(self, backbone: nn.Module, num_samples: int):
        super().__init__(backbone)
        self.register_buffer("rows", torch.zeros(num_samples))


def chosen(checks: list[Check], function) -> Check:
    (found,) = (check for check in checks if check.function is function)
    return found


@pytest.mark.parametrize(
    ("method", "function"),
    [
        (IsOfNoFamily, methods.it_names_its_family_and_what_it_needs),
        (CountsNoSteps, methods.one_seed_gives_one_result_and_another_seed_another),
        (
            LeavesAParameterUnused,
            methods.the_loss_is_finite_and_every_trainable_parameter_gets_a_gradient,
        ),
        (LearnsNothing, methods.one_batch_is_learned_while_its_targets_stand_still),
        (
            KeepsStateOutsideTheCheckpoint,
            methods.a_checkpoint_brings_everything_back_to_the_bit,
        ),
        (KeepsRowsUndeclared, methods.what_has_a_row_for_each_image_is_declared),
        (TrainsInTelemetry, methods.evaluation_leaves_the_method_as_it_was),
        (ReturnsHalfPrecision, methods.bf16_agrees_with_fp32),
        (ComparesWithinTheBatch, methods.a_last_batch_of_one_is_refused_or_trains),
        (
            CopiesWhatIsScheduled,
            methods.every_scheduled_value_is_an_attribute_that_training_reads,
        ),
    ],
    ids=lambda x: x.__name__,
)
def test_a_wrong_method_is_found_out(method, function, monkeypatch):
    check = chosen(method_checks(RECIPE), function)
    check()
    monkeypatch.setitem(METHODS.module_dict, "Rotation", method)
    with pytest.raises(AssertionError, match=r"\w"):
        check()


def two_steps_of(method, recipe, folder):
    METHODS.module_dict["Rotation"], usual = method, METHODS.module_dict["Rotation"]
    try:
        return methods.two_steps(recipe, folder)
    finally:
        METHODS.module_dict["Rotation"] = usual


@pytest.mark.parametrize("method", [DrawsByPlaceInTheBatch, ForgetsTheOtherRanks])
def test_a_method_that_differs_on_two_processes_is_found_out(method, monkeypatch):
    def wrong(world, function, recipe, folder, modules):
        return on_ranks(world, two_steps_of, method, recipe, folder)

    monkeypatch.setitem(METHODS.module_dict, "Rotation", method)
    monkeypatch.setattr(methods, "on_ranks", wrong)
    with pytest.raises(AssertionError):
        chosen(method_checks(RECIPE), methods.two_processes_equal_one_in_loss_gradient_and_state)()


class LongKeys(EndToEnd):
    def encode(self, encoder, images, index):
        return 2 * super().encode(encoder, images, index)


class NoLookup(EndToEnd):
    def lookup(self, q, k, index):
        return super().lookup(q, k.flip(0), index)


class OwnKeys(EndToEnd):
    def lookup(self, q, k, index):
        found = super().lookup(q, k, index)
        found.masked = None
        return found


class DrawsFromTorch(MemoryBank):
    def _other_rows(self, batch):
        return torch.randint(len(self.stored), (self.num_negatives,))


class ForgetsToCount(MoCoQueue):
    def update(self, encoder, q, k, index):
        super().update(encoder, q, k, index)
        self.steps -= 1


class LosesItsQueue(MoCoQueue):
    def __init__(self, encoder, *, size: int = 20):
        super().__init__(encoder, size=size)
        self.queue._non_persistent_buffers_set.add("keys")


class PushesItsOwnRankAlone(MoCoQueue):
    def update(self, encoder, q, k, index):
        self.steps += 1
        count = len(k)
        self.queue.push(keys=k[:, 0], index=index, step=self.steps.expand(count))


class SaysNotWhere(MoCoQueue):
    def update(self, encoder, q, k, index):
        super().update(encoder, q, k, index)
        self.rows = (self.rows + 1) % len(self.queue)


class Undeclared(MemoryBank):
    per_sample: dict = {}  # noqa: RUF012


@pytest.mark.parametrize(
    ("memory", "function"),
    [
        (LongKeys, memories.keys_are_unit_vectors_and_carry_a_gradient_as_declared),
        (NoLookup, memories.a_look_up_answers_what_it_is_asked),
        (OwnKeys, memories.no_key_is_a_negative_of_its_own_image),
        (DrawsFromTorch, memories.what_is_drawn_is_a_function_of_seed_and_step),
        (
            partial(ForgetsToCount, size=20),
            memories.what_is_drawn_is_a_function_of_seed_and_step,
        ),
        (LosesItsQueue, memories.its_state_is_in_the_checkpoint),
        (partial(SaysNotWhere, size=20), memories.what_it_keeps_is_described),
        (Undeclared, memories.what_has_a_row_for_each_image_is_declared),
        (
            partial(PushesItsOwnRankAlone, size=20),
            memories.two_processes_equal_one_in_loss_gradient_and_memory,
        ),
    ],
    ids=lambda x: getattr(x, "func", x).__name__,
)
def test_a_wrong_memory_is_found_out(memory, function):
    with pytest.raises(AssertionError, match=r"\w"):
        chosen(memory_checks(memory), function)()


class Measures(Evaluation):
    """The mean of all features."""

    metric = "mean"

    def judge(self, train, test, device="cpu"):
        return Outcome({"mean": test.features.mean().item()}, {})


class GivesNoNumber(Measures):
    def judge(self, train, test, device="cpu"):
        return Outcome({"mean": float("nan")}, {})


class TrainsTheNetwork(Measures):
    wants = "backbone"

    def evaluate(self, context):
        outcome = super().evaluate(context)
        with torch.no_grad():
            next(context.backbone.parameters()).mul_(1.01)
        return outcome


class Guesses(Measures):
    guessed = 0

    def judge(self, train, test, device="cpu"):
        type(self).guessed += 1
        return Outcome({"mean": float(self.guessed)}, {})


class ForgetsWhatItLearned(Measures):
    wants = "run"

    def begin(self, backbone, splits, device):
        self.steps = 0

    def after_step(self, backbone, batch):
        self.steps += 1

    def evaluate(self, context):
        return Outcome({"mean": float(self.steps)}, {})


@pytest.mark.parametrize(
    ("evaluation", "function"),
    [
        (GivesNoNumber, evaluations.it_measures_what_it_says),
        (
            TrainsTheNetwork,
            evaluations.one_network_is_judged_the_same_on_one_process_and_on_two,
        ),
        (Guesses, evaluations.one_network_is_judged_the_same_on_one_process_and_on_two),
        (
            ForgetsWhatItLearned,
            evaluations.a_run_that_goes_on_is_judged_as_one_that_was_not_stopped,
        ),
    ],
    ids=lambda x: x.__name__,
)
def test_a_wrong_evaluation_is_found_out(evaluation, function):
    with pytest.raises(AssertionError, match=r"\w"):
        chosen(evaluation_checks(evaluation), function)()


class Dots(InMemory):
    """Eight images of gray."""

    def __init__(self, split):
        images = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 1, 4, 4)
        super().__init__(images, torch.arange(8) % 2, 2, check_split(split))


class TakesAnySplit(Dots):
    def __init__(self, split):
        super().__init__("train")


class MoreLabelsThanClasses(Dots):
    def __init__(self, split):
        super().__init__(split)
        self.labels = torch.arange(8)


class Floats(Dots):
    def fetch(self, index):
        return super().fetch(index) / 255


class LooksBeside(Dots):
    def fetch(self, index):
        return super().fetch(index) + len(index)


class OneName(Dots):
    def names(self, index):
        return ["an image"] * len(index)


class StaysHere(Dots):
    def __getstate__(self):
        return self.__dict__ | {"images": 2 * self.images}


@pytest.mark.parametrize(
    ("dataset", "function"),
    [
        (TakesAnySplit, datasets.it_has_its_splits_and_no_other),
        (MoreLabelsThanClasses, datasets.labels_are_classes_or_unknown),
        (Floats, datasets.images_are_bytes_of_one_number_of_channels),
        (LooksBeside, datasets.an_image_is_the_same_whenever_it_is_fetched),
        (OneName, datasets.images_are_known_by_name_and_size),
        (StaysHere, datasets.it_goes_to_other_processes),
    ],
    ids=lambda x: x.__name__,
)
def test_a_wrong_data_set_is_found_out(dataset, function):
    chosen(dataset_checks(Dots), function)()
    with pytest.raises(AssertionError, match=r"\w"):
        chosen(dataset_checks(dataset), function)()


def test_a_check_is_called_by_its_subject_and_what_it_checks():
    check = chosen(memory_checks(EndToEnd), memories.any_batch_will_do)
    assert str(check) == "EndToEnd-any_batch_will_do"
    assert str(method_checks(RECIPE)[0]).startswith("fashion_mnist/rotation-it_names_its_family")
