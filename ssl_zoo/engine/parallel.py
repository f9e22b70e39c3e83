"""A method and its optimizer on one process or on several, and their state."""

import inspect
from contextlib import nullcontext
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ssl_zoo.core import Batch, Method
from ssl_zoo.system import distributed
from ssl_zoo.system.rng import random_state, set_random_state

# BatchNorm statistics and memories are each rank's own business. torch 2.15 renames the switch.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


class Parallel:
    """Calls the method, under DDP where there are several processes."""

    def __init__(self, method: Method, optimizer: torch.optim.Optimizer, device: torch.device):
        self.method, self.optimizer, self.device = method, optimizer, device
        self.model: nn.Module = method
        if distributed.world() > 1:
            self.model = DistributedDataParallel(method, **{_SYNC_BUFFERS: False})

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return self.model(batch)

    def synced(self, last: bool):
        """Gradients travel between ranks once a step, with the last micro-batch."""
        return nullcontext() if last or self.model is self.method else self.model.no_sync()

    def state_dict(self) -> dict[str, Any]:
        """What training has made, gathered from all ranks, which all call it."""
        batchnorm = {
            f"{name}.{buffer}": value.cpu()
            for name, child in self.method.named_modules()
            if isinstance(child, _BatchNorm)
            for buffer, value in child.named_buffers(recurse=False)
        }
        mine = {"random": random_state(self.device), "batchnorm": batchnorm}
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ranks": distributed.collect(mine),
        }

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Goes where a state was taken; returns what a person should know about it, or ''.

        On another number of processes rank 0's random state and BatchNorm statistics go to all.
        """
        load_weights(self.method, state["method"])
        load_optimizer(self.optimizer, state["optimizer"])
        ranks, world = state["ranks"], distributed.world()
        mine = ranks[distributed.rank()] if len(ranks) == world else ranks[0]
        self.method.load_state_dict(mine["batchnorm"], strict=False)
        set_random_state(mine["random"], self.device)
        if len(ranks) == world:
            return ""
        return f"saved by {len(ranks)} processes, resumed on {world}: not bitwise"


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """An optimizer's moments and numbers, but not its kernels: which is fast the machine knows."""
    kernels = [{k: group.get(k) for k in ("fused", "foreach")} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, here in zip(optimizer.param_groups, kernels, strict=True):
        group.update({k: v for k, v in here.items() if k in group})


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """All of a module's weights; ValueError if one is missing, too many, or of another shape."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        lines = [shorten(line, 200, placeholder=" ...") for line in str(error).splitlines()[1:4]]
        raise ValueError("\n  ".join(["weights of another config", *lines])) from error
