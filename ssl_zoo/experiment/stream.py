"""What does not go with a stream of images, told before any of them is read."""

import inspect
from collections.abc import Callable
from types import NoneType
from typing import get_args

from ssl_zoo.config import ConfigError, Part
from ssl_zoo.config.constraints import type_hints
from ssl_zoo.core import Method
from ssl_zoo.experiment.length import durations, walk

COUNTED = "text as '500 steps'"


def check_stream(whole: Part) -> None:
    """Raises ConfigError where a config asks a stream for what only a set has: a size, epochs, any
    image at any time.
    """
    sections = whole.arguments()
    data: Part = sections["data"]
    dataset = data.kwargs["dataset"]
    for name, part in sections["evaluations"].items():
        _check_evaluation(name, part, dataset)
    if not is_stream(dataset):
        return
    stream = f"{dataset.target.__name__} is a stream"
    for key, part in walk(sections["method"], "method"):
        if why := needs_a_set(part.target):
            name, expected = part.target.__name__, "a data set of a known size, or another part"
            raise ConfigError(key, f"{stream}, and {name} {why}", found=name, expected=expected)
    no_epochs = f"{stream}, which has no epochs"
    if epochs := sections["train"].arguments()["epochs"]:
        expected = "train.steps, and train.epochs=null"
        raise ConfigError("train.epochs", no_epochs, found=f"{epochs:g}", expected=expected)
    for key, _, number, unit in durations(whole):
        if unit == "epochs" and number:
            raise ConfigError(key, no_epochs, found=f"{number:g}", expected=COUNTED)
    if bad := data.arguments()["max_bad"]:
        problem = f"{stream}, in which no image can stand in for another"
        raise ConfigError("data.max_bad", problem, found=str(bad), expected="0")


def _check_evaluation(name: str, part: Part, of_run: Part) -> None:
    dataset = part.beside().blocks.get("dataset", of_run)
    if part.target.own_data or not is_stream(dataset):
        return
    found, expected = dataset.target.__name__, "a data set of a known size"
    problem = f"{found} is a stream, and an evaluation goes through its images as it likes"
    if part.target.wants == "run":
        problem = f"{found} is a stream, and {part.target.__name__} learns the classes of a set"
        expected = f"evaluations.{name}=null"
    raise ConfigError(f"evaluations.{name}.data.dataset", problem, found=found, expected=expected)


def is_stream(dataset: Part) -> bool:
    return not getattr(dataset.target, "sized", True)


def needs_a_set(target: Callable) -> str:
    """Why a part of a method does not go with a stream; '' if it does. Its declarations tell."""
    if getattr(target, "per_sample", None):
        return "keeps something of every training image"
    if getattr(target, "before_epoch", Method.before_epoch) is not Method.before_epoch:
        return "looks at the whole training set before an epoch"
    asks = {"num_samples": "how many training images there are", "labels": "the labels of them all"}
    parameters, hints = inspect.signature(target).parameters, type_hints(target)
    for name, what in asks.items():
        if name in parameters and NoneType not in get_args(hints.get(name)):
            return f"has to know {what}"
    return ""
