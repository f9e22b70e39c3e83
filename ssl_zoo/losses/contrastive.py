"""What other papers do with a look-up: one positive and M negatives for every query."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import LOSSES, PositiveFloat, Scheduled
from ssl_zoo.losses.info_nce import Scored
from ssl_zoo.memory import Lookup
from ssl_zoo.system import distributed


@LOSSES.register_module()
class DCL(nn.Module):
    """L = -w q.k+/t + log sum_i exp(q.k_i/t): no positive below the line (arXiv:2110.06848, eq. 6).

    DCLW's weight is larger for positives that are far: w = 2 - exp(q.k+/s) / mean of exp(q.k+/s).

    Args:
        sigma: s of DCLW, 0.5 in the paper; null for DCL, w = 1.
    """

    def __init__(
        self, *, temperature: Scheduled[PositiveFloat] = 0.1, sigma: PositiveFloat | None = None
    ):
        super().__init__()
        self.temperature, self.sigma = temperature, sigma

    def forward(self, lookup: Lookup) -> Scored:
        pos = lookup.positives[:, 0]  # [R]
        neg, nearer = lookup.logsumexp(self.temperature)  # [R]
        weighted = self._weight(pos.detach()) * pos / self.temperature
        return Scored((neg - weighted).mean(), nearer)

    def _weight(self, pos: Tensor) -> Tensor | float:
        if self.sigma is None:
            return 1.0
        density = (pos / self.sigma).exp()  # [R]
        return 2 - density / distributed.mean(density.mean())


@LOSSES.register_module()
class NCE(nn.Module):
    """Noise-contrastive estimation with InstDisc's constants (arXiv:1805.01978, equations 4 to 8).

    P(i|q) = exp(q.k_i / t) / Z, noise Pn = 1 / n, m negatives:
    L = -log h(k+) - sum_i log(1 - h(k_i)),  h(k) = P / (P + m Pn).
    Z is estimated from the first batch, n times the mean of exp(q.k / t), and then kept; n is the
    size of the training set.
    """

    def __init__(self, num_samples: int, *, temperature: PositiveFloat = 0.07):
        super().__init__()
        self.num_samples, self.temperature = num_samples, temperature
        self.register_buffer("log_z", torch.tensor(math.nan))  # nan: not estimated yet
        self.known = False

    def forward(self, lookup: Lookup) -> Scored:
        pos = lookup.positives[:, 0] / self.temperature  # [R]
        if self.training and not self.known:
            if self.log_z.isnan():  # and no checkpoint has brought it
                self._estimate(pos, lookup)
            self.known = True
        log_noise = math.log(lookup.num_negatives / self.num_samples)  # log(m Pn)
        # h = P / (P + m Pn) = sigmoid(log P - log(m Pn)), and -log sigmoid(x) = softplus(-x).
        even = self.log_z + log_noise  # where h = 1/2
        neg, nearer = lookup.softplus_sum(self.temperature, even)  # [R]
        return Scored((F.softplus(even - pos) + neg).mean(), nearer)

    @torch.no_grad()
    def _estimate(self, pos: Tensor, lookup: Lookup) -> None:
        """log Z = log n + log of the mean of exp(q.k / t) over all pairs of all ranks."""
        pairs = len(pos) * (1 + lookup.num_negatives)
        neg, _ = lookup.logsumexp(self.temperature)
        log_sum = torch.logaddexp(pos, neg).logsumexp(0)
        ranks = distributed.gather((log_sum - math.log(pairs))[None])  # [world]
        log_mean = torch.logsumexp(ranks, 0) - math.log(len(ranks))
        self.log_z.copy_(math.log(self.num_samples) + log_mean)


@LOSSES.register_module()
class Margin(nn.Module):
    """Triplet loss, mean of max(0, margin - q.k+ + q.k_i) over all pairs (arXiv:1503.03832)."""

    def __init__(self, *, margin: Scheduled[PositiveFloat] = 0.4):
        super().__init__()
        self.margin = margin

    def forward(self, lookup: Lookup) -> Scored:
        pos, neg = lookup.positives, lookup.negatives  # [R, 1], [R, M]
        hinge = F.relu(self.margin - pos + neg)
        nearer = (neg >= pos).sum(dim=1)
        return Scored(hinge.sum(dim=1).mean() / lookup.num_negatives, nearer)


def in_batch(q: Tensor, k: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """-log exp(q_i.k_i/t) / sum_j exp(q_i.k_j/t), the mean over i; keys from all ranks.

    MoCo v3's (arXiv:2104.02057) and NNCLR's (arXiv:2104.14548); q, k [N, D] of this rank, unit
    length. Returns also how often a query's own key is the nearest, [] in %.
    """
    mine = distributed.rank() * len(q) + torch.arange(len(q), device=q.device)  # [N]
    with torch.autocast(q.device.type, enabled=False):
        logits = q @ distributed.gather(k).T / temperature  # [N, world x N]
    top1 = 100 * (logits.argmax(dim=1) == mine).float().mean()
    return F.cross_entropy(logits, mine), top1
