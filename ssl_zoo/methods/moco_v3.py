"""MoCo v3: no queue, a predictor, and what makes a ViT train."""

from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.backbones import FITS
from ssl_zoo.config import HEADS, METHODS, ConfigError, Part, PositiveFloat, Scheduled, UnitInterval
from ssl_zoo.core import Batch, Encoder, Method, MomentumEncoder, predictor_for
from ssl_zoo.losses import in_batch
from ssl_zoo.ops import health


@METHODS.register_module()
class MoCoV3(Method):
    """Predicted queries against the batch's keys of a momentum encoder (MoCo v3, arXiv:2104.02057).

    L = ctr(q1, k2) + ctr(q2, k1),  ctr(q, k) = -2 t log(exp(q.k+/t) / sum_i exp(q.k_i/t)).

    Args:
        head: the projector, 3 layers for the paper's ViTs and 2 for its ResNet.
        predictor: of queries alone, embeddings -> embeddings.
        temperature: t; 0.2 for ViTs, 1.0 for the ResNet.
        momentum: of the key encoder; in the recipe it rises to 1.
        frozen_patch_embed: a ViT's patch embedding stays as it is, for stability (section 4.2).
    """

    family = "contrastive"
    views_needed = 2
    least_images = 2
    evaluated = "backbone"  # main_lincls.py of facebookresearch/moco-v3

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        predictor: Part[HEADS],
        temperature: Scheduled[PositiveFloat] = 0.2,
        momentum: Scheduled[UnitInterval] = 0.99,
        frozen_patch_embed: bool = False,
    ):
        super().__init__()
        if frozen_patch_embed:
            if not hasattr(backbone, "patch_embed"):
                key, problem = "frozen_patch_embed", "the backbone has no patch embedding to freeze"
                raise ConfigError(key, problem, expected=f"false, or {FITS['tokens']}")
            backbone.patch_embed.requires_grad_(False)
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.predictor = predictor_for(self.encoder, predictor)
        self.key_encoder = MomentumEncoder(self.encoder)
        self.temperature, self.momentum = temperature, momentum

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x1, x2 = batch.views[:2]  # [N, C, H, W]
        q1, q2 = (self.predictor(self.encoder(x)) for x in (x1, x2))  # [N, D]
        q1, q2 = (F.normalize(q.float(), dim=1) for q in (q1, q2))
        k1, k2 = (F.normalize(self.key_encoder(x).float(), dim=1) for x in (x1, x2))  # [N, D]
        loss1, top1 = in_batch(q1, k2, self.temperature)
        loss2, top2 = in_batch(q2, k1, self.temperature)
        return {
            "loss": 2 * self.temperature * (loss1 + loss2),
            "top1": (top1 + top2) / 2,
            "embedding_std": health.embedding_std(k1),
        }

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.key_encoder.follow(self.encoder, self.momentum)
