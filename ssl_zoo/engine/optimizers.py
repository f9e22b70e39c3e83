"""Optimisers, built from a method so that it can group its parameters."""

from __future__ import annotations

import math

import torch
from timm.optim import Lars

from ssl_zoo.config import OPTIMIZERS, ConfigError, at_least, within
from ssl_zoo.core import Method


@OPTIMIZERS.register_module()
def SGD(
    method: Method,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
    decay_norm_and_bias: bool = True,
) -> torch.optim.Optimizer:
    """SGD with momentum."""
    groups = method.param_groups(weight_decay, decay_norm_and_bias)
    # Fused: one kernel a group on a GPU; on a CPU it is slower than the plain one.
    fused = groups[0]["params"][0].is_cuda
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
    if fused and momentum:
        start_momentum(optimizer)
        optimizer.register_load_state_dict_post_hook(start_momentum)
    return optimizer


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Makes the momentum buffers that are not there, zeros.

    Else torch's fused SGD (2.15) makes them at the first step, and leaves them unwritten if fp16's
    scaler finds an overflow there, as it often does. It fails if only some are there, as after
    loading the state of a run on a CPU in which a layer is still frozen.
    """
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        if optimizer.state[p].get("momentum_buffer") is None:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


@OPTIMIZERS.register_module()
def AdamW(
    method: Method,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.05,
    decay_norm_and_bias: bool = False,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (arXiv:1711.05101)."""
    groups = method.param_groups(weight_decay, decay_norm_and_bias)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


@OPTIMIZERS.register_module()
def LARS(
    method: Method,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    trust_coeff: float = 0.001,
    decay_norm_and_bias: bool = False,
) -> torch.optim.Optimizer:
    """Layer-wise adaptive rates for large batches (arXiv:1708.03888); timm's.

    Parameters without weight decay are not adapted, as in SimCLR.
    """
    groups = method.param_groups(weight_decay, decay_norm_and_bias)
    return Lars(groups, lr=lr, momentum=momentum, trust_coeff=trust_coeff)


def _validate(
    *,
    lr: float,
    momentum: float = 0.0,
    betas: tuple[float, float] = (0.0, 0.0),
    weight_decay: float = 0.0,
    trust_coeff: float = 0.0,
    **_,
) -> None:
    for name, value in {"lr": lr, "weight_decay": weight_decay, "trust_coeff": trust_coeff}.items():
        at_least(name, value, 0)
        if math.isinf(value):
            raise ConfigError(name, "not finite", found=repr(value), expected="a finite number")
    within("momentum", momentum, 0, 1)
    for beta in betas:
        if not 0 <= beta < 1:
            raise ConfigError("betas", "out of range", found=repr(betas), expected="in [0, 1)")


SGD.validate = AdamW.validate = LARS.validate = _validate
