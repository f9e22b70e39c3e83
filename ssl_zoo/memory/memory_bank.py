"""Memory bank: one stored feature for every training image."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import MEMORY, PositiveInt, Scheduled, UnitInterval
from ssl_zoo.memory.base import Memory
from ssl_zoo.memory.lookup import Lookup
from ssl_zoo.system import distributed, rng


@MEMORY.register_module()
class MemoryBank(Memory):
    """Keys recalled from earlier epochs; Figure 2b (arXiv:1911.05722), InstDisc (arXiv:1805.01978).

    A key's row was written when its image was last a query, up to an epoch ago. A query is compared
    with rows drawn uniformly, with replacement and anew at each step, from outside the batch.

    Args:
        encoder: gives the width D.
        num_samples: rows; the size of the training set.
        num_negatives: K.
        momentum: of a row: v <- normalize(m v + (1 - m) q), with the mean q of an image's views.
    """

    num_views = 1
    per_sample: ClassVar = {"stored": 0, "written": 0}

    def __init__(
        self,
        encoder: nn.Module,
        num_samples: int,
        *,
        num_negatives: PositiveInt = 4096,
        momentum: Scheduled[UnitInterval] = 0.5,
    ):
        super().__init__()
        self.num_negatives, self.momentum = num_negatives, momentum
        rows = torch.randn(num_samples, encoder.out_features)
        self.register_buffer("stored", F.normalize(rows, dim=1))
        self.register_buffer("written", torch.zeros(num_samples, dtype=torch.int64))

    def encode(self, encoder: nn.Module, x: Tensor, index: Tensor) -> Tensor:
        return self.stored[index]  # [N, D]

    def lookup(self, q: Tensor, k: Tensor, index: Tensor) -> Lookup:
        rows = self._other_rows(distributed.gather(index))  # [K]
        return Lookup(q, k, self.stored[rows], rows)

    def _other_rows(self, batch: Tensor) -> Tensor:
        """K uniform draws from the rows outside the batch, [K] int64."""
        others = len(self.stored) - len(batch)
        if others < 1:
            bank = f"a memory bank of {len(self.stored)} rows"
            raise ValueError(f"{bank} has no negatives for a batch of {len(batch)}")
        slots = torch.arange(self.num_negatives, device=batch.device)
        places = rng.integers(others, *self.random_keys("negatives"), slots)  # among the others
        # From a place among the others to a row: step over the batch's rows below it.
        batch = batch.sort().values
        below = batch - torch.arange(len(batch), device=batch.device)
        return places + torch.searchsorted(below, places, right=True)

    @torch.no_grad()
    def update(self, encoder: nn.Module, q: Tensor, k: Tensor, index: Tensor) -> None:
        super().update(encoder, q, k, index)
        self.rows, q = distributed.gather(index), distributed.gather(q.mean(dim=1)).float()
        blend = self.momentum * self.stored[self.rows] + (1 - self.momentum) * q
        self.stored[self.rows] = F.normalize(blend, dim=1)
        self.written[self.rows] = self.steps
