"""The sections of a config, as the signature of one function, and the run that they make."""

import math
from pathlib import Path

import torch
from torch import nn

from ssl_zoo import backbones, evaluation, heads, losses, memory, methods  # noqa: F401  (register)
from ssl_zoo import config as configs
from ssl_zoo.backbones import check_built, without_initial_weights
from ssl_zoo.backbones.cpu import speed_up
from ssl_zoo.config import (
    BACKBONES,
    EVALUATIONS,
    METHODS,
    OBSERVERS,
    OPTIMIZERS,
    SCHEDULES,
    Config,
    NonNegativeInt,
    Part,
    bind,
    refuse_recorded,
)
from ssl_zoo.core import network_paths
from ssl_zoo.data import Data
from ssl_zoo.engine import optimizers  # noqa: F401  (registers)
from ssl_zoo.engine.hooks import (
    Checkpoints,
    Hook,
    MetricsLogger,
    ProgressBar,
    ResultWriter,
    Unreadable,
)
from ssl_zoo.engine.hooks.scheduling import Schedules
from ssl_zoo.engine.settings import TrainSettings, prepare, scale_lr
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.evaluation.monitor import Monitor, Monitored
from ssl_zoo.experiment.batches import check_batches
from ssl_zoo.experiment.check import check_whole, views_needed
from ssl_zoo.experiment.fit import check_fit
from ssl_zoo.experiment.known_data import KnownData
from ssl_zoo.experiment.length import check_ramps, in_own_units
from ssl_zoo.runs import RunFolder
from ssl_zoo.system.rng import seed_all, seed_rank

# What looks on unless a config's `observers` says otherwise.
_TYPES = {"telemetry": "Telemetry", "collapse": "Collapse"}
_TYPES |= {"keys": "KeyDrift", "labels": "SameLabel"}
_OBSERVERS = {name: bind(OBSERVERS, {"type": kind}) for name, kind in _TYPES.items()}


def whole_run(
    device: torch.device,
    folder: RunFolder,
    baselines: bool = True,
    *,
    seed: NonNegativeInt = 0,
    data: Part[Data],
    backbone: Part[BACKBONES],
    method: Part[METHODS],
    optimizer: Part[OPTIMIZERS],
    schedules: dict[str, Part[SCHEDULES]] = {},  # noqa: B006
    train: Part[TrainSettings],
    checkpoint: Part[Checkpoints] = Part(Checkpoints),  # noqa: B008
    evaluations: dict[str, Part[EVALUATIONS, Monitored]] = {},  # noqa: B006
    best: str | None = None,
    observers: dict[str, Part[OBSERVERS]] = _OBSERVERS,
    nudge_weights: bool = False,
) -> Trainer:
    """A whole run; the top level of a config is a call of this function.

    Args:
        baselines: whether evaluations measure theirs before the first step.
        best: 'NAME.metric' that decides what is best.pt; null: the first evaluation's main metric.
        observers: what looks on; a block of one's own takes the place of all.
        nudge_weights: the backbone starts one unit in the last place away, see `nudge`. What
            comes of that is what rounding alone can do.
    """
    settings: TrainSettings = train()
    if settings.threads != "auto":
        torch.set_num_threads(settings.threads)
    boxes, views = method.target.needs_boxes, views_needed(method)
    images = data(run_seed=seed, boxes=boxes, views_needed=views)

    def own(part: Part) -> Part:
        return in_own_units(part, images.steps_per_epoch)

    method, optimizer, checkpoint = own(method), own(optimizer), own(checkpoint)
    schedules, evaluations, observers = (
        {name: own(part) for name, part in parts.items()}
        for parts in (schedules, evaluations, observers)
    )
    network = seeded(seed, backbone, device, nudge_weights)
    check_built(network, method.target.needs, method.target.__name__)
    pretext = method(
        backbone=network,
        num_samples=images.num_samples,
        num_classes=images.num_classes,
        labels=images.labels,
    ).to(device, memory_format=torch.channels_last)
    rule = optimizer(method=pretext)
    scale_lr(rule, images.batch_size, settings.lr_reference_batch)
    pretext = prepare(pretext, settings, device)
    cut = {name: data.arguments()[name] for name in ("batch_size", "drop_last")}
    check_batches(pretext, images.num_samples, **cut, accumulate=settings.accumulate)
    scheduled = Schedules({name: schedule() for name, schedule in schedules.items()})
    keeper: Checkpoints = checkpoint()
    monitor = Monitor(evaluations, images, keeper, best, baselines)
    watching = {name: observer() for name, observer in observers.items()}
    labels = images.labels
    if labels is not None and not (labels >= 0).any():
        labels = None
    hooks: dict[str, Hook] = {
        "progress": ProgressBar(),
        "schedules": scheduled,
        "metrics": MetricsLogger(scheduled, watching, labels),
        "data": KnownData(images, monitor),
        "unreadable": Unreadable(images.splits.unreadable),
        "evaluations": monitor,
        "checkpoints": keeper,
        "result": ResultWriter(),
    }
    trainer = Trainer(pretext, images, rule, hooks, device, folder, settings)
    trainer.networks = network_paths(pretext)
    scheduled.attach(trainer)
    monitor.begin(pretext, device)
    seed_rank(seed)  # what methods draw differs per rank
    return trainer


whole_run.named = "a config"  # in errors


def seeded(seed: int, backbone: Part, device: torch.device, nudged: bool = False) -> nn.Module:
    """The first thing drawn from the seed, so that runs with one seed start from one backbone."""
    seed_all(seed)
    # Channels last is what convolutions run fastest in, in training and in evaluation alike.
    network = backbone().to(memory_format=torch.channels_last)
    if nudged:
        nudge(network)
    return speed_up(network) if device.type == "cpu" else network


@torch.no_grad()
def nudge(network: nn.Module) -> None:
    """Moves every weight of the first layer up to the next number that a float can be.

    The first layer, and not the first parameter: that is a ViT's class token, which starts so near
    zero that the sum with its position loses the last place.
    """
    layers = (p for name, p in network.named_parameters() if name.endswith("weight") and p.ndim > 1)
    first = next(layers)
    first.copy_(first.nextafter(first.new_tensor(math.inf)))


def resolve(config: Config) -> Part:
    """A whole config as the call that it makes, each block checked against its constructor."""
    with config.located():
        return bind(whole_run, config.data)


def parse(config: Config, trained: bool = False) -> Part:
    """`resolve`, and whether its sections go together; reads no data, builds nothing.

    `trained`: it is of a run that was trained, of which not all is asked that a new one owes: it
    needs no initial weights, and its ramps are what they were.
    """
    with config.located():
        whole = resolve(config)
        refuse_recorded(whole)
        check_whole(_from_checkpoint(whole) if trained else whole)
        if not trained:
            check_ramps(whole)
            check_fit(whole.arguments())
        return whole


def _from_checkpoint(whole: Part) -> Part:
    backbone = without_initial_weights(whole.arguments()["backbone"])
    return whole.replaced(whole.target, backbone=backbone)


def build_trainer(
    config: Config,
    device: torch.device,
    folder: RunFolder | Path,
    baselines: bool = True,
    trained: bool = False,
) -> Trainer:
    """Builds a run that starts at its first step; `Trainer.resume` goes on from a checkpoint.

    It has to where the run is `trained`, as initial weights are then left out.
    """
    whole = parse(config, trained)
    folder = RunFolder(folder) if isinstance(folder, Path) else folder
    call = _from_checkpoint(whole) if trained else whole
    with config.located():
        built: Trainer = call(device=device, folder=folder, baselines=baselines)
        if not trained:
            check_ramps(whole, built.total_steps, built.data.steps_per_epoch)
        if not (dataset := built.data.dataset).varies:
            _, height, width = dataset.fetch(built.data.sampler.first(1)[1])[0].shape
            check_fit(call.arguments(), (height, width))
    built.config_text = configs.dump(whole.spelled_out())
    return built
