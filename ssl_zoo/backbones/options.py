"""timm's models by name and options, with errors that say which of them was wrong."""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from functools import cache
from itertools import chain

import timm
import torch
from timm.models import get_pretrained_cfg, is_model, list_models, list_pretrained
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


def check_model(name: str, options: dict) -> None:
    """Raises ConfigError for a name that timm lacks and for options that a backbone sets."""
    for key in sorted(_NOT_OPTIONS.keys() & options.keys()):
        raise ConfigError(f"options.{key}", _NOT_OPTIONS[key], found=repr(options[key]))
    if options.get("global_pool") == "":
        raise ConfigError("options.global_pool", "features are pooled", found="''", expected="avg")
    if not is_model(name.split(".")[0]):
        nearest = closest(name, list_models())
        raise ConfigError("name", "timm knows no such model", found=repr(name), nearest=nearest)
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:
        nearest = closest(name, list_pretrained())
        raise ConfigError("name", str(error), found=repr(name), nearest=nearest) from error


def create_model(name: str, in_chans: int, options: dict) -> nn.Module:
    """timm's model without its classifier.

    Raises:
        ConfigError: whatever timm's constructor raises; the option without which it raises nothing
            is named.
    """
    try:
        return timm.create_model(name, num_classes=0, in_chans=in_chans, **options)
    except Exception as error:  # timm checks few values: a wrong one fails anywhere, as anything
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        named = [unknown[1]] if unknown and unknown[1] in options else []
        needless = (key for key in options if _is_taken(name, in_chans, options, without=key))
        wrong = next(chain(named, needless), "")
        known = inspect.signature(type(without_weights(name)).__init__).parameters if wrong else ()
        raise ConfigError(
            f"options.{wrong}" if wrong else "options",
            f"timm's {name} does not take it: {type(error).__name__}: {error}",
            found=repr(options[wrong] if wrong else options),
            nearest=closest(wrong, known) if wrong not in known else "",
        ) from error


def _is_taken(name: str, in_chans: int, options: dict, without: str) -> bool:
    rest = {key: value for key, value in options.items() if key != without}
    with torch.device("meta"), suppress(Exception):
        timm.create_model(name, num_classes=0, in_chans=in_chans, **rest)
        return True
    return False


@cache
def without_weights(name: str) -> nn.Module:
    """A model on the meta device; to be looked at only, since all callers share it."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, in_chans=3)
