"""NewPart: one sentence on the idea."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import MEMORY, PositiveInt
from ssl_zoo.memory.base import Memory
from ssl_zoo.memory.lookup import Lookup
from ssl_zoo.memory.ring import Ring
from ssl_zoo.system import distributed


@MEMORY.register_module()
class NewPart(Memory):
    """The newest keys of the encoder as it is now, first in, first out (XBM, arXiv:1912.06798).

    Args:
        encoder: gives the width D.
        size: K; it starts with random keys.
    """

    positions = ("queue.index",)  # of the training set, in its state

    def __init__(self, encoder: nn.Module, *, size: PositiveInt = 1024):
        super().__init__()
        self.queue = Ring(
            keys=F.normalize(torch.randn(size, encoder.out_features), dim=1),
            index=torch.full((size,), -1),
            step=torch.zeros(size, dtype=torch.int64),
        )

    stored = property(lambda self: self.queue.keys)  # [K, D]
    written = property(lambda self: self.queue.step)  # [K]

    @torch.no_grad()
    def encode(self, encoder: nn.Module, images: Tensor, index: Tensor) -> Tensor:
        return F.normalize(encoder(images).float(), dim=1)  # [N, D]

    def lookup(self, q: Tensor, k: Tensor, index: Tensor) -> Lookup:
        return Lookup(q, k, self.queue.keys, self.queue.index)

    @torch.no_grad()
    def update(self, encoder: nn.Module, q: Tensor, k: Tensor, index: Tensor) -> None:
        super().update(encoder, q, k, index)
        k, index = distributed.gather(k), distributed.gather(index).repeat(k.shape[1])
        k = k.transpose(0, 1).flatten(0, 1)  # [V x N, D], view after view, of all ranks
        self.rows = self.queue.push(keys=k, index=index, step=self.steps.expand(len(k)))
