"""KoLeo: features spread out over the sphere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_zoo.system import distributed


def koleo_loss(x: Tensor) -> Tensor:
    """L = -mean_i log min_{j != i} |x_i - x_j|, x on the unit sphere (arXiv:1806.03198, eq. 2).

    An estimate of the features' entropy, with the neighbors of all ranks' rows; the authors look
    at a rank's own.

    Args:
        x: [N, F] float32, of any length.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = distributed.gather(F.normalize(x, dim=1))  # [world x N, F]
        with torch.no_grad():
            neighbor = (x @ x.T).fill_diagonal_(-1).argmax(dim=1)  # [world x N]
        return -(F.pairwise_distance(x, x[neighbor], eps=1e-8) + 1e-8).log().mean()
