"""Whitened embeddings that agree."""

from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, AtLeastTwo, ConfigError, Part, PositiveInt, UnitInterval
from ssl_zoo.core import Batch, Encoder, Method, encode_views
from ssl_zoo.ops import health
from ssl_zoo.system import distributed, rng


@METHODS.register_module()
class WMSE(Method):
    """Positives close to each other after whitening, which rules collapse out (arXiv:2007.06346).

    L = mean over pairs of views of |w_i/|w_i| - w_j/|w_j||^2,
    w = W (z - mean), W^T W = Cov(z)^-1, a view and a part of the whole batch at a time.

    Args:
        head: features -> embeddings z.
        part: rows that are whitened together, at least twice as many as z has dimensions; a batch
            is cut into as many equal parts of at least this size as it has (ValueError: none).
        iterations: cuts of each batch, each in an order of its own, which are averaged.
        eps: share of the identity in the covariance.
    """

    family = "non-contrastive"
    views_needed = 2

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        part: AtLeastTwo = 128,
        iterations: PositiveInt = 1,
        eps: UnitInterval = 1e-4,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        width = self.encoder.out_features
        if part < 2 * width:
            problem = f"too small for embeddings of {width} dimensions"
            raise ConfigError("part", problem, found=str(part), expected=f"at least {2 * width}")
        self.part, self.iterations, self.eps = part, iterations, eps
        self.least_images = part

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = torch.stack(encode_views(self.encoder, batch.views), dim=1).float()  # [N, V, D]
        spread = health.embedding_std(z[:, 0])
        z = distributed.gather(z).movedim(1, 0)  # [V, n, D], every rank's rows
        n = z.shape[1]
        if n < self.part:
            found = f"a (micro-)batch of {n} over all ranks, expected at least {self.part}"
            raise ValueError(f"W-MSE whitens parts of {self.part} rows; found {found}")
        losses = []
        for iteration in range(self.iterations):
            order = rng.permutation(n, self.seed, self.steps, "part", iteration, device=z.device)
            for rows in order.tensor_split(n // self.part):
                w = F.normalize(whiten(z[:, rows], self.eps), dim=2)  # [V, rows, D]
                losses += [(a - b).square().sum() / n for a, b in combinations(w.unbind(), 2)]
        pairs = len(batch.views) * (len(batch.views) - 1) / 2
        loss = torch.stack(losses).sum() / (pairs * self.iterations)
        return {"loss": loss, "embedding_std": spread}


def whiten(z: Tensor, eps: float) -> Tensor:
    """w = L^-1 (z - mean) with L L^T = (1 - eps) Cov(z) + eps I, [V, n, D] -> [V, n, D].

    NaN for a view whose covariance is not positive definite: the trainer stops, no host waits here.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z - z.mean(dim=1, keepdim=True)
        cov = z.mT @ z / (z.shape[1] - 1)  # [V, D, D]
        identity = torch.eye(z.shape[2], device=z.device)
        factor, failed = torch.linalg.cholesky_ex((1 - eps) * cov + eps * identity)
        factor = factor.masked_fill((failed != 0)[:, None, None], torch.nan)
        return torch.linalg.solve_triangular(factor, z.mT, upper=False).mT
