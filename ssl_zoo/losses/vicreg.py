"""VICReg's three terms (arXiv:2105.04906), of embeddings of images or of places in them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_zoo.system import distributed


def vicreg_terms(z: Tensor, z_other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance s(Z, Z'), variance [v(Z) + v(Z')] / 2, covariance c(Z) + c(Z'), [] each.

    s = mean of (z - z')^2 over this rank's rows, v and c over those of all ranks. The scales are
    those of the authors' code, not of the paper's equations 1 to 5. Embeddings are [N, ..., D].
    """
    s = F.mse_loss(z, z_other)
    z, z_other = distributed.gather(z), distributed.gather(z_other)  # [world x N, ..., D]
    return s, (variance(z) + variance(z_other)) / 2, covariance(z) + covariance(z_other)


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
