"""Initial weights from a local file."""

from timm.models import load_checkpoint
from torch import nn

from ssl_zoo.config import ConfigError, closest
from ssl_zoo.system.files import user_path


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
        keys = load_checkpoint(model, file, strict=False, weights_only=True).missing_keys
        expected = f"also {', '.join(keys[:3])}, ..." if keys else ""
    except Exception as error:  # each of torch's and safetensors' readers raises its own kind
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        expected = f"a whole state_dict of it; {reason}"
    if expected:
        raise ConfigError("weights", "not this model's weights", found=path, expected=expected)
