"""Siamese networks with a predictor and a stopped gradient, and nothing else."""

from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Part
from ssl_zoo.core import Batch, Encoder, Method, predictor_for, set_apart
from ssl_zoo.ops import health


@METHODS.register_module()
class SimSiam(Method):
    """One view predicts the other, whose gradient is stopped (arXiv:2011.10566).

    L = D(p_1, z_2) / 2 + D(p_2, z_1) / 2,  D(p, z) = -<p, stopgrad(z)> / (|p| |z|) (eqs. 1, 4).

    Args:
        head, predictor: features -> projections z; z -> p, as wide as z.
    """

    family = "non-contrastive"
    views_needed = 2

    def __init__(self, backbone: nn.Module, *, head: Part[HEADS], predictor: Part[HEADS]):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.predictor = predictor_for(self.encoder, predictor)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_1, x_2 = batch.views[:2]  # [N, C, H, W]
        z_1, z_2 = self.encoder(x_1), self.encoder(x_2)  # [N, D]
        p_1, p_2 = self.predictor(z_1).float(), self.predictor(z_2).float()  # [N, D]
        z_1, z_2 = z_1.detach().float(), z_2.detach().float()
        agreement = F.cosine_similarity(p_1, z_2) + F.cosine_similarity(p_2, z_1)  # [N]
        return {"loss": -agreement.mean() / 2, "embedding_std": health.embedding_std(z_1)}

    def param_groups(self, weight_decay: float, decay_norm_and_bias: bool = True) -> list[dict]:
        """The predictor's rate is constant: it must keep up with what the encoder learns."""
        groups = super().param_groups(weight_decay, decay_norm_and_bias)
        return set_apart(groups, self.predictor, constant_lr=True)
