"""Projection heads: features [N, F] -> embeddings [N, D], and prototypes of embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, PositiveInt


@HEADS.register_module()
class MLP(nn.Module):
    """`depth` linear layers with ReLU between them; MoCo v2's head is depth 2 (arXiv:2003.04297).

    Args:
        out_features, hidden_features: D; width of the hidden layers, F if null.
        bias: in the last layer; hidden layers have one unless a BatchNorm follows.
        batch_norm: a BatchNorm after each hidden layer (SimCLR, BYOL).
        last_batch_norm: one without affine parameters after the last layer (SimSiam, MoCo v3).
        l2: outputs of unit length.
    """

    def __init__(
        self,
        in_features: int,
        *,
        out_features: PositiveInt = 128,
        hidden_features: PositiveInt | None = None,
        depth: PositiveInt = 2,
        bias: bool = True,
        batch_norm: bool = False,
        last_batch_norm: bool = False,
        l2: bool = False,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for width in [hidden_features or in_features] * (depth - 1):
            layers.append(nn.Linear(in_features, width, bias=not batch_norm))
            layers += [nn.BatchNorm1d(width)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            in_features = width
        layers.append(nn.Linear(in_features, out_features, bias=bias))
        layers += [nn.BatchNorm1d(out_features, affine=False)] if last_batch_norm else []
        self.layers = nn.Sequential(*layers)
        self.out_features, self.l2 = out_features, l2

    def forward(self, features: Tensor) -> Tensor:
        out = self.layers(features)
        return F.normalize(out, dim=-1) if self.l2 else out


@HEADS.register_module()
class Linear(MLP):
    """One linear layer; MoCo v1's and InstDisc's head (arXiv:1911.05722)."""

    def __init__(
        self,
        in_features: int,
        *,
        out_features: PositiveInt = 128,
        bias: bool = True,
        l2: bool = False,
    ):
        super().__init__(in_features, out_features=out_features, depth=1, bias=bias, l2=l2)


class Prototypes(nn.Module):
    """K directions C [K, D] of unit length, at first random (SwAV, arXiv:2006.09882): z -> z C^T.

    Whatever moves them (an optimizer, k-means) calls `normalize_` after.
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
