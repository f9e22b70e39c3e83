"""Memory bank: one stored feature for every training image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import MEMORY, at_least, within
from ssl_zoo.memory.base import Lookup, Memory
from ssl_zoo.system import distributed, rng


@MEMORY.register_module()
class MemoryBank(Memory):
    """Keys recalled from earlier epochs; Figure 2b (arXiv:1911.05722), InstDisc (arXiv:1805.01978).

    Nothing is computed for a key. Its row was last written when its image was last a query, up
    to an epoch ago. A query is compared with `num_negatives` rows drawn uniformly, with
    replacement and anew at each step, from the images that are not in the batch.

    Args:
        encoder: gives the width D.
        num_samples: rows; the size of the training set.
        num_negatives: K.
        momentum: of a row: v <- normalise(m v + (1 - m) q).
    """

    num_views = 1

    def __init__(
        self,
        encoder: nn.Module,
        num_samples: int,
        *,
        num_negatives: int = 4096,
        momentum: float = 0.5,
    ):
        super().__init__()
        self.validate(num_negatives=num_negatives, momentum=momentum)
        self.num_negatives, self.momentum = num_negatives, momentum
        self.register_buffer(
            "features", F.normalize(torch.randn(num_samples, encoder.out_features), dim=1)
        )
        self.register_buffer("written", torch.zeros(num_samples, dtype=torch.int64))

    @staticmethod
    def validate(*, num_negatives: int = 1, momentum: float = 0.0, **_) -> None:
        at_least("num_negatives", num_negatives, 1)
        within("momentum", momentum, 0, 1)

    def encode(self, encoder: nn.Module, images: Tensor, index: Tensor) -> Tensor:
        self._show(images)
        return self.features[index]  # [N, D]

    def lookup(self, q: Tensor, k: Tensor, index: Tensor) -> Lookup:
        rows = self._other_rows(distributed.gather(index))  # [K]
        return Lookup(q, k, self.features[rows], rows)

    def _other_rows(self, index: Tensor) -> Tensor:
        """K uniform draws from the rows outside the batch, [K] int64."""
        others = len(self.features) - len(index)
        if others < 1:
            raise ValueError(
                f"a memory bank of {len(self.features)} rows has no negatives for a batch of "
                f"{len(index)}"
            )
        slots = torch.arange(self.num_negatives, device=index.device)
        draw = rng.integers(others, *self._draw("negatives"), slots)
        # The draw-th row that is not in the batch: step over the batch's rows below it.
        batch = index.sort().values
        below = batch - torch.arange(len(batch), device=index.device)
        return draw + torch.searchsorted(below, draw, right=True)

    @torch.no_grad()
    def update(self, encoder: nn.Module, q: Tensor, k: Tensor, index: Tensor) -> None:
        super().update(encoder, q, k, index)
        index, q = distributed.gather(index), distributed.gather(q).float()
        blend = self.momentum * self.features[index] + (1 - self.momentum) * q
        self.features[index] = F.normalize(blend, dim=1)
        self.written[index] = self.steps
        self._watch(index, lifetime=len(self.features) // len(index))

    def telemetry(self, encoder: nn.Module) -> dict[str, float]:
        age = (self.steps - self.written).float().mean().item()
        return {"key_age": age, **self._cosine(self.features, encoder)}
