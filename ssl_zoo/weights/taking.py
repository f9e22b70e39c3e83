"""A backbone out of what trained it, or judged as if it had been."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch

from ssl_zoo import config as configs
from ssl_zoo.backbones import Timm
from ssl_zoo.backbones.timm_model import TimmModel
from ssl_zoo.config import ConfigError, Part, not_among
from ssl_zoo.evaluation.base import NETWORK
from ssl_zoo.experiment import load_subject, resolve
from ssl_zoo.experiment.sections import seeded
from ssl_zoo.experiment.subject import Subject
from ssl_zoo.weights.file import Header, build, read_header


@dataclass(frozen=True)
class Taken:
    """A backbone taken out of what trained it.

    Attributes:
        subject: the run; None of a file that was imported.
    """

    backbone: TimmModel
    header: Header
    subject: Subject | None = field(default=None, repr=False)


def take(path: Path, network: str | None = None) -> Taken:
    """A network of a run (its newest checkpoint) or of a checkpoint, or a file of weights.

    Raises:
        ConfigError: no such network.
        ValueError: its backbone is none of timm's, so no library knows it.
    """
    if header := read_header(path):
        if network is not None:
            raise ValueError(f"{path} has one network; found network={network}")
        return Taken(build(header.backbone, safetensors.torch.load_file(path)), header)
    subject = load_subject(path, torch.device("cpu"))
    name = next(iter(subject.networks)) if network is None else network
    if name not in subject.networks:
        raise not_among("network", "no such network of it", name, subject.networks)
    trained: Part = subject.sections["backbone"]
    if trained.target is not Timm:
        raise ValueError(f"{path}: its backbone is {trained.type}, expected Timm")
    given = trained.arguments()
    kept = {key: given[key] for key in ("in_chans", "small_images", "options")}
    usual = Part(Timm).arguments()
    block = {"type": "Timm", "name": given["name"]}
    block |= {key: value for key, value in kept.items() if value and value != usual[key]}
    # Built anew: training put layers of its own into it, for a CPU and for groups of the batch.
    backbone = build(block, subject.networks[name].model.state_dict())
    clean = subject.sections["data"].arguments()["clean"].spelled_out()
    source = {"run": str(subject.path), "step": subject.step, "network": name}
    return Taken(backbone, Header(block, clean, source), subject)


def judged_by(path: Path, config: Path | None, device: torch.device) -> Subject | None:
    """A file of weights with the data and evaluations of a config; None of any other file.

    Raises ConfigError where no config says by what it is to be judged.
    """
    header = read_header(path)
    if header is None:
        return None
    if config is None:
        problem = f"{path} has no images that judge it"
        raise ConfigError("--data", problem, expected="a config, whose images and evaluations do")
    written = configs.load(config)
    # Another network than the config's: none of its backbone's keys is kept.
    configs.override(written, [("backbone", None)])
    configs.override(written, [("backbone", {**header.backbone, "weights": str(path)})])
    sections = resolve(written).arguments()
    network = seeded(sections["seed"], sections["backbone"], device).to(device)
    return Subject(sections, {NETWORK: network}, path=path)
