"""End-to-end: the dictionary is the batch."""

import torch
from torch import Tensor, nn

from ssl_zoo.config import MEMORY
from ssl_zoo.memory.base import Memory
from ssl_zoo.memory.lookup import Lookup, joined
from ssl_zoo.system import distributed


@MEMORY.register_module()
class EndToEnd(Memory):
    """Keys from the online encoder, gradient included; Figure 2a (arXiv:1911.05722).

    A query's negatives are the other keys of the batch gathered over all ranks.

    Args:
        same_view_negatives: a query is also compared with the other queries; with a symmetric
            loss this is NT-Xent, SimCLR's (arXiv:2002.05709).
        shuffle_bn: keys are encoded in shuffled order (ShuffleBN).
    """

    online_keys = True
    least_images = 2

    def __init__(self, *, same_view_negatives: bool = False, shuffle_bn: bool = True):
        super().__init__()
        self.same_view_negatives, self.shuffle_bn = same_view_negatives, shuffle_bn

    def encode(self, encoder: nn.Module, x: Tensor, index: Tensor) -> Tensor:
        return self._encode(encoder, x, self.shuffle_bn)

    def lookup(self, q: Tensor, k: Tensor, index: Tensor) -> Lookup:
        everyone = distributed.gather(index)  # [world x N]
        mine = distributed.rank() * len(q) + torch.arange(len(q), device=q.device)  # [N]
        if not self.same_view_negatives:
            return Lookup(q, k, distributed.gather(k), everyone, masked=mine[:, None])
        dictionary = torch.cat([distributed.gather(q), distributed.gather(k)])  # [2 x world x N, D]
        masked = torch.stack([mine, mine + len(everyone)], dim=1)  # [N, 2], itself and its positive
        return Lookup(q, k, dictionary, everyone.repeat(2), masked)

    def lookups(self, q: list[Tensor], k: list[Tensor], index: Tensor) -> list[Lookup]:
        if not (self.same_view_negatives and len(q) == 2 and q[0] is k[1] and q[1] is k[0]):
            return super().lookups(q, k, index)
        one = self.lookup(q[0], k[0], index)
        # The other direction looks into the same batch: nothing is gathered again.
        other = Lookup(q[1], k[1], one.dictionary, one.index, one.masked.flip(1))
        return joined([one, other])
