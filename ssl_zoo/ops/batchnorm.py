"""BatchNorm in groups of the batch: virtual devices on one device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_zoo.system import distributed


class _Split:
    """Mixed in before a BatchNorm class: in training, each group of rows is normalized alone."""

    groups: int

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        if len(x) < self.groups:
            problem = f"a process's batch or micro-batch has only {len(x)} images"
            raise ValueError(f"backbone.bn_groups is {self.groups}, and {problem}; expected more")
        # As tensor_split divides, but with a backward pass that is one concatenation.
        small, more = len(x) // self.groups, len(x) % self.groups
        sizes = [small + 1] * more + [small] * (self.groups - more)
        return torch.cat([super(_Split, self).forward(part) for part in x.split(sizes)])


def split_batchnorm(module: nn.Module, groups: int) -> nn.Module:
    """Makes every BatchNorm in `module` normalize `groups` contiguous groups of rows apart.

    Then G groups on one process give the outputs and gradients of G processes under DDP, as
    ShuffleBN (arXiv:1911.05722, section 3.3) needs. Running statistics take one update per group.
    The module is changed in place; its state_dict stays as it was. ValueError for a SyncBatchNorm.
    """
    if groups == 1:
        return module
    for child in module.modules():
        if isinstance(child, nn.SyncBatchNorm):
            raise ValueError("bn_groups splits the batch and SyncBatchNorm joins it: choose one")
        if isinstance(child, _BatchNorm) and not isinstance(child, _Split):
            kind = type(child)
            child.__class__ = type(f"Split{kind.__name__}", (_Split, kind), {})
            child.groups = groups
    return module


def join_batchnorm(module: nn.Module) -> nn.Module:
    """Makes every BatchNorm in `module` normalize the batch as one, whatever split it before."""
    for child in module.modules():
        if isinstance(child, _Split):
            child.groups = 1
    return module


def groups_of(backbone: nn.Module) -> int:
    """How many groups its BatchNorms normalize apart; 1 for a network that does not say."""
    return getattr(backbone, "bn_groups", 1)


def has_batchnorm(module: nn.Module) -> bool:
    return any(isinstance(child, _BatchNorm) for child in module.modules())


def hold_statistics(module: nn.Module, held: bool, why: str = "") -> None:
    """Training passes leave running statistics as they are while held by somebody (`why`)."""
    for child in module.modules():
        if not isinstance(child, _BatchNorm):
            continue
        holds = child.__dict__.setdefault("holds", set())
        if not holds:
            child.usual_momentum = child.momentum
        (holds.add if held else holds.discard)(why)
        child.momentum = 0.0 if holds else child.usual_momentum


@torch.no_grad()
def estimate_statistics(module: nn.Module, batches: Iterable[Any]) -> None:
    """PreciseBN (arXiv:2105.07576): running statistics become means over all these batches.

    Each is given to the module in training mode; over processes the means are of all of theirs. A
    layer that saw none of them keeps what it had.
    """
    layers = [
        child
        for child in module.modules()
        if isinstance(child, _BatchNorm) and child.track_running_stats and child.training
    ]
    names = ("momentum", "usual_momentum")  # the latter where `hold_statistics` was at work
    before = [{n: getattr(of, n) for n in names if hasattr(of, n)} for of in layers]
    statistics = [(of.running_mean.clone(), of.running_var.clone()) for of in layers]
    for layer, known in zip(layers, before, strict=True):
        layer.reset_running_stats()
        vars(layer).update(dict.fromkeys(known))  # None: torch's sign for a mean over all
    try:
        for batch in batches:
            module(batch)
    finally:
        for layer, known in zip(layers, before, strict=True):
            vars(layer).update(known)
    for layer, old in zip(layers, statistics, strict=True):
        new = layer.running_mean, layer.running_var
        for kept, value in zip(new, new if layer.num_batches_tracked else old, strict=True):
            kept.copy_(distributed.mean(value))
