"""What is judged after training: a backbone out of a run, a checkpoint or a config."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_zoo import config as configs
from ssl_zoo.backbones import without_initial_weights
from ssl_zoo.config import (
    DATASETS,
    EVALUATIONS,
    PYTHON,
    Config,
    ConfigError,
    Part,
    bind,
    convert,
    not_among,
    refuse_recorded,
)
from ssl_zoo.data import Data, Splits
from ssl_zoo.data.files import some
from ssl_zoo.engine import checkpoint
from ssl_zoo.engine.parallel import load_weights
from ssl_zoo.engine.precision import choose
from ssl_zoo.evaluation.base import (
    NETWORK,
    UNTRAINED,
    Context,
    Outcome,
    hashed,
    identity,
    measure,
)
from ssl_zoo.evaluation.monitor import Monitored, check_blocks, chosen, splits_of
from ssl_zoo.experiment.known_data import class_names
from ssl_zoo.experiment.sections import parse, resolve, seeded
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed
from ssl_zoo.system.files import sha256

INITIAL = "initial weights"  # a network that is not trained here, and was elsewhere
USED = ("dataset", "clean", "workers", "max_bad")  # of a run's data, by evaluations


@dataclass
class Subject:
    """A method's networks, with the config that they were trained by.

    Attributes:
        networks: by name, what the method's paper evaluates first; or the baseline alone.
        untrained: it is a baseline, whatever network a block names.
        folder: the run's; None: it is in no run.
        path: of the checkpoint, which was saved after `step`, of other weights, or of the config.
        state: of what learned beside the method, by the evaluation's name.
        classes: which it learned; None: unknown.
        trained_in: a folder for what evaluations train; None: see `_folder`.
    """

    sections: dict[str, Any]
    networks: Mapping[str, nn.Module]
    untrained: bool = False
    folder: RunFolder | None = None
    path: Path = Path()
    step: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)
    classes: list[str] | None = None
    trained_in: Path | None = None

    def named(self, network: str | None) -> str:
        """The name of one of its networks; None: of what the method's paper evaluates.

        Raises ConfigError where it has no such network.
        """
        name = next(iter(self.networks)) if network is None else network
        if name not in self.networks:
            raise not_among("network", "no such network of it", name, self.networks)
        return name

    def parts(self, name: str, overrides: list[str]) -> dict[str, Part]:
        """The block of an evaluation by its name in the config, or else by its type.

        `all` are those of the config, or else kNN and linear probes; overrides of a block are
        'key=value', of all 'NAME.key=value'.
        """
        types = {kind.lower(): {"type": kind} for kind in EVALUATIONS.names()}
        known = {
            n: part if part.type.startswith(PYTHON) else part.spelled_out(python=True)
            for n, part in self.sections["evaluations"].items()
        }
        if name == "all":
            blocks, prefix = known or {n: types[n] for n in ("knn", "linear")}, "evaluations"
        elif block := known.get(name) or types.get(name.lower()):
            blocks, prefix = {name: block}, f"evaluations.{name}"
        else:
            names = ["all", *known, *(n for n in types if n not in known)]
            raise not_among("", "no evaluation of this name", name, names)
        written = Config({"evaluations": blocks})
        configs.override(written, overrides, prefix)
        with written.located():
            blocks = written.data["evaluations"].items()
            hint = Part[EVALUATIONS, Monitored]
            parts = {n: convert(hint, b, f"evaluations.{n}") for n, b in blocks}
            for part in parts.values():
                refuse_recorded(part)
            check_blocks(parts)
            return parts

    def judge_by(
        self, config: Path | None, overrides: list[str], parts: Mapping[str, Part]
    ) -> None:
        """Puts other images in place of the run's, for those of `parts` without any of their own.

        Args:
            config: has them as its section `data`; None: the run's, changed.
            overrides: of that section, 'data.dataset.root=...'.
        """
        changed = {text.partition("=")[0].split(".")[1] for text in overrides}
        for key in sorted(changed - set(USED)):
            raise not_among(f"data.{key}", "an evaluation makes no use of it", key, USED)
        for key in changed | ({"dataset"} if config else set()):
            _check_of_run(key, parts)
        run = Config({"data": self.sections["data"].spelled_out()})
        written = configs.load(config) if config else run
        configs.override(written, overrides)
        with written.located():
            self.sections["data"] = bind(Data, written.data.get("data"), "data")

    def judge_on(self, dataset: Part[DATASETS], parts: Mapping[str, Part]) -> None:
        """Puts other images in place of the run's, as `judge_by` does."""
        _check_of_run("dataset", parts)
        data = self.sections["data"]
        self.sections["data"] = data.replaced(data.target, dataset=Part.of(dataset, DATASETS))

    def lacking(self, parts: Mapping[str, Part]) -> list[str]:
        """Names of those that learn beside a run, where this run had none of the name."""
        return [n for n, p in parts.items() if p.target.wants == "run" and n not in self.state]

    def evaluate(
        self, parts: Mapping[str, Part], device: torch.device, known: Container[str] = ()
    ) -> Iterator[tuple[str, dict[str, Any], Outcome]]:
        """(name, result, outcome) of each; all are checked before the first is paid for.

        Those of `known` hashes are left out.
        """
        for name in self.lacking(parts):
            trained = f"those trained beside that of {self.path}: {', '.join(self.state) or 'none'}"
            raise ValueError(f"{parts[name].type} is trained beside a method; {trained}")
        splits = splits_of(parts, run_splits(self.sections))
        evaluations = {name: part() for name, part in parts.items()}
        first = next(iter(self.networks))
        judged = {
            name: first if self.untrained else chosen(name, part, self.networks)
            for name, part in parts.items()
        }
        for name, evaluation in evaluations.items():
            evaluation.check(splits[name])
            if name in self.state:
                self._check_classes(name, splits[name])
                beside = chosen(name, self.sections["evaluations"][name], self.networks)
                if judged[name] != beside:
                    raise ValueError(f"{name} learned beside {beside}; found {judged[name]}")
                evaluation.begin(self.networks[judged[name]], splits[name], device)
                evaluation.load_state_dict(self.state[name])
        precision = choose(device, self.sections["train"].arguments()["precision"])[0]
        caches: dict[str, dict] = {network: {} for network in self.networks}
        with self._folder() as folder:
            for name, evaluation in evaluations.items():
                evaluated = None if self.untrained else first
                of = identity(parts[name], evaluation, splits[name], judged[name], evaluated)
                if hashed(of) in known:
                    continue
                context = Context(
                    backbone=self.networks[judged[name]],
                    network=judged[name],
                    evaluated=evaluated,
                    splits=splits[name],
                    device=device,
                    folder=folder.inside(name),
                    precision=precision,
                    cache=caches[judged[name]],
                )
                yield name, *measure(parts[name], evaluation, context)

    def _check_classes(self, name: str, splits: Splits) -> None:
        classes = class_names(splits.split("pretrain"))
        if self.classes is not None and classes != self.classes:
            learned, found = (f"{len(names)} ({some(names)})" for names in (self.classes, classes))
            problem = f"{name} learned the classes of {self.path}, {learned}"
            raise ValueError(f"{problem}; these images have others, {found}")

    @contextmanager
    def _folder(self) -> Iterator[RunFolder]:
        """For what evaluations train, which goes on there: beside what is judged.

        A temporary one, removed at the end, for random weights and where nothing can be written.
        """
        place = self.trained_in
        if place is None and not self.untrained:
            place = distributed.attempt(self.beside)
        if place is not None:
            yield RunFolder(place)
            return
        make = tempfile.TemporaryDirectory if distributed.is_main() else nullcontext
        with make() as path:
            yield RunFolder(distributed.broadcast(path))

    @cached_property
    def sha256(self) -> str:
        """Of the file that is judged."""
        return sha256(self.path)

    def of_now(self) -> Subject:
        """Itself, with the digest of its file taken: a run may replace or remove it meanwhile."""
        self.sha256  # noqa: B018
        return self

    def beside(self) -> Path | None:
        """Where what evaluations train belongs, beside the file that is judged.

        None if it cannot be written, or what is judged is in no file.
        """
        if not self.path.is_file():
            return None
        place = place_of(self.path)
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        if not os.access(there, os.W_OK):
            return None
        # Another file may come to have the name.
        return place / (f"step_{self.step:08d}" if self.folder else f"file_{self.sha256[:12]}")


def place_of(path: Path) -> Path:
    """Where what is measured by hand is kept: in the folder of a checkpoint's run, apart from what
    the run may be training there just now; of other files in FILE.evaluations beside them.
    """
    run = RunFolder.of_checkpoint(path)
    if run is None:
        return path.with_name(f"{path.name}.evaluations")
    return run.path / "evaluations" / "by_hand"


def _check_of_run(key: str, parts: Mapping[str, Part]) -> None:
    """Raises ConfigError where none of these uses what the run's data say."""
    if all(key in part.beside().blocks for part in parts.values()):
        problem = f"{' and '.join(parts)}: has a {key} of its own and not the run's"
        raise ConfigError(f"data.{key}", problem, expected=f"data='{{{key}: {{...}}}}'")


def run_splits(sections: Mapping[str, Any]) -> Splits:
    """The data of a config, as evaluations use them."""
    data = sections["data"].arguments()
    named = {name: data[name] for name in USED}
    return Splits(sections["seed"], **named)


def load_subject(
    path: Path, device: torch.device, given: Mapping[str, Any] | None = None
) -> Subject:
    """A run folder (its newest checkpoint), a checkpoint, or a config (its untrained weights, or
    the initial ones that it names).

    `given` are sections in place of those that a checkpoint records, as of what Python gave.

    Raises FileNotFoundError, or ValueError for a checkpoint that is broken or of another version.
    """
    if path.suffix in (".yaml", ".yml"):
        sections = parse(configs.load(path)).arguments()
        seed, nudged = sections["seed"], sections["nudge_weights"]
        backbone = seeded(seed, sections["backbone"], device, nudged)
        plain = without_initial_weights(sections["backbone"]).spelled_out()
        name = UNTRAINED if plain == sections["backbone"].spelled_out() else INITIAL
        return Subject(sections, {name: backbone.to(device)}, untrained=True, path=path)
    if path.is_dir():
        saved = RunFolder(path).checkpoints()
        if not saved:
            raise FileNotFoundError(f"{path}: expected a run folder with checkpoints/step_*.pt")
        path = saved[-1]
    elif not path.is_file():
        raise FileNotFoundError(f"{path}: no such run folder or checkpoint")
    state = checkpoint.read(path)
    written = configs.loads(state["config"], str(path))
    written.data |= given or {}
    sections = resolve(written).arguments()
    backbone = seeded(sections["seed"], without_initial_weights(sections["backbone"]), device)
    networks = {}
    # A checkpoint that does not say where its networks are was judged by this one.
    for name, place in state.get("networks", {NETWORK: "encoder.backbone"}).items():
        weights = {n: x for n, x in state["method"].items() if n.startswith(f"{place}.")}
        networks[name] = copy.deepcopy(backbone).to(device)
        try:
            load_weights(networks[name], {n[len(place) + 1 :]: x for n, x in weights.items()})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    folder = RunFolder.of_checkpoint(path)
    step, hooks = state["trainer"]["step"], state["trainer"]["hooks"]
    learned = {name: kept for name, kept in hooks.get("evaluations", {}).items() if kept}
    classes = hooks.get("data", {}).get("classes")
    of_file = {"folder": folder, "path": path, "step": step}
    subject = Subject(sections, networks, **of_file, state=learned, classes=classes)
    return subject.of_now()
