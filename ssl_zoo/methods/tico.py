"""Transformation invariance and covariance contrast."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, NonNegativeFloat, Part, Scheduled, UnitInterval
from ssl_zoo.core import Batch, Encoder, Method, MomentumEncoder
from ssl_zoo.ops import health
from ssl_zoo.system import distributed


@METHODS.register_module()
class TiCo(Method):
    """Views agree, away from the directions that past embeddings filled (arXiv:2206.10698).

    L = 1 - <z', z''> + rho z'^T C_t z',  C_t = beta C_{t-1} + (1 - beta) mean z' z'^T,
    unit z' of the online network and z'' of its slow copy; C_t has no gradient (algorithm 1).

    Args:
        head: features -> embeddings, normalized here to unit length.
        beta: of the moving average of embeddings' second moments.
        rho: weight of the covariance contrast.
        momentum: of the slow copy; schedule it to 1 as the paper does.
    """

    family = "non-contrastive"
    views_needed = 2
    evaluated = "backbone"  # the authors' code is not public; as BYOL's

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        beta: Scheduled[UnitInterval] = 0.9,
        rho: Scheduled[NonNegativeFloat] = 20.0,
        momentum: Scheduled[UnitInterval] = 0.99,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.target = MomentumEncoder(self.encoder)
        self.register_buffer("C", torch.zeros(2 * [self.encoder.out_features]))
        self.beta, self.rho, self.momentum = beta, rho, momentum

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_1, x_2 = batch.views[:2]  # [N, C, H, W]
        z_1 = F.normalize(self.encoder(x_1).float(), dim=1)  # [N, D]
        z_2 = F.normalize(self.target(x_2).float(), dim=1)  # [N, D]
        invariance = 1 - (z_1 * z_2).sum(dim=1).mean()
        with torch.autocast(z_1.device.type, enabled=False):
            contrast = (z_1 @ self.moments(z_1) * z_1).sum(dim=1).mean()
        return {
            "loss": invariance + self.rho * contrast,
            "invariance": invariance,
            "contrast": contrast,
            "embedding_std": health.embedding_std(z_1),
            "z": z_1,
        }

    @torch.no_grad()
    def moments(self, z: Tensor) -> Tensor:
        """C_t [D, D] of this step's z [N, D], all ranks' rows taken together."""
        z = distributed.gather(z)
        return self.beta * self.C + (1 - self.beta) * (z.mT @ z) / len(z)

    @torch.no_grad()
    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.C.copy_(self.moments(out["z"]))
        self.target.follow(self.encoder, self.momentum)
