"""Evaluations while a run trains: when they are due, what is kept of them, and which was best."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ssl_zoo.config import DATASETS, ConfigError, DueEpochs, Part, PositiveFloat, not_among
from ssl_zoo.config.part import Ready, known_by
from ssl_zoo.data import Data, Splits
from ssl_zoo.data.image import Views
from ssl_zoo.engine.hooks import Checkpoints, Hook
from ssl_zoo.engine.stop import Interrupted
from ssl_zoo.evaluation.base import (
    LINE_KEYS,
    Context,
    Evaluation,
    Outcome,
    declared,
    hashed,
    identity,
    measure,
)
from ssl_zoo.ops.modes import eval_mode
from ssl_zoo.system import distributed
from ssl_zoo.system.rng import kept_random_state, seed_all

TAKEN = ("all", "by_hand", "source")  # what commands and folders mean by these


class EvaluationData:
    """Other images or operations than the run's; what is not said is the run's."""

    validate = staticmethod(Splits.validate)

    def __init__(self, *, dataset: Part[DATASETS] | None = None, clean: Part[Views] | None = None):
        blocks = {"dataset": dataset, "clean": clean}
        self.blocks = {name: block for name, block in blocks.items() if block is not None}


class Monitored:
    """The monitor's keys of an evaluation's block.

    Args:
        every_epochs: epochs between two evaluations, fractions allowed; null: only at the end.
        data: null: the run's.
        network: one of the method's `networks`; null: the one that its paper evaluates.
    """

    def __init__(
        self,
        *,
        every_epochs: DueEpochs[PositiveFloat | None] = 1.0,
        data: Part[EvaluationData] | None = None,
        network: str | None = None,
    ):
        self.every_epochs, self.blocks = every_epochs, data().blocks if data else {}
        self.network = network


def check_blocks(parts: Mapping[str, Part]) -> None:
    """Raises ConfigError for what only an evaluation's name, type and data together tell."""
    for name, part in parts.items():
        kind, key = part.target, f"evaluations.{name}"
        usable = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", name)
        if not usable or name in TAKEN:
            expected = f"text of letters, digits, _ and -, and not {' or '.join(TAKEN)}"
            raise ConfigError(key, "no name for an evaluation", found=repr(name), expected=expected)
        if isinstance(part, Ready):
            problem = "a ready evaluation, whose arguments its results could not name"
            expected = f"partial({type(part.made).__name__}, ...)"
            raise ConfigError(key, problem, found=type(part.made).__name__, expected=expected)
        if (metric := declared(part, "metric")) in LINE_KEYS:
            problem = "no name for a metric, as lines of metrics.jsonl have it"
            raise ConfigError(key, problem, found=repr(metric))
        if kind.own_data and "dataset" in part.beside().blocks:
            expected = f"{key}.dataset; data.clean alone says what becomes of colors"
            raise ConfigError(f"{key}.data.dataset", "it has data of its own", expected=expected)
        if kind.wants == "run" and "dataset" in part.beside().blocks:
            problem = f"{kind.__name__} learns the run's classes and is judged on them"
            raise ConfigError(f"{key}.data.dataset", problem, expected="data of `clean` alone")


def splits_of(parts: Mapping[str, Part], run: Splits) -> dict[str, Splits]:
    """The data of each evaluation; those over the same images share one object."""

    shared, of = {known_by(run.blocks): run}, {}
    for name, part in parts.items():
        blocks = run.blocks | part.beside().blocks
        key = known_by(blocks)
        if key not in shared:
            same = {"pool": run.pool, "workers": run.workers, "max_bad": run.max_bad}
            shared[key] = Splits(run.seed, **same, **blocks)
        of[name] = shared[key]
    return of


def chosen(name: str, part: Part, networks: Iterable[str]) -> str:
    """Which of a method's networks an evaluation is of; the first, unless its block names one."""
    names = list(networks)
    network = part.beside().network or names[0]
    if network not in names:
        key, problem = f"evaluations.{name}.network", "the method has no network of this name"
        raise not_among(key, problem, network, names)
    return network


def baselines_for(evaluation: Evaluation, splits: Splits) -> dict[str, Callable | None]:
    """What an evaluation has to beat on these data, see `Evaluation.baselines`."""
    offered = getattr(splits.blocks["dataset"].target, "baselines", {})
    return evaluation.baselines | (offered if evaluation.offered_baselines else {})


def baseline_network(make: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """A function of the seed alone, the same on all ranks; random states are left as they were."""
    with kept_random_state(device):
        seed_all(seed)
        return make().to(device)


def best_of(parts: Mapping[str, Part], best: str | None) -> tuple[str, str]:
    """(evaluation, metric) that decides which checkpoint is best; ('', '') without evaluations."""
    name, _, metric = (best or next(iter(parts), "")).partition(".")
    if name in parts:
        return name, metric or declared(parts[name], "metric")
    if best is None:
        return "", ""
    raise not_among("best", f"{best!r} names no evaluation of this config", name, parts)


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
        with kept_random_state(torch.device("cpu")):  # a GPU's is seeded once a run is built
            self.evaluations: dict[str, Evaluation] = {n: part() for n, part in parts.items()}
        self.every = {name: part.beside().every_epochs for name, part in parts.items()}
        self.run_splits, self.splits = data.splits, splits_of(parts, data.splits)
        self.best_name, self.best_metric = best_of(parts, best)
        self.best_value: float | None = None
        self.latest: dict[str, dict[str, Any]] = {}

    def begin(self, method: nn.Module, device: torch.device) -> None:
        """Once the run is built: evaluations get their networks."""
        self.networks = method.networks()
        self.evaluated = next(iter(self.networks))
        self.chosen = {n: chosen(n, part, self.networks) for n, part in self.parts.items()}
        with kept_random_state(device):
            for name, evaluation in self.evaluations.items():
                evaluation.begin(self.networks[self.chosen[name]], self.splits[name], device)

    def before_train(self, trainer) -> None:
        self._check(trainer.device)
        all_splits = (self.run_splits, *self.splits.values())
        for line in dict.fromkeys(line for splits in all_splits for line in splits.found()):
            trainer.say(line)
        # Files are rank 0's to read: another rank may not see them, on several machines.
        lines = distributed.attempt(trainer.folder.metrics)
        if trainer.step == 0 and self.with_baselines:
            done = {(x["name"], x["baseline"]) for x in lines if x["kind"] == "baseline"}
            self._measure_baselines(trainer, done)
        # Figures on other images, as of before a set has changed, are not compared with.
        usual = {
            name: hashed(
                identity(
                    self.parts[name],
                    evaluation,
                    self.splits[name],
                    self.chosen[name],
                    self.evaluated,
                )
            )
            for name, evaluation in self.evaluations.items()
        }
        lines = [line for line in lines if line["kind"] == "evaluation"]
        # What stands after a dash is of images that could not be read.
        lines = [x for x in lines if x["hash"].partition("-")[0] == usual.get(x["name"])]
        made = self._restore(trainer, lines)
        self._evaluate(trainer, [name for name in self._due(trainer) if name not in made])

    def _check(self, device: torch.device) -> None:
        """What an evaluation would refuse is refused before the first step."""
        for name, evaluation in self.evaluations.items():
            try:
                with kept_random_state(device):
                    evaluation.check(self.splits[name])
            except ValueError as error:
                raise ConfigError(f"evaluations.{name}", str(error)) from error

    def _restore(self, trainer, lines: list[dict[str, Any]]) -> set[str]:
        """Takes up what earlier sittings measured; names of those that this step needs no more."""
        made = set()
        for line in lines:
            name = line["name"]
            if name == self.best_name:
                self._is_best(line[self.best_metric])
            if line["step"] == trainer.step:
                made.add(name)
                known = distributed.attempt(lambda name=name: trainer.folder.evaluation(name))
                if known.get("step") == trainer.step:  # not of a later step, since forgotten
                    self._show(trainer, name, known)
        # At the end result.json needs them.
        return made & self.latest.keys() if trainer.step == trainer.total_steps else made

    def after_step(self, trainer, batch, out) -> None:
        learners = {n: e for n, e in self.evaluations.items() if e.wants == "run"}
        if learners:
            with kept_random_state(trainer.device), torch.no_grad():
                for name, evaluation in learners.items():
                    backbone = self.networks[self.chosen[name]]
                    with eval_mode(backbone):
                        evaluation.after_step(backbone, batch)
        self._evaluate(trainer, self._due(trainer))

    def after_train(self, trainer) -> None:
        trainer.results["evaluations"] = {name: self.latest[name] for name in self.evaluations}
        if self.best_name:
            metric = f"{self.best_name}.{self.best_metric}"
            trainer.results["best"] = {"metric": metric, "value": self.best_value}

    def state_dict(self) -> dict[str, Any]:
        return {name: evaluation.state_dict() for name, evaluation in self.evaluations.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, evaluation in self.evaluations.items():
            evaluation.load_state_dict(state.get(name, {}))

    def _due(self, trainer) -> list[str]:
        at_end = trainer.step == trainer.total_steps
        return [
            name
            for name, every in self.every.items()
            if at_end or (every and trainer.step and trainer.step % trainer.steps_in(every) == 0)
        ]

    def _evaluate(self, trainer, names: Iterable[str]) -> None:
        caches: dict[str, dict] = {network: {} for network in self.networks}
        for name in names:
            self.checkpoints.save(trainer)
            # On several ranks only the checkpoints know whether all are to stop.
            if trainer.stop.asked and distributed.world() == 1:
                saved = trainer.folder.checkpoint(trainer.step)
                raise Interrupted(f"stopped before {name} at step {trainer.step}; saved {saved}")
            network = self.chosen[name]
            backbone, cache = self.networks[network], caches[network]
            measured, outcome = self._measure(
                trainer, name, backbone, network, cache, self.evaluated
            )
            measured = {"step": trainer.step, "epoch": trainer.epoch, **measured}
            if distributed.is_main():
                rows = outcome.rows.csv() if outcome.rows is not None else ""
                trainer.folder.write_evaluation(name, measured, rows)
            metrics = measured["metrics"]
            if name == self.best_name and self._is_best(metrics[self.best_metric]):
                self.checkpoints.keep_as_best(trainer)
            # Last: the line says that all of this was done.
            trainer.record("evaluation", name=name, **metrics, hash=measured["hash"])
            self._show(trainer, name, measured)

    def _measure_baselines(self, trainer, done: set) -> None:
        wanted: dict[tuple[str, Callable | None], list[str]] = {}
        for name, evaluation in self.evaluations.items():
            for baseline, make in baselines_for(evaluation, self.splits[name]).items():
                if (name, baseline) not in done:
                    wanted.setdefault((baseline, make), []).append(name)
        for (baseline, make), names in wanted.items():
            # Before the first step a method's networks are copies of one.
            backbone, cache = self.networks[self.evaluated], {}
            if make:
                backbone = baseline_network(make, self.splits[names[0]].seed, trainer.device)
            for name in names:
                if any(distributed.collect(trainer.stop.asked)):
                    raise Interrupted(f"stopped before {baseline} of {name}, a baseline, at step 0")
                result, _ = self._measure(trainer, name, backbone, baseline, cache)
                values = {**result["metrics"], "hash": result["hash"]}
                trainer.record("baseline", name=name, baseline=baseline, **values)

    def _measure(
        self,
        trainer,
        name: str,
        backbone: nn.Module,
        network: str,
        cache: dict,
        evaluated: str | None = None,
    ) -> tuple[dict[str, Any], Outcome]:
        context = Context(
            backbone=backbone,
            network=network,
            evaluated=evaluated,
            splits=self.splits[name],
            device=trainer.device,
            folder=trainer.folder.inside("evaluations", name, f"step_{trainer.step:08d}"),
            precision=trainer.precision,
            stop=trainer.stop,
            cache=cache,
        )
        with trainer.paused():
            measured, outcome = measure(self.parts[name], self.evaluations[name], context)
        if name == self.best_name and self.best_metric not in outcome.metrics:
            raise not_among("best", f"no metric of {name}", self.best_metric, outcome.metrics)
        return measured, outcome

    def _is_best(self, value: float) -> bool:
        """Whether this is the best so far, which it then is; not a number never is."""
        if math.isnan(value):
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
