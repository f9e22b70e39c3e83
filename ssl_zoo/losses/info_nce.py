"""MoCo's loss: which of many keys is the query's? Similarities are never kept, see `Lookup`."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import LOSSES, PositiveFloat, Scheduled
from ssl_zoo.memory import Lookup


class Scored(NamedTuple):
    """A loss [], and for each query how many negatives are as near as its positive, [R]."""

    loss: Tensor
    nearer: Tensor


def accuracy(nearer: Tensor) -> dict[str, Tensor]:
    """Pretext accuracy: is the positive the nearest key (top1), or among five (top5)? In %."""
    return {f"top{n}": 100 * (nearer < n).float().mean() for n in (1, 5)}


def info_nce_loss(lookup: Lookup, temperature: float) -> Scored:
    """L = -log exp(q.k+/t) / (exp(q.k+/t) + sum_i exp(q.k_i/t)) (arXiv:1911.05722, eq. 1)."""
    pos = lookup.positives[:, 0] / temperature  # [R]
    neg, nearer = lookup.logsumexp(temperature)  # [R]
    return Scored(F.softplus(neg - pos).mean(), nearer)  # -log(e^pos / (e^pos + e^neg))


@LOSSES.register_module()
class InfoNCE(nn.Module):
    """`info_nce_loss` (arXiv:1807.03748); temperature 0.07 in MoCo v1 and InstDisc, 0.2 in v2."""

    def __init__(self, *, temperature: Scheduled[PositiveFloat] = 0.07):
        super().__init__()
        self.temperature = temperature

    def forward(self, lookup: Lookup) -> Scored:
        return info_nce_loss(lookup, self.temperature)
