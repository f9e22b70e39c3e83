"""Joint-embedding prediction with embeddings held to an isotropic Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl_zoo.config import HEADS, METHODS, Part, at_least, within
from ssl_zoo.core import Batch, Encoder, Method, encode_views
from ssl_zoo.ops import health
from ssl_zoo.system import distributed, rng


@METHODS.register_module()
class LeJEPA(Method):
    """Views predict the global views' mean, and embeddings are N(0, I) (arXiv:2511.08544).

    L = (1 - lam) mean_v |z_v - mean_g z_g|^2 / D + lam mean_v SIGReg(z_v); no teacher, no
    predictor and no stopped gradient, since a Gaussian cannot collapse.

    Args:
        backbone: images -> features.
        head: features -> embeddings z.
        lam: lambda, the weight of SIGReg, the method's one trade-off.
        global_views: how many of the views, the first ones, make the mean.
        slices: random directions a step.
    """

    family = "non-contrastive"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        lam: float = 0.05,
        global_views: int = 2,
        slices: int = 1024,
    ):
        super().__init__()
        self.validate(lam=lam, global_views=global_views, slices=slices)
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.lam, self.global_views, self.slices = lam, global_views, slices

    @staticmethod
    def validate(*, lam: float = 0.0, global_views: int = 1, slices: int = 1, **_) -> None:
        within("lam", lam, 0, 1)
        at_least("global_views", global_views, 1)
        at_least("slices", slices, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        groups = self.encoder.backbone.bn_groups
        z = torch.stack(encode_views(self.encoder, batch.views, groups)).float()  # [V, N, D]
        centre = z[: self.global_views].mean(dim=0)  # [N, D]
        prediction = (z - centre).square().mean()
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


def sigreg(z: Tensor, directions: Tensor) -> Tensor:
    """Mean over directions a of n int |phi(t) - e^(-t^2/2)|^2 e^(-t^2/2) dt, [].

    phi(t) = mean of e^(i t <a, z>) over all n rows of all ranks: Epps and Pulley's test that
    <a, z> is N(0, 1), by the trapezoid rule at 17 points of [-5, 5] (arXiv:2511.08544).

    Args:
        z: [N, D], this rank's rows.
        directions: [D, M], unit columns.
    """
    t = torch.linspace(-5, 5, 17, device=z.device)  # [T]
    gauss = (-t.square() / 2).exp()  # both N(0, 1)'s characteristic function and the weight
    with torch.autocast(z.device.type, enabled=False):
        angle = (z @ directions)[:, :, None] * t  # [N, M, T]
    phi = torch.stack([angle.cos().mean(dim=0), angle.sin().mean(dim=0)])  # [2, M, T]
    phi = distributed.gather(phi[None]).mean(dim=0)  # ranks hold equally many rows
    error = ((phi[0] - gauss).square() + phi[1].square()) * gauss  # [M, T]
    return len(z) * distributed.world() * torch.trapezoid(error, t, dim=1).mean()
