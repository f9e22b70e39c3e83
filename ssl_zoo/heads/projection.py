"""Projection heads: features [N, F] -> embeddings [N, D]."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, PositiveInt


@HEADS.register_module()
class MLP(nn.Module):
    """`depth` linear layers with ReLU between them; MoCo v2's head is depth 2 (arXiv:2003.04297).

    Args:
        out_features: D.
        hidden_features: width of the hidden layers; F if null.
        depth: number of linear layers.
        bias: in the last layer; hidden layers have one unless a BatchNorm follows.
        batch_norm: a BatchNorm after each hidden layer (SimCLR, BYOL).
        last_batch_norm: a BatchNorm without affine parameters after the last layer (SimSiam,
            MoCo v3).
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
        widths = [in_features, *[hidden_features or in_features] * (depth - 1), out_features]
        layers: list[nn.Module] = []
        for i in range(depth):
            last = i == depth - 1
            layers.append(
                nn.Linear(widths[i], widths[i + 1], bias=bias if last else not batch_norm)
            )
            if not last:
                if batch_norm:
                    layers.append(nn.BatchNorm1d(widths[i + 1]))
                layers.append(nn.ReLU(inplace=True))
        if last_batch_norm:
            layers.append(nn.BatchNorm1d(out_features, affine=False))
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
