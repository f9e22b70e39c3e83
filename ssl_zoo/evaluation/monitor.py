"""Evaluations while a run trains: when they are due, what is kept of them, and which was best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ssl_zoo.config import DATASETS, ConfigError, Part, PositiveFloat, closest
from ssl_zoo.data import Data, Splits
from ssl_zoo.data.image import Views
from ssl_zoo.engine.hooks import Checkpoints, Hook
from ssl_zoo.evaluation.base import (
    Context,
    Evaluation,
    Outcome,
    hashed,
    identity,
    result,
)
from ssl_zoo.ops.modes import frozen
from ssl_zoo.system import distributed
from ssl_zoo.system.rng import kept_random_state

NETWORK = "backbone"  # of a method, the one that is kept and judged


class EvaluationData:
    """Other images than the run's; what is not said is the run's.

    Args:
        dataset: its training images and its test images.
        clean: operations without randomness.
    """

    def __init__(self, *, dataset: Part[DATASETS] | None = None, clean: Part[Views] | None = None):
        self.dataset, self.clean = dataset, clean

    def splits(self, run: Splits) -> Splits:
        blocks = {
            "dataset": self.dataset or run.blocks["dataset"],
            "clean": self.clean or run.blocks["clean"],
        }
        return Splits(run.seed, workers=run.workers, **blocks)


class Monitored:
    """The monitor's keys of an evaluation's block.

    Args:
        every_epochs: epochs between two evaluations, fractions allowed; null: only at the end.
        data: null: the run's.
    """

    def __init__(
        self,
        *,
        every_epochs: PositiveFloat | None = 1.0,
        data: Part[EvaluationData] | None = None,
    ):
        self.every_epochs, self.data = every_epochs, data


def monitored(part: Part) -> Monitored:
    """The monitor's keys of a block."""
    return part.beside() if part.beside is not None else Monitored()


def splits_of(parts: Mapping[str, Part], run: Splits) -> dict[str, Splits]:
    """The data of each evaluation; those over the same images share one object."""
    shared: dict[str, Splits] = {}  # keyed by what they hold; the run's own comes first
    of: dict[str, Splits] = {}
    for name, part in parts.items():
        data = monitored(part).data
        splits = data().splits(run) if data is not None else run
        key = str({n: block.spelled_out() for n, block in splits.blocks.items()})
        of[name] = shared.setdefault(key, splits)
    return of


def offered(splits: Splits) -> Mapping[str, Callable[[], nn.Module]]:
    """The baselines that a data set has to offer."""
    return getattr(splits.blocks["dataset"].target, "baselines", {})


class Monitor(Hook):
    """Evaluates frozen networks every few epochs and at the end; training does not notice.

    Before an evaluation a checkpoint is saved, so one that fails loses nothing, and one that a
    sitting did not come to is made up for by the next.

    Args:
        parts: the blocks, by the user's names.
        data: the run's.
        checkpoints: saves, and keeps the best.
        best: 'NAME.metric' that decides which checkpoint is best; null: the first's main metric.
        baselines: measure them before the first step.
    """

    def __init__(
        self,
        parts: dict[str, Part],
        data: Data,
        checkpoints: Checkpoints,
        best: str | None = None,
        baselines: bool = True,
    ):
        self.parts, self.checkpoints, self.with_baselines = parts, checkpoints, baselines
        self.evaluations: dict[str, Evaluation] = {name: part() for name, part in parts.items()}
        self.splits = splits_of(parts, data.splits)
        self.best_name, self.best_metric = best_of(parts, best)
        self.best_value: float | None = None
        self.latest: dict[str, dict[str, Any]] = {}

    def before_train(self, trainer) -> None:
        # What an evaluation would refuse is refused before the first step.
        for name, evaluation in self.evaluations.items():
            try:
                evaluation.check(self.splits[name])
            except ValueError as error:
                raise ConfigError(f"evaluations.{name}", str(error)) from error
        # Files are rank 0's to read: another rank may not see them, on several machines.
        mine = distributed.is_main()
        lines = distributed.broadcast(trainer.folder.metrics() if mine else None)
        known = {n: trainer.folder.evaluation(n) for n in self.evaluations} if mine else None
        known = distributed.broadcast(known)
        for line in lines:
            if line["kind"] == "evaluation" and line["name"] == self.best_name:
                self._is_best(line.get(self.best_metric))
        missing = []
        for name in self.evaluations:
            if known[name].get("step") == trainer.step:
                self._show(trainer, name, known[name])
            elif trainer.step and self._due(trainer, name):
                missing.append(name)
        if trainer.step == 0 and self.with_baselines:
            done = {(line["name"], line["baseline"]) for line in lines if "baseline" in line}
            self._measure_baselines(trainer, done)
        self._evaluate(trainer, missing)

    def after_step(self, trainer, batch, out) -> None:
        learners = {n: e for n, e in self.evaluations.items() if e.wants == "run"}
        if learners:
            backbone = trainer.method.encoder.backbone
            with frozen(backbone, trainer.device):
                for evaluation in learners.values():
                    evaluation.after_step(backbone, batch)
        due = [name for name in self.evaluations if self._due(trainer, name)]
        if due:
            self.checkpoints.save(trainer)
            # On several ranks only the checkpoints know whether all are to stop.
            if not (trainer.stop.asked and distributed.world() == 1):
                self._evaluate(trainer, due)

    def after_train(self, trainer) -> None:
        trainer.results["evaluations"] = self.latest
        if self.best_name:
            trainer.results["best"] = {
                "metric": f"{self.best_name}.{self.best_metric}",
                "value": self.best_value,
            }

    def begin(self, method: nn.Module, device: torch.device) -> None:
        """Once the run is built: those that learn beside it get their networks."""
        with kept_random_state(device):
            for name, evaluation in self.evaluations.items():
                evaluation.begin(method.encoder.backbone, self.splits[name], device)

    def state_dict(self) -> dict[str, Any]:
        return {name: evaluation.state_dict() for name, evaluation in self.evaluations.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, evaluation in self.evaluations.items():
            evaluation.load_state_dict(state.get(name, {}))

    def _due(self, trainer, name: str) -> bool:
        every = monitored(self.parts[name]).every_epochs
        at_end = trainer.step == trainer.total_steps
        return at_end or (every is not None and trainer.step % trainer.steps_in(every) == 0)

    def _evaluate(self, trainer, names: list[str]) -> None:
        if not names:
            return
        trainer.check_finite()
        cache: dict = {}
        for name in names:
            outcome = self._run(trainer, name, trainer.method.encoder.backbone, NETWORK, cache)
            of = identity(self.parts[name], self.splits[name], NETWORK)
            measured = result(self.parts[name], self.evaluations[name], outcome, of)
            measured = {"step": trainer.step, "epoch": trainer.epoch, **measured}
            if distributed.is_main():
                rows = outcome.rows.csv() if outcome.rows is not None else ""
                trainer.folder.write_evaluation(name, measured, rows)
            if name == self.best_name and self._is_best(outcome.metrics.get(self.best_metric)):
                self.checkpoints.keep_as_best(trainer)
            trainer.record("evaluation", name=name, **outcome.metrics, hash=measured["hash"])
            self._show(trainer, name, measured)

    def _run(self, trainer, name: str, backbone: nn.Module, network: str, cache: dict) -> Outcome:
        context = Context(
            backbone,
            network,
            self.splits[name],
            trainer.device,
            trainer.precision,
            trainer.folder.inside("evaluations", name, f"step_{trainer.step:08d}"),
            trainer.stop,
            trainer.say,
            cache,
        )
        with trainer.paused(), kept_random_state(trainer.device):
            return self.evaluations[name].evaluate(context)

    def _measure_baselines(self, trainer, done: set) -> None:
        caches: dict[str, dict] = {}
        for name, evaluation in self.evaluations.items():
            for baseline, network in evaluation.baselines(offered(self.splits[name])).items():
                if (name, baseline) in done:
                    continue
                backbone = trainer.method.encoder.backbone if network is None else network
                cache = caches.setdefault(baseline, {})
                outcome = self._run(trainer, name, backbone, baseline, cache)
                of = identity(self.parts[name], self.splits[name], baseline)
                trainer.record(
                    "baseline", name=name, baseline=baseline, **outcome.metrics, hash=hashed(of)
                )

    def _is_best(self, value: float | None) -> bool:
        """Whether this is the best so far, which it then is."""
        if value is None:
            return False
        sign = 1 if self.evaluations[self.best_name].higher_is_better else -1
        better = self.best_value is None or sign * value > sign * self.best_value
        if better:
            self.best_value = value
        return better

    def _show(self, trainer, name: str, measured: dict[str, Any]) -> None:
        self.latest[name] = measured
        value = measured["metrics"][measured["main"]]
        trainer.status[f"evaluation {name}"] = f"{name} {value:.2f}{measured['unit']}"


def best_of(parts: dict[str, Part], best: str | None) -> tuple[str, str]:
    """(evaluation, metric) that decides which checkpoint is best; ('', '') without evaluations.

    Raises:
        ConfigError: no such evaluation.
    """
    if best is None:
        first = next(iter(parts), "")
        return first, parts[first].target.metric if first else ""
    name, _, metric = best.partition(".")
    if name not in parts:
        raise ConfigError(
            "best",
            "names no evaluation of this config",
            measured=repr(best),
            expected=f"NAME.metric, NAME one of {', '.join(parts) or 'none'}",
            nearest=closest(name, parts),
        )
    return name, metric or parts[name].target.metric
