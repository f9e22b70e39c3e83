"""MoCHi: a queue whose hardest keys are mixed into harder ones."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import (
    MEMORY,
    ConfigError,
    NonNegativeInt,
    PositiveInt,
    RampSteps,
    Scheduled,
    UnitInterval,
)
from ssl_zoo.memory.lookup import Lookup
from ssl_zoo.memory.moco_queue import MoCoQueue
from ssl_zoo.system import rng


@MEMORY.register_module()
class MoCHi(MoCoQueue):
    """MoCo's queue and, for each query, mixtures of its hardest negatives (arXiv:2010.01028).

    Of the N keys n that are nearest to a query q, drawn anew for each mixture,
    h = normalize(a n_i + (1 - a) n_j), a in (0, 1), and h' = normalize(b q + (1 - b) n_j),
    b in (0, 1/2) (equations 3 and 4). They are negatives of that query alone, and constants: a
    gradient goes to q through q.h and not through h.

    Args:
        encoder: the key encoder starts as its copy.
        size, momentum, shuffle_bn: as of `MoCoQueue`.
        hardest: N.
        mix_negatives: s, mixtures h of two negatives.
        mix_query: s', mixtures h' of a negative with the query.
        warmup_steps: so many optimizer steps at the start mix nothing.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        size: PositiveInt = 65536,
        momentum: Scheduled[UnitInterval] = 0.999,
        shuffle_bn: bool = True,
        hardest: PositiveInt = 1024,
        mix_negatives: NonNegativeInt = 1024,
        mix_query: NonNegativeInt = 128,
        warmup_steps: RampSteps[NonNegativeInt] = 0,
    ):
        super().__init__(encoder, size=size, momentum=momentum, shuffle_bn=shuffle_bn)
        self.hardest, self.warmup_steps = hardest, warmup_steps
        self.mix_negatives, self.mix_query = mix_negatives, mix_query
        self._warm = False

    @staticmethod
    def validate(*, size: int, hardest: int, **_) -> None:
        if hardest > size:
            raise ConfigError(
                "hardest", "too large", found=str(hardest), expected=f"at most size, {size}"
            )

    def lookup(self, q: Tensor, k: Tensor, index: Tensor) -> Lookup:
        # Asked on the host until it is so, and then never again.
        self._warm = self._warm or self.steps.item() >= self.warmup_steps
        extra = self.mixtures(q.float(), index) if self._warm else None
        return Lookup(q, k, self.queue.keys, self.queue.index, extra=extra)

    @torch.no_grad()
    def mixtures(self, q: Tensor, index: Tensor) -> Tensor:
        """[N, s + s', D] of unit length, for queries q [N, D] of images index [N]."""
        with torch.autocast(q.device.type, enabled=False):
            hardest = (q @ self.stored.T).topk(self.hardest, dim=1).indices  # [N, hardest]

        def keys(purpose: str, count: int) -> tuple:
            slots = torch.arange(count, device=q.device)
            return *self.random_keys(purpose), index[:, None], slots  # of [N, count] numbers

        def drawn(purpose: str, count: int) -> Tensor:
            places = rng.integers(self.hardest, *keys(purpose, count))
            return self.stored[hardest.gather(1, places)]  # [N, count, D]

        s, s_query = self.mix_negatives, self.mix_query
        a = rng.uniform(*keys("a", s))[:, :, None]
        h = a * drawn("i", s) + (1 - a) * drawn("j", s)
        b = rng.uniform(*keys("b", s_query))[:, :, None] / 2
        h_query = b * q[:, None] + (1 - b) * drawn("with query", s_query)
        return F.normalize(torch.cat([h, h_query], dim=1), dim=2)
