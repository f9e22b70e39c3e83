"""MoCo: a queue of recent keys and a slowly moving encoder that makes them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import MEMORY, PositiveInt, Scheduled, UnitInterval
from ssl_zoo.core import MomentumEncoder
from ssl_zoo.memory.base import Memory
from ssl_zoo.memory.lookup import Lookup
from ssl_zoo.memory.ring import Ring
from ssl_zoo.system import distributed


@MEMORY.register_module()
class MoCoQueue(Memory):
    """Keys from a momentum encoder, kept first in, first out; Figure 2c (arXiv:1911.05722).

    It starts with random unit vectors, easy negatives: the loss rises while real keys replace
    them, for the first `size / batch` steps. Any size and any batch go together.

    Args:
        encoder: the key encoder starts as its copy.
        size: K.
        momentum: m in theta_k <- m theta_k + (1 - m) theta_q, once an optimizer step.
        shuffle_bn: ShuffleBN; on one process it changes something only with `bn_groups` above 1.
    """

    positions = ("queue.index",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        size: PositiveInt = 65536,
        momentum: Scheduled[UnitInterval] = 0.999,
        shuffle_bn: bool = True,
    ):
        super().__init__()
        self.key_encoder = MomentumEncoder(encoder)
        self.momentum, self.shuffle_bn = momentum, shuffle_bn
        self.queue = Ring(
            keys=F.normalize(torch.randn(size, encoder.out_features), dim=1),
            index=torch.full((size,), -1),
            step=torch.zeros(size, dtype=torch.int64),
        )

    stored = property(lambda self: self.queue.keys)
    written = property(lambda self: self.queue.step)

    def remark(self, batch_size: int) -> str:
        last = -(-len(self.queue) // batch_size)
        replaced = f"until step {last} real ones replace them, and the loss rises"
        return f"the queue starts with random keys; {replaced}"

    @torch.no_grad()
    def encode(self, encoder: nn.Module, x: Tensor, index: Tensor) -> Tensor:
        return self._encode(self.key_encoder, x, self.shuffle_bn)

    def lookup(self, q: Tensor, k: Tensor, index: Tensor) -> Lookup:
        return Lookup(q, k, self.queue.keys, self.queue.index)

    @torch.no_grad()
    def update(self, encoder: nn.Module, q: Tensor, k: Tensor, index: Tensor) -> None:
        super().update(encoder, q, k, index)
        self.key_encoder.follow(encoder, self.momentum)
        k, index = distributed.gather(k), distributed.gather(index).repeat(k.shape[1])
        k = k.transpose(0, 1).flatten(0, 1)  # [V x world x N, D], view after view
        self.rows = self.queue.push(keys=k, index=index, step=self.steps.expand(len(k)))
