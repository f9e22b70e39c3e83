"""Joint-embedding prediction with embeddings held to an isotropic Gaussian."""

import math

import torch
from torch import Tensor, nn

from ssl_zoo.config import HEADS, METHODS, Part, PositiveInt, Scheduled, UnitInterval
from ssl_zoo.core import Batch, Encoder, Method, encode_views
from ssl_zoo.losses import sigreg
from ssl_zoo.ops import health
from ssl_zoo.system import rng


@METHODS.register_module()
class LeJEPA(Method):
    """Views predict the global views' mean, and embeddings are N(0, I) (arXiv:2511.08544).

    L = (1 - lam) mean_v |z_v - mean_g z_g|^2 / D + lam mean_v SIGReg(z_v); no teacher, no
    predictor and no stopped gradient, since a Gaussian cannot collapse.

    Args:
        lam: lambda, the weight of SIGReg, the method's one trade-off.
        global_views: how many of the views, the first ones, make the mean.
        slices: random directions a step.
    """

    family = "non-contrastive"
    least_images = 2

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        lam: Scheduled[UnitInterval] = 0.05,
        global_views: PositiveInt = 2,
        slices: PositiveInt = 1024,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.lam, self.global_views, self.slices = lam, global_views, slices

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = torch.stack(encode_views(self.encoder, batch.views)).float()  # [V, N, D]
        prediction = (z - z[: self.global_views].mean(dim=0)).square().mean()
        directions = self.directions(z)  # [D, M]
        gaussianity = torch.stack([sigreg(z_v, directions) for z_v in z]).mean()
        return {
            "loss": (1 - self.lam) * prediction + self.lam * gaussianity,
            "prediction": prediction,
            "sigreg": gaussianity,
            "embedding_std": health.embedding_std(z[0]),
        }

    def directions(self, z: Tensor) -> Tensor:
        """Unit vectors for this step, [D, M], the same on every rank; by Box and Muller."""
        row = torch.arange(z.shape[-1], device=z.device)[:, None]
        column = torch.arange(self.slices, device=z.device)
        u_1 = 1 - rng.uniform(self.seed, self.steps, "radius", row, column)  # [D, M] in (0, 1]
        u_2 = rng.uniform(self.seed, self.steps, "angle", row, column)
        normal = (-2 * u_1.log()).sqrt() * (2 * math.pi * u_2).cos()
        return normal / normal.norm(dim=0)

    @staticmethod
    def views_needed(global_views: int = 2, **_) -> int:
        return max(global_views, 2)
