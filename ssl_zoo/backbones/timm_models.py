"""timm's models by name, options and weights, with errors that say which of them was wrong."""

import inspect
import re
from contextlib import suppress
from functools import cache
from itertools import chain

import timm
import torch
from timm import models
from torch import nn

from ssl_zoo.config import ConfigError, closest
from ssl_zoo.system.files import user_path

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
    if not models.is_model(name.split(".")[0]):
        nearest = closest(name, models.list_models())
        raise ConfigError("name", "timm knows no such model", found=repr(name), nearest=nearest)
    try:
        models.get_pretrained_cfg(name)
    except RuntimeError as error:
        nearest = closest(name, models.list_pretrained())
        raise ConfigError("name", str(error), found=repr(name), nearest=nearest) from error


def create_model(name: str, in_chans: int, options: dict) -> nn.Module:
    """timm's model without its classifier; ConfigError names the option that timm does not take."""
    try:
        return timm.create_model(name, num_classes=0, in_chans=in_chans, **options)
    except Exception as error:  # timm checks few values: a wrong one fails anywhere, as anything
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        named = [unknown[1]] if unknown and unknown[1] in options else []
        needless = (key for key in options if _is_taken(name, in_chans, options, without=key))
        wrong = next(chain(named, needless), "")
        known = inspect.signature(type(without_weights(name)).__init__).parameters if wrong else ()
        nearest = closest(wrong, known) if wrong not in known else ""
        key, found = (f"options.{wrong}", options[wrong]) if wrong else ("options", options)
        problem = f"timm's {name} does not take it: {type(error).__name__}: {error}"
        raise ConfigError(key, problem, found=repr(found), nearest=nearest) from error


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


def check_weights(path: str) -> None:
    """Raises ConfigError, with the nearest name in its folder, where there is no such file."""
    file = user_path(path)
    if file.is_file():
        return
    names = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
    close = closest(file.name, names)
    nearest = str(file.parent / close) if close else ""
    raise ConfigError("weights", "no such file", found=path, nearest=nearest)


def load_weights(model: nn.Module, path: str) -> None:
    """From a state_dict with or without a classifier; ConfigError unless all weights are in it."""
    check_weights(path)
    expected = ""
    try:
        file = str(user_path(path))
        keys = models.load_checkpoint(model, file, strict=False, weights_only=True).missing_keys
        expected = f"also {', '.join(keys[:3])}, ..." if keys else ""
    except Exception as error:  # each of torch's and safetensors' readers raises its own kind
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        expected = f"a whole state_dict of it; {reason}"
    if expected:
        raise ConfigError("weights", "not this model's weights", found=path, expected=expected)


def checkpoint_gradients(model: nn.Module, name: str) -> None:
    """Raises ConfigError where timm does not offer it."""
    try:
        model.set_grad_checkpointing()
    except (AttributeError, AssertionError) as error:
        problem = f"timm has none for {name}"
        raise ConfigError("grad_checkpointing", problem, expected="false") from error


def replace_stem(model: nn.Module, name: str) -> None:
    """A ResNet's by one 3 x 3 convolution without pooling; ConfigError for another model."""
    if not isinstance(model, models.ResNet):
        expected = "a timm ResNet (resnet18, resnet50, resnext50_32x4d, ...)"
        raise ConfigError("small_images", f"{name} has no stem to replace", expected=expected)
    layers = list(model.conv1) if isinstance(model.conv1, nn.Sequential) else [model.conv1]
    channels = layers[0].in_channels, layers[-1].out_channels
    model.conv1 = nn.Conv2d(*channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
