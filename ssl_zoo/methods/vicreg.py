"""Variance, invariance and covariance of embeddings."""

from torch import Tensor, nn

from ssl_zoo.config import HEADS, METHODS, NonNegativeFloat, Part, Scheduled
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.losses import vicreg_terms
from ssl_zoo.ops import health


@METHODS.register_module()
class VICReg(Method):
    """Two views agree, and each keeps its variance, without correlations (arXiv:2105.04906).

    L = lam s(Z, Z') + mu [v(Z) + v(Z')] / 2 + nu [c(Z) + c(Z')] (equation 6), see `vicreg_terms`.

    Args:
        lam, mu, nu: weights of invariance, variance and covariance.
    """

    family = "non-contrastive"
    views_needed = 2
    least_images = 2

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        lam: Scheduled[NonNegativeFloat] = 25.0,
        mu: Scheduled[NonNegativeFloat] = 25.0,
        nu: Scheduled[NonNegativeFloat] = 1.0,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.lam, self.mu, self.nu = lam, mu, nu

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z_1, z_2 = (self.encoder(x).float() for x in batch.views[:2])  # [N, D]
        s, v, c = vicreg_terms(z_1, z_2)
        return {
            "loss": self.lam * s + self.mu * v + self.nu * c,
            "invariance": s,
            "variance": v,
            "covariance": c,
            "embedding_std": health.embedding_std(z_1),
        }
