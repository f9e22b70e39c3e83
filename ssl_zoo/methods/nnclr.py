"""NNCLR: the positive is a nearest neighbor of other images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Part, PositiveFloat, PositiveInt, Scheduled
from ssl_zoo.core import Batch, Encoder, Method, predictor_for
from ssl_zoo.losses import in_batch
from ssl_zoo.memory import Ring
from ssl_zoo.ops import health
from ssl_zoo.system import distributed


@METHODS.register_module()
class NNCLR(Method):
    """A view's nearest neighbor in a support set is the other view's key (arXiv:2104.14548).

    L = mean over i of -log(exp(NN(z_i, Q).p_i+/t) / sum_k exp(NN(z_i, Q).p_k+/t)), for both views,
    where p+ is the prediction made of the other view, and Q the newest z of all ranks. It starts
    with random unit vectors, as in the paper.

    Args:
        head: the projector, features -> z, normalized here to unit length.
        predictor: z -> p, before z is normalized.
        queue_size, temperature: rows of Q, any beside any batch; t.
    """

    family = "contrastive"
    views_needed = 2
    least_images = 2

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        predictor: Part[HEADS],
        queue_size: PositiveInt = 98304,
        temperature: Scheduled[PositiveFloat] = 0.1,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.predictor = predictor_for(self.encoder, predictor)
        self.temperature = temperature
        z = torch.randn(queue_size, self.encoder.out_features)
        self.queue = Ring(z=F.normalize(z, dim=1))  # Q

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = (self.encoder(x) for x in batch.views[:2])  # [N, D]
        p1, p2 = (F.normalize(self.predictor(z).float(), dim=1) for z in (z1, z2))  # [N, D]
        z1, z2 = (F.normalize(z.detach().float(), dim=1) for z in (z1, z2))
        loss1, top1 = in_batch(self.nearest(z1), p2, self.temperature)
        loss2, top2 = in_batch(self.nearest(z2), p1, self.temperature)
        return {
            "loss": (loss1 + loss2) / 2,
            "top1": (top1 + top2) / 2,
            "embedding_std": health.embedding_std(z1),
            "z": z1,
        }

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """NN(z, Q), [N, D] -> [N, D]."""
        with torch.autocast(z.device.type, enabled=False):
            return self.queue.z[(z @ self.queue.z.T).argmax(dim=1)]

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.queue.push(z=distributed.gather(out["z"]))  # the first view's alone, as in the paper
