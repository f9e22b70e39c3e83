"""The same network from other weights, for a transfer to be compared with."""

from dataclasses import replace

import timm
import torch
from torch import nn

from ssl_zoo.backbones import Timm, without_initial_weights
from ssl_zoo.config import BACKBONES, ConfigError, Part, bind
from ssl_zoo.data.image import Views
from ssl_zoo.engine.parallel import load_weights
from ssl_zoo.evaluation.base import UNTRAINED
from ssl_zoo.experiment import Subject, seeded
from ssl_zoo.system.files import user_path
from ssl_zoo.weights.as_subject import subject_of
from ssl_zoo.weights.file import read_header

RANDOM, SUPERVISED = "random", "supervised"


def started(subject: Subject, init: str, device: torch.device) -> Subject:
    """A subject's architecture, in its folder, from other weights, which see what they are used to.

    Args:
        init: `random`, by the run's seed; `supervised`, timm's for a model of this name; or what
            `subject_of` takes: the network that its method's paper evaluates.

    Raises:
        FileNotFoundError: no such run or file.
        ValueError: the weights are of another architecture, or cannot be had.
    """
    backbone = _architecture(subject)
    data = subject.sections["data"]
    clean = data.arguments()["clean"]
    network = seeded(subject.sections["seed"], without_initial_weights(backbone), device).to(device)
    name = UNTRAINED
    if init == SUPERVISED:
        model = _published(backbone)
        load_weights(network.model, model.state_dict())
        of = model.pretrained_cfg
        name = f"supervised, timm's {of['architecture']}.{of['tag']}"
        numbers = {"mean": list(of["mean"]), "std": list(of["std"])}
        clean = bind(Views, {"ops": {"normalize": {"type": "Normalize", **numbers}}}, "data.clean")
    elif init != RANDOM:
        path = user_path(init)
        other = subject_of(path, device)
        try:
            load_weights(network, next(iter(other.networks.values())).state_dict())
        except ValueError as error:
            raise ValueError(f"--init {init}: {error}") from error
        name, clean = f"weights of {path}", other.sections["data"].arguments()["clean"]
    sections = {**subject.sections, "data": data.replaced(data.target, clean=clean)}
    return replace(
        subject, sections=sections, networks={name: network}, untrained=True, state={}, classes=None
    )


def _architecture(subject: Subject) -> Part:
    if "backbone" in subject.sections:
        return subject.sections["backbone"]
    return bind(BACKBONES, read_header(subject.path).backbone, "backbone")


def _published(backbone: Part) -> nn.Module:
    """timm's model with the weights that it has published."""
    given = backbone.arguments()
    if backbone.target is not Timm or given["small_images"]:
        found = "small_images" if backbone.target is Timm else backbone.type
        problem = "nobody has published supervised weights of such a network"
        raise ConfigError(
            "backbone", problem, found=found, expected="one of timm's, as it is there"
        )
    name = given["name"]
    settings = {"num_classes": 0, "in_chans": given["in_chans"], **(given["options"] or {})}
    known = timm.models.get_pretrained_cfg(name)
    if known is None or not known.has_weights:
        raise ValueError(f"--init supervised: timm has published no weights of {name}")
    try:
        return timm.create_model(name, pretrained=True, **settings)
    except Exception as error:  # no network, no such file there, another shape: each its own
        reason = str(error).strip().split("\n")[0]
        problem = f"timm's weights of {name} cannot be had: {type(error).__name__}: {reason}"
        raise ValueError(f"--init supervised: {problem}") from error
