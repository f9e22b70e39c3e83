"""A file of weights as what evaluations judge."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from ssl_zoo.config import ConfigError, Part, bind
from ssl_zoo.data import Data
from ssl_zoo.data.image import Views
from ssl_zoo.engine.settings import TrainSettings
from ssl_zoo.evaluation.base import NETWORK
from ssl_zoo.experiment import Subject, load_subject
from ssl_zoo.weights.file import load, read_header


def subject_of(path: Path, device: torch.device, given: Mapping[str, Any] | None = None) -> Subject:
    """Of all that `load_subject` takes, and of a file of weights.

    The latter is judged on its own clean view where nothing else is given, and on no images of its
    own: `Subject.judge_by`, or an evaluation's `data`, says on which.
    """
    if (header := read_header(path)) is None:
        return load_subject(path, device, given)
    clean = bind(Views, header.clean, "data.clean")
    sections = {
        "seed": 0,
        "evaluations": {},
        "train": Part(TrainSettings),
        "data": Part(Data, dataset=Part(_no_images), clean=clean),
    }
    return Subject(sections, {NETWORK: load(path, header).to(device)}, path=path).of_now()


def _no_images(split: str) -> NoReturn:
    expected = "--data CONFIG, or data='{dataset: {...}}' of the evaluation"
    raise ConfigError("data", "a file of weights has no images to be judged by", expected=expected)
