"""Looking at a module without a trace on its training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and every submodule's mode as it was outside."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


@contextmanager
def frozen(module: nn.Module, device: torch.device | str = "cpu") -> Iterator[None]:
    """Evaluation mode, no gradients; afterwards modes and torch's RNG are bitwise as they were."""
    # Not `inference_mode`: a tensor that a backbone caches in it is lost to training.
    device = torch.device(device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad(), eval_mode(module):
        yield
