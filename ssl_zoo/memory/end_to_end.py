"""End-to-end: the dictionary is the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_zoo.config import MEMORY
from ssl_zoo.memory.base import Lookup, Memory
from ssl_zoo.system import distributed


@MEMORY.register_module()
class EndToEnd(Memory):
    """Keys from the online encoder, gradient included; Figure 2a (arXiv:1911.05722).

    A query's negatives are the other keys of the batch gathered over all ranks, so the
    dictionary's size is the global batch size less one.

    Args:
        symmetric: both views are queries and keys, and a query is also compared with the other
            queries: NT-Xent, SimCLR (arXiv:2002.05709).
        shuffle_bn: keys are encoded in shuffled order (ShuffleBN).
    """

    def __init__(self, *, symmetric: bool = False, shuffle_bn: bool = True):
        super().__init__()
        self.symmetric, self.shuffle_bn = symmetric, shuffle_bn

    def encode(self, encoder: nn.Module, images: Tensor, index: Tensor) -> Tensor:
        return self._keys(encoder, images, self.shuffle_bn)

    def lookup(self, q: Tensor, k: Tensor, index: Tensor) -> Lookup:
        everyone = distributed.gather(index)  # [world x N]
        mine = distributed.rank() * len(q) + torch.arange(len(q), device=q.device)  # [N]
        if not self.symmetric:
            return Lookup(q, k, distributed.gather(k), everyone, own=mine[:, None])
        dictionary = torch.cat([distributed.gather(q), distributed.gather(k)])  # [2 x world x N, D]
        twin = mine + len(everyone)
        own = torch.cat([torch.stack([mine, twin], 1), torch.stack([twin, mine], 1)])  # [2N, 2]
        return Lookup(torch.cat([q, k]), torch.cat([k, q]), dictionary, everyone.repeat(2), own)
