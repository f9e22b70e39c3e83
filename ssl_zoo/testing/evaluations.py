"""What every evaluation must do, at one process and at two."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ssl_zoo import config, experiment
from ssl_zoo.config import EVALUATIONS, Part
from ssl_zoo.engine.hooks import Hook
from ssl_zoo.engine.stop import Interrupted
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.evaluation.base import Evaluation
from ssl_zoo.runs import RunFolder
from ssl_zoo.testing.check import Check, each, part_of
from ssl_zoo.testing.methods import CPU, differing, state
from ssl_zoo.testing.ranks import on_ranks
from ssl_zoo.testing.tiny import TinyNet

NAME = "judged"
NORMALIZE = {"ops": {"normalize": {"type": "Normalize", "mean": [0.4], "std": [0.3]}}}
DATA = {"type": "Synthetic", "num_samples": 96, "size": 12, "channels": 1, "num_classes": 4}
RUN = {
    "data": {"dataset": DATA, "views": NORMALIZE, "clean": NORMALIZE, "batch_size": 16},
    "backbone": {"type": TinyNet.__name__, "norm": True},
    "method": {"type": "Rotation"},
    "optimizer": {"type": "SGD", "lr": 0.1},
    "train": {"epochs": 2, "precision": "fp32"},
}


def evaluation_checks(
    evaluation: Part | type[Evaluation] | Callable[..., Evaluation],
) -> list[Check]:
    """Checks of an evaluation: a class, or `functools.partial(MyEvaluation, k=20)`.

    It judges a network that was trained for 12 steps on 96 images of noise in 4 classes, tested on
    as many.
    """
    part, name = part_of(EVALUATIONS, evaluation)
    return each(CHECKS, part, name)


def ready(folder: Path, evaluation: Part | None) -> Trainer:
    """A run that is judged at the end of its two epochs, or by nothing."""
    judges = {} if evaluation is None else {NAME: evaluation}
    written = config.Config({**RUN, "evaluations": judges})
    trainer = experiment.build_trainer(written, CPU, RunFolder(folder), baselines=False)
    trainer.console.quiet = True
    return trainer


def result_of(trainer: Trainer) -> dict[str, Any]:
    found = trainer.folder.result()["evaluations"][NAME]
    return {name: value for name, value in found.items() if name != "seconds"}


def fitted(folder: Path, evaluation: Part | None) -> Trainer:
    trainer = ready(folder, evaluation)
    trainer.fit()
    return trainer


class StopInEpoch2(Hook):
    def before_step(self, trainer: Trainer) -> None:
        trainer.stop.asked = trainer.step == 8


def it_measures_what_it_says(evaluation: Part, folder: Path) -> None:
    found = result_of(fitted(folder, evaluation))
    metrics = found["metrics"]  # its main one is among them, or the run had not ended
    wrong = [n for n, v in metrics.items() if not (isinstance(v, float) and math.isfinite(v))]
    assert not wrong, f"no finite number: {', '.join(wrong)}"
    assert isinstance(found["higher_is_better"], bool)
    json.dumps(found["protocol"])


def training_is_the_same_without_it(evaluation: Part, folder: Path) -> None:
    judged, alone = fitted(folder / "judged", evaluation), fitted(folder / "alone", None)
    changed = differing(state(judged.method), state(alone.method))
    assert not changed, f"it changes what is trained: {', '.join(changed)}"


def a_run_that_goes_on_is_judged_as_one_that_was_not_stopped(
    evaluation: Part, folder: Path
) -> None:
    whole = result_of(fitted(folder / "whole", evaluation))
    stopped = ready(folder / "stopped", evaluation)
    stopped.hooks = {"stop": StopInEpoch2(), **stopped.hooks}
    with suppress(Interrupted):
        stopped.fit()
    resumed = ready(folder / "stopped", evaluation)
    assert resumed.resume()
    resumed.fit()
    found = result_of(resumed)
    assert found == whole, f"stopped {found['metrics']}, not stopped {whole['metrics']}"


def judged(evaluation: Part) -> dict[str, float]:
    """Metrics of a network that is as it was initialized, on any number of ranks."""
    whole = experiment.parse(config.Config({**RUN, "evaluations": {NAME: evaluation}}))
    sections = whole.arguments()
    backbone = experiment.seeded(0, sections["backbone"], CPU)
    subject = experiment.Subject(sections, {"backbone": backbone})
    before = state(backbone)
    ((_, result, _),) = subject.evaluate(sections["evaluations"], CPU)
    changed = differing(before, state(backbone))
    assert not changed, f"it changes the network: {', '.join(changed)}"
    return result["metrics"]


def one_network_is_judged_the_same_on_one_process_and_on_two(
    evaluation: Part, folder: Path
) -> None:
    if evaluation.target.wants == "run":
        return  # it judges no network that it has not seen in training
    one, again = judged(evaluation), judged(evaluation)
    assert one == again, f"one network, two results: {one}, {again}"
    for rank in on_ranks(2, judged, evaluation):
        torch.testing.assert_close(rank, one)


CHECKS = (
    it_measures_what_it_says,
    training_is_the_same_without_it,
    a_run_that_goes_on_is_judged_as_one_that_was_not_stopped,
    one_network_is_judged_the_same_on_one_process_and_on_two,
)
