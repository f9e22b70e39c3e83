"""Prototypes: embeddings [N, D] -> similarities to K directions [N, K]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Prototypes(nn.Module):
    """K directions c_1 ... c_K of unit length (SwAV, arXiv:2006.09882): z -> z C^T.

    Whatever moves them (an optimizer, k-means) calls `normalize_` after.

    Attributes:
        weight: C, [K, D]; uniform on the sphere at first.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(out_features, in_features), dim=1))

    def forward(self, z: Tensor) -> Tensor:
        """[N, D] of unit length -> cosines [N, K], in float32 also under autocast."""
        with torch.autocast(z.device.type, enabled=False):
            return z.float() @ self.weight.T

    @torch.no_grad()
    def normalize_(self) -> None:
        self.weight.copy_(F.normalize(self.weight, dim=1))
