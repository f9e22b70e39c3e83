"""Optimizers, built from a method so that it can group its parameters."""

import torch
from timm.optim import Lars

from ssl_zoo.config import (
    OPTIMIZERS,
    HalfOpenUnitInterval,
    NonNegativeFloat,
    Scheduled,
    UnitInterval,
)
from ssl_zoo.core import Method


@OPTIMIZERS.register_module()
def SGD(
    method: Method,
    *,
    lr: Scheduled[NonNegativeFloat],
    momentum: Scheduled[UnitInterval] = 0.9,
    weight_decay: Scheduled[NonNegativeFloat] = 1e-4,
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

    Else torch's fused SGD (2.15) leaves them unwritten if fp16's scaler finds an overflow at the
    first step, and fails if only some are there (a CPU's run in which a layer is still frozen).
    """
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        if optimizer.state[p].get("momentum_buffer") is None:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


@OPTIMIZERS.register_module()
def AdamW(
    method: Method,
    *,
    lr: Scheduled[NonNegativeFloat],
    betas: tuple[HalfOpenUnitInterval, HalfOpenUnitInterval] = (0.9, 0.999),
    weight_decay: Scheduled[NonNegativeFloat] = 0.05,
    decay_norm_and_bias: bool = False,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (arXiv:1711.05101)."""
    groups = method.param_groups(weight_decay, decay_norm_and_bias)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


@OPTIMIZERS.register_module()
def LARS(
    method: Method,
    *,
    lr: Scheduled[NonNegativeFloat],
    momentum: Scheduled[UnitInterval] = 0.9,
    weight_decay: Scheduled[NonNegativeFloat] = 1e-6,
    trust_coeff: NonNegativeFloat = 0.001,
    decay_norm_and_bias: bool = False,
) -> torch.optim.Optimizer:
    """Layer-wise adaptive rates for large batches (arXiv:1708.03888); timm's.

    Parameters without weight decay are not adapted, as in SimCLR.
    """
    groups = method.param_groups(weight_decay, decay_norm_and_bias)
    return Lars(groups, lr=lr, momentum=momentum, trust_coeff=trust_coeff)
