"""MoCo: a queue of recent keys and a slowly moving encoder that makes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import MEMORY, at_least, within
from ssl_zoo.core import MomentumEncoder
from ssl_zoo.memory.base import Lookup, Memory
from ssl_zoo.memory.fifo import enqueue
from ssl_zoo.system import distributed


@MEMORY.register_module()
class MoCoQueue(Memory):
    """Keys from a momentum encoder, kept first in, first out; Figure 2c (arXiv:1911.05722).

    The queue starts with random unit vectors, which are easy negatives: the loss rises while
    real keys replace them, for the first `size / batch` steps. Any size and any batch go
    together.

    Args:
        encoder: the key encoder starts as its copy.
        size: K.
        momentum: m in theta_k <- m theta_k + (1 - m) theta_q, once an optimiser step.
        shuffle_bn: keys are encoded in shuffled order (ShuffleBN). On one process this changes
            something only if the backbone has `bn_groups` above 1.

    Raises:
        ValueError: size below 1, or momentum outside [0, 1].
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        size: int = 65536,
        momentum: float = 0.999,
        shuffle_bn: bool = True,
    ):
        super().__init__()
        self.validate(size=size, momentum=momentum)
        self.key_encoder = MomentumEncoder(encoder)
        self.momentum, self.shuffle_bn = momentum, shuffle_bn
        self.register_buffer("queue", F.normalize(torch.randn(size, encoder.out_features), dim=1))
        self.register_buffer("index", torch.full((size,), -1))
        self.register_buffer("written", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("head", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def validate(*, size: int = 1, momentum: float = 0.0, **_) -> None:
        at_least("size", size, 1)
        within("momentum", momentum, 0, 1)

    def remark(self, batch_size: int) -> str:
        return (
            f"the queue starts with random keys; until step {-(-len(self.queue) // batch_size)} "
            "real ones replace them, and the loss rises"
        )

    @torch.no_grad()
    def encode(self, encoder: nn.Module, images: Tensor, index: Tensor) -> Tensor:
        self._show(images)
        return self._keys(self.key_encoder, images, self.shuffle_bn)

    def lookup(self, q: Tensor, k: Tensor, index: Tensor) -> Lookup:
        return Lookup(q, k, self.queue, self.index)

    @torch.no_grad()
    def update(self, encoder: nn.Module, q: Tensor, k: Tensor, index: Tensor) -> None:
        super().update(encoder, q, k, index)
        self.key_encoder.follow(encoder, self.momentum)
        k, index = distributed.gather(k), distributed.gather(index)
        if k.dim() == 3:  # [n, V, D], view after view
            k, index = k.transpose(0, 1).flatten(0, 1), index.repeat(k.shape[1])
        size = len(self.queue)
        if len(k) > size:
            self._shown = None  # the first rows, which a probe would follow, are gone at once
        slots, newest = enqueue(self.head, len(k), size)
        self.queue[slots] = k[newest]
        self.index[slots] = index[newest]
        self.written[slots] = self.steps
        self._watch(slots, lifetime=size // len(k))

    def telemetry(self, encoder: nn.Module) -> dict[str, float]:
        age = (self.steps - self.written).float().mean().item()
        return {"key_age": age, **self._cosine(self.queue, self.key_encoder)}
