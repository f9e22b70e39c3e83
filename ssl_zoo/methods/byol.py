"""Predicting a slow copy of oneself."""

from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Part, Scheduled, UnitInterval
from ssl_zoo.core import Batch, Encoder, Method, MomentumEncoder, predictor_for
from ssl_zoo.ops import health


@METHODS.register_module()
class BYOL(Method):
    """An online network predicts what its slow copy makes of the other view (arXiv:2006.07733).

    L = |q/|q| - z'/|z'||^2 = 2 - 2 <q, z'> / (|q| |z'|), summed over both ways round (equation 2),
    with q = predictor(z_online) and z' the target's projection, which gets no gradient.

    Args:
        head, predictor: features -> projections z; z -> q, as wide, the online network's alone.
        momentum: tau of the target; schedule it to 1 as the paper does.
    """

    family = "non-contrastive"
    views_needed = 2
    evaluated = "backbone"  # byol/eval_experiment.py of google-deepmind/deepmind-research

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        predictor: Part[HEADS],
        momentum: Scheduled[UnitInterval] = 0.996,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.predictor = predictor_for(self.encoder, predictor)
        self.target = MomentumEncoder(self.encoder)
        self.momentum = momentum

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_1, x_2 = batch.views[:2]  # [N, C, H, W]
        z_1, z_2 = self.encoder(x_1), self.encoder(x_2)  # [N, D]
        q_1, q_2 = self.predictor(z_1).float(), self.predictor(z_2).float()  # [N, D]
        t_1, t_2 = self.target(x_1).float(), self.target(x_2).float()  # [N, D], z' of the paper
        agreement = F.cosine_similarity(q_1, t_2) + F.cosine_similarity(q_2, t_1)  # [N]
        return {"loss": (4 - 2 * agreement).mean(), "embedding_std": health.embedding_std(z_1)}

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.target.follow(self.encoder, self.momentum)
