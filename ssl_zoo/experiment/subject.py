"""What is judged after training: a backbone out of a run, a checkpoint or a config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_zoo import config as configs
from ssl_zoo.config import EVALUATIONS, Config, ConfigError, Part, bind, closest
from ssl_zoo.data import Splits
from ssl_zoo.engine import checkpoint
from ssl_zoo.engine.parallel import load_weights
from ssl_zoo.engine.precision import choose
from ssl_zoo.evaluation.base import (
    UNTRAINED,
    Context,
    Evaluation,
    Outcome,
    hashed,
    identity,
    result,
)
from ssl_zoo.evaluation.monitor import NETWORK, Monitored, splits_of
from ssl_zoo.experiment.sections import parse, seeded
from ssl_zoo.runs import RunFolder

PREFIX = "encoder.backbone."


@dataclass
class Subject:
    """A backbone with the config that it was trained by.

    Attributes:
        network: 'backbone', or 'random backbone' where nothing was trained.
        step: after which it was saved.
        state: of what learned beside the method, by the evaluation's name.
        folder: the run's; of a config, a folder of its name.
    """

    sections: dict[str, Any]
    backbone: nn.Module
    network: str
    step: int
    path: Path
    state: Mapping[str, Any]
    folder: RunFolder

    def part(self, name: str, overrides: list[str]) -> Part:
        """The block of an evaluation by its name in the config, or else by its type.

        Args:
            overrides: 'key=value' of the block.

        Raises:
            ConfigError: neither, or a wrong block.
        """
        known = self.sections["evaluations"]
        types = {kind.lower(): kind for kind in EVALUATIONS.module_dict}
        if name in known:
            block = known[name].spelled_out()
        elif name.lower() in types:
            block = {"type": types[name.lower()]}
        else:
            names = [*known, *types]
            raise ConfigError(
                "",
                "no evaluation of this name",
                found=repr(name),
                expected=f"all, or one of {', '.join(names)}",
                nearest=closest(name, names),
            )
        written = Config({"evaluations": {name: block}})
        prefix = f"evaluations.{name}"
        configs.override(written, overrides, prefix)
        try:
            return bind(EVALUATIONS, written.data["evaluations"][name], prefix, Monitored)
        except ConfigError as error:
            error.where = error.where or written.where(error.key)
            raise

    def evaluate(
        self, parts: Mapping[str, Part], device: torch.device
    ) -> Iterator[tuple[str, dict[str, Any], Outcome]]:
        """(name, result, outcome) of each; all are checked before the first is paid for.

        Raises:
            ValueError: the data or the backbone do not go with an evaluation.
        """
        splits = splits_of(parts, run_splits(self.sections))
        evaluations: dict[str, Evaluation] = {name: part() for name, part in parts.items()}
        for name, evaluation in evaluations.items():
            evaluation.check(splits[name])
            if name in self.state:
                evaluation.begin(self.backbone, splits[name], device)
                evaluation.load_state_dict(self.state[name])
        cache: dict = {}
        precision = choose(device, self.sections["train"].arguments()["precision"])[0]
        for name, evaluation in evaluations.items():
            of = identity(parts[name], splits[name], self.network)
            context = Context(
                self.backbone,
                self.network,
                splits[name],
                device,
                precision,
                self.folder.inside("evaluations", name, hashed(of)),
                cache=cache,
            )
            with context.stop:
                outcome = evaluation.evaluate(context)
            yield name, result(parts[name], evaluation, outcome, of), outcome


def run_splits(sections: Mapping[str, Any]) -> Splits:
    """The data of a config, as evaluations use them."""
    data = sections["data"].arguments()
    named = {name: data[name] for name in ("dataset", "clean", "workers")}
    return Splits(sections["seed"], **named)


def load_subject(path: Path, device: torch.device) -> Subject:
    """A run folder (its newest checkpoint), a checkpoint, or a config (untrained weights).

    Raises:
        FileNotFoundError: nothing there to load.
        ValueError: a broken checkpoint, or one of another version.
    """
    if path.suffix in (".yaml", ".yml"):
        sections = parse(configs.load(path)).arguments()
        backbone = seeded(sections["seed"], sections["backbone"], device).to(device)
        folder = RunFolder(Path("runs", "untrained", path.stem))
        return Subject(sections, backbone, UNTRAINED, 0, path, {}, folder)
    folder = RunFolder(path if path.is_dir() else path.parent.parent)
    if path.is_dir():
        saved = folder.checkpoints()
        if not saved:
            raise FileNotFoundError(
                f"{path}: no checkpoints; expected a run folder with checkpoints/step_*.pt"
            )
        path = saved[-1]
    elif not path.is_file():
        raise FileNotFoundError(f"{path}: no such run folder or checkpoint")
    state = checkpoint.read(path)
    sections = parse(configs.loads(state["config"], str(path))).arguments()
    backbone = seeded(sections["seed"], sections["backbone"], device)
    weights = {
        k.removeprefix(PREFIX): v for k, v in state["method"].items() if k.startswith(PREFIX)
    }
    try:
        load_weights(backbone, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    learned = state["trainer"]["hooks"].get("evaluations", {})
    learned = {name: kept for name, kept in learned.items() if kept}
    step = state["trainer"]["step"]
    return Subject(sections, backbone.to(device), NETWORK, step, path, learned, folder)
