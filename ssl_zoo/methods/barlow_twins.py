"""Redundancy reduction: the views' cross-correlation made the identity."""

import torch
from torch import Tensor, nn

from ssl_zoo.config import HEADS, METHODS, Part, PositiveFloat, Scheduled
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.ops import health
from ssl_zoo.system import distributed


@METHODS.register_module()
class BarlowTwins(Method):
    """The cross-correlation of two views' embeddings, made the identity (arXiv:2103.03230).

    L = sum_i (1 - C_ii)^2 + lam sum_i sum_{j != i} C_ij^2 (equation 1), C_ij the correlation over
    the whole batch of z^A_i with z^B_j (equation 2).

    Args:
        lam: lambda, the weight of redundancy against invariance.
        scale: of the loss. Under LARS it moves biases and norms alone, at 0.024 of weights' rate.
    """

    family = "non-contrastive"
    views_needed = 2
    least_images = 2

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        lam: Scheduled[PositiveFloat] = 0.0051,
        scale: Scheduled[PositiveFloat] = 0.024,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.lam, self.scale = lam, scale

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z_a, z_b = (self.encoder(x).float() for x in batch.views[:2])  # [N, D]
        c = cross_correlation(distributed.gather(z_a), distributed.gather(z_b))  # [D, D]
        invariance = (1 - c.diagonal()).square().sum()
        redundancy = c.square().sum() - c.diagonal().square().sum()
        return {
            "loss": self.scale * (invariance + self.lam * redundancy),
            "correlation": c.diagonal().mean(),
            "embedding_std": health.embedding_std(z_a),
        }


def cross_correlation(z_a: Tensor, z_b: Tensor) -> Tensor:
    """C_ij = <z^A_i, z^B_j> / n, [n, D] twice -> [D, D]; columns normalized as by BatchNorm."""
    with torch.autocast(z_a.device.type, enabled=False):
        z_a, z_b = (
            (z - z.mean(dim=0)) * (z.var(dim=0, correction=0) + 1e-5).rsqrt() for z in (z_a, z_b)
        )
        return z_a.mT @ z_b / len(z_a)
