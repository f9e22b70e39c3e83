"""A backbone out of what trained it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ssl_zoo.backbones import Timm
from ssl_zoo.backbones.timm_model import TimmModel
from ssl_zoo.config import Part
from ssl_zoo.experiment import load_subject
from ssl_zoo.experiment.subject import Subject
from ssl_zoo.weights.file import Header, build, load, read_header


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
        return Taken(load(path, header), header)
    subject = load_subject(path, torch.device("cpu"))
    name = subject.named(network)
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
