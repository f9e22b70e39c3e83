"""Variance, invariance and covariance of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Part, at_least
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.ops import health
from ssl_zoo.system import distributed


@METHODS.register_module()
class VICReg(Method):
    """Two views agree, and each keeps its variance, without correlations (arXiv:2105.04906).

    L = lam s(Z, Z') + mu [v(Z) + v(Z')] / 2 + nu [c(Z) + c(Z')] (equation 6, with the scales of
    the authors' code), s the mean squared difference, v and c over the whole batch.

    Args:
        backbone: images -> features.
        head: features -> embeddings z.
        lam, mu, nu: lambda, mu, nu: weights of invariance, variance and covariance.
    """

    family = "non-contrastive"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        lam: float = 25.0,
        mu: float = 25.0,
        nu: float = 1.0,
    ):
        super().__init__()
        self.validate(lam=lam, mu=mu, nu=nu)
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.lam, self.mu, self.nu = lam, mu, nu

    @staticmethod
    def validate(*, lam: float = 0.0, mu: float = 0.0, nu: float = 0.0, **_) -> None:
        at_least("lam", lam, 0)
        at_least("mu", mu, 0)
        at_least("nu", nu, 0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z_1, z_2 = (self.encoder(x).float() for x in batch.views[:2])  # [N, D]
        s = F.mse_loss(z_1, z_2)
        all_1, all_2 = distributed.gather(z_1), distributed.gather(z_2)  # [world x N, D]
        v = (variance(all_1) + variance(all_2)) / 2
        c = covariance(all_1) + covariance(all_2)
        return {
            "loss": self.lam * s + self.mu * v + self.nu * c,
            "invariance": s,
            "variance": v,
            "covariance": c,
            "embedding_std": health.embedding_std(z_1),
        }

    @staticmethod
    def views_needed(**_) -> int:
        return 2


def variance(z: Tensor) -> Tensor:
    """v = mean of max(0, 1 - sqrt(Var(z_j) + 1e-4)) over all but the batch of [n, ..., D], []."""
    return F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """c = 1/D sum_{i != j} Cov(z_i, z_j)^2, averaged over the places of [n, ..., D], []."""
    z = (z - z.mean(dim=0)).reshape(len(z), -1, z.shape[-1]).movedim(1, 0)  # [P, n, D]
    with torch.autocast(z.device.type, enabled=False):
        cov = z.mT @ z / (z.shape[1] - 1)  # [P, D, D]
    diagonal = cov.diagonal(dim1=1, dim2=2)  # [P, D]
    off_diagonal = cov.square().sum(dim=(1, 2)) - diagonal.square().sum(dim=1)  # [P]
    return off_diagonal.mean() / z.shape[2]
