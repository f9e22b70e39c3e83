"""timm's models by name and options, with errors that say which of them was wrong."""

import inspect
from contextlib import suppress
from functools import cache

import timm
import torch
from timm import models
from torch import nn

from ssl_zoo.config import ConfigError, closest

# What timm's constructors would take, and what to say instead.
_NOT_OPTIONS = {
    "pretrained": "weights come from `weights`",
    "checkpoint_path": "weights come from `weights`",
    "in_chans": "channels come from `in_chans`",
    "num_classes": "a backbone has no classifier",
    "features_only": "a backbone gives pooled features",
}


def create_model(name: str, in_chans: int, options: dict) -> nn.Module:
    """timm's model without its classifier; ConfigError names what timm does not take."""
    _check_name(name)
    for key in sorted(_NOT_OPTIONS.keys() & options.keys()):
        raise ConfigError(f"options.{key}", _NOT_OPTIONS[key], found=repr(options[key]))
    if options.get("global_pool") == "":
        raise ConfigError("options.global_pool", "features are pooled", found="''", expected="avg")
    try:
        return timm.create_model(name, num_classes=0, in_chans=in_chans, **options)
    except Exception as error:  # timm checks few values: a wrong one fails anywhere, as anything
        wrong = next(
            (key for key in options if _is_taken(name, in_chans, options, without=key)), ""
        )
        known = inspect.signature(type(without_weights(name)).__init__).parameters if wrong else ()
        nearest = closest(wrong, known) if wrong not in known else ""
        key, found = (f"options.{wrong}", options[wrong]) if wrong else ("options", options)
        problem = f"timm's {name} does not take it: {type(error).__name__}: {error}"
        raise ConfigError(key, problem, found=repr(found), nearest=nearest) from error


def _check_name(name: str) -> None:
    if not models.is_model(name.split(".")[0]):
        nearest = closest(name, models.list_models())
        raise ConfigError("name", "timm knows no such model", found=repr(name), nearest=nearest)
    try:
        models.get_pretrained_cfg(name)
    except RuntimeError as error:
        nearest = closest(name, models.list_pretrained())
        raise ConfigError("name", str(error), found=repr(name), nearest=nearest) from error


def _is_taken(name: str, in_chans: int, options: dict, without: str) -> bool:
    rest = {key: value for key, value in options.items() if key != without}
    with torch.device("meta"), suppress(Exception):
        timm.create_model(name, num_classes=0, in_chans=in_chans, **rest)
        return True
    return False


@cache
def without_weights(name: str) -> nn.Module:
    """A model on the meta device; to be looked at only, since all callers share it."""
    _check_name(name)
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, in_chans=3)
