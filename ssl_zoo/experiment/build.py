"""Config -> Trainer; the only module that reads a whole config."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ssl_zoo import (
    backbones,
    heads,  # noqa: F401  (registers)
    losses,  # noqa: F401  (registers)
    memory,  # noqa: F401  (registers)
    methods,  # noqa: F401  (registers)
)
from ssl_zoo import config as configs
from ssl_zoo.backbones.cpu import speed_up
from ssl_zoo.config import (
    BACKBONES,
    METHODS,
    OPTIMIZERS,
    SCHEDULES,
    Config,
    ConfigError,
    Part,
    bind,
    closest,
    signature,
)
from ssl_zoo.data import Data
from ssl_zoo.engine import (
    checkpoint,
    optimizers,  # noqa: F401  (registers)
)
from ssl_zoo.engine.hooks import Checkpointing, MetricsLogger, ProgressBar, ResultWriter
from ssl_zoo.engine.schedules import Schedules
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.evaluation.monitor import KNNMonitor
from ssl_zoo.system import distributed


def experiment(
    device: torch.device,
    folder: Path,
    *,
    seed: int = 0,
    data: Part[Data],
    backbone: Part[BACKBONES],
    method: Part[METHODS],
    optimizer: Part[OPTIMIZERS],
    schedules: dict[str, Part[SCHEDULES]] = {},  # noqa: B006
    train: Part[Trainer],
    checkpoint: Part[Checkpointing] = Part(Checkpointing),  # noqa: B008
    knn: Part[KNNMonitor] | None = None,
) -> Trainer:
    """A whole run; the top level of a config is a call of this function."""
    images = data(seed=seed, boxes=method.target.needs_boxes)
    network = _seeded(seed, backbone, device)
    pretext = method(
        backbone=network,
        num_samples=images.num_samples,
        num_classes=images.num_classes,
        labels=images.labels,
    ).to(device, memory_format=torch.channels_last)
    scheduled = Schedules({name: schedule() for name, schedule in schedules.items()})
    monitor = [knn()] if knn is not None else []
    trainer = train(
        method=pretext,
        data=images,
        optimizer=optimizer(method=pretext),
        hooks=[
            ProgressBar(),
            scheduled,
            MetricsLogger(scheduled),
            *monitor,
            checkpoint(),
            ResultWriter(),
        ],
        device=device,
        folder=folder,
    )
    scheduled.attach(trainer)
    torch.manual_seed(seed * 1_000_003 + distributed.rank())  # what methods draw differs per rank
    return trainer


def parse(config: Config) -> Part:
    """Checks a whole config against the constructors it calls; reads no data, builds nothing.

    Raises:
        ConfigError: naming file, line, key, what was found and what was expected.
    """
    try:
        whole = bind(experiment, config.data)
        _check_schedules(whole)
        _check_views(whole)
        _check_backbone(whole)
        _check_backbone_runs(whole)
        _check_sync_bn(whole)
    except ConfigError as error:
        error.where = error.where or config.where(error.key)
        raise
    return whole


def trainer(config: Config, device: torch.device, folder: Path) -> Trainer:
    """Builds a run that starts at its first step.

    Raises:
        ConfigError: as `parse`, and what constructors object to once they have their data.
    """
    whole = parse(config)
    try:
        built = whole(device=device, folder=folder)
    except ConfigError as error:
        error.where = error.where or config.where(error.key)
        raise
    built.config_text = configs.dump(whole.spelled_out())
    return built


def data_and_backbone(config: Config, device: torch.device | str = "cpu") -> tuple[Data, nn.Module]:
    """The data of a config, and its backbone with the weights that its runs start from."""
    parts = parse(config).kwargs
    seed = parts.get("seed", 0)
    return parts["data"](seed=seed), _seeded(seed, parts["backbone"], torch.device(device))


def trained_backbone(
    path: Path, device: torch.device | str = "cpu"
) -> tuple[Data, nn.Module, dict]:
    """Data, backbone and {step, path} of a run folder (its newest checkpoint) or a checkpoint.

    Of a config, the weights that its runs start from: the random baseline.

    Raises:
        FileNotFoundError: nothing there to load.
    """
    if path.suffix in (".yaml", ".yml"):
        return *data_and_backbone(configs.load(path), device), {"step": 0, "path": str(path)}
    if path.is_dir():
        found = checkpoint.saved(path)
        if not found:
            raise FileNotFoundError(
                f"{path}: no checkpoints; expected a run folder with checkpoints/step_*.pt"
            )
        path = found[-1]
    elif not path.is_file():
        raise FileNotFoundError(f"{path}: no such run folder or checkpoint")
    state = checkpoint.read(path)
    data, backbone = data_and_backbone(configs.loads(state["config"], str(path)), device)
    prefix = "encoder.backbone."
    weights = {
        k.removeprefix(prefix): v for k, v in state["method"].items() if k.startswith(prefix)
    }
    checkpoint.load_weights(backbone, weights, path)
    return data, backbone, {"step": state["step"], "path": str(path)}


def _seeded(seed: int, backbone: Part, device: torch.device) -> nn.Module:
    """The first thing drawn from the seed, so that runs with one seed start from one backbone."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # Channels last is what convolutions run fastest in, in training and in evaluation alike.
    network = backbone().to(memory_format=torch.channels_last)
    return speed_up(network) if device.type == "cpu" else network


def _check_schedules(whole: Part) -> None:
    """A scheduled name is `optimizer.X` or the dotted key of a number under `method`."""
    for name, schedule in whole.kwargs.get("schedules", {}).items():
        path = name.split(".")
        owner, key = whole, f"schedules.{name}"
        for depth, step in enumerate(path[:-1]):
            parts = {k: v for k, v in owner.kwargs.items() if isinstance(v, Part)}
            if step not in parts or (depth == 0 and step not in ("optimizer", "method")):
                choices = ["optimizer", "method"] if depth == 0 else list(parts)
                raise ConfigError(
                    key,
                    "names no part of this config",
                    found=step,
                    expected=f"one of {', '.join(choices) or 'none'}",
                    nearest=closest(step, choices),
                )
            owner = parts[step]
        numbers = [
            n for n, p in signature(owner.target)[1].items() if p.annotation in ("float", float)
        ]
        if path[-1] not in numbers or len(path) < 2:
            raise ConfigError(
                key,
                "not a number that can be scheduled",
                found=path[-1],
                expected=f"a number of {owner.target.__name__}: {', '.join(numbers)}",
                nearest=closest(path[-1], numbers),
            )
        final = schedule.spelled_out().get("final")
        if final is not None and hasattr(owner.target, "validate"):
            try:
                owner.target.validate(**owner.kwargs | {path[-1]: final})
            except ConfigError as error:
                error.key = f"{key}.final"
                raise


def _check_views(whole: Part) -> None:
    method, views = whole.kwargs["method"], whole.kwargs["data"].kwargs["views"]
    needed = method.target.views_needed(**method.kwargs)
    made = views.spelled_out()["count"]
    if made < needed:
        raise ConfigError(
            "data.views.count",
            f"too few views for {method.target.__name__}",
            found=str(made),
            expected=f"at least {needed}",
        )


def _check_backbone(whole: Part) -> None:
    """A method that masks patches wants a ViT, and so on."""
    method, backbone = whole.kwargs["method"], whole.kwargs["backbone"]
    needs = method.target.needs
    provides = getattr(backbone.target, "provides", lambda **_: {"features"})
    if needs == "features" or needs in provides(**backbone.kwargs):
        return
    raise ConfigError(
        "backbone.name" if "name" in backbone.kwargs else "backbone.type",
        f"{method.target.__name__} needs {needs} of its backbone",
        found=backbone.kwargs.get("name", backbone.type),
        expected=backbones.FITS[needs],
    )


def _check_backbone_runs(whole: Part) -> None:
    """What a backbone's constructor would object to, where it can tell without being called."""
    backbone = whole.kwargs["backbone"]
    if hasattr(backbone.target, "dry_run"):
        backbone.replaced(backbone.target.dry_run)()


def _check_sync_bn(whole: Part) -> None:
    """One statistic over all processes leaves ShuffleBN nothing to shuffle between."""
    method = whole.kwargs["method"].spelled_out()
    blocks = {"method": method, "method.memory": method.get("memory") or {}}
    shuffles = [f"{key}.shuffle_bn" for key, block in blocks.items() if block.get("shuffle_bn")]
    if not whole.kwargs["train"].kwargs.get("sync_bn"):
        return
    if whole.kwargs["backbone"].spelled_out().get("bn_groups", 1) > 1:
        raise ConfigError(
            "train.sync_bn",
            "joins what bn_groups splits",
            found="sync_bn: true beside bn_groups above 1",
            expected="one of the two",
        )
    if shuffles:
        raise ConfigError(
            "train.sync_bn",
            "undoes ShuffleBN",
            found="sync_bn: true beside shuffle_bn: true",
            expected=f"one of the two; {shuffles[0]}=false turns the other off",
        )
