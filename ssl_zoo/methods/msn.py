"""Masked siamese networks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, AtLeastTwo, HalfOpenUnitInterval, NonNegativeFloat, Part
from ssl_zoo.config.constraints import NonNegativeInt, PositiveFloat, Scheduled, UnitInterval
from ssl_zoo.core import Batch, Encoder, Method, MomentumEncoder, encode_views, set_apart
from ssl_zoo.ops import health
from ssl_zoo.ops.masking import random_order
from ssl_zoo.ops.sinkhorn import sinkhorn_knopp
from ssl_zoo.system import distributed


@METHODS.register_module()
class MSN(Method):
    """What is left of an image is assigned as the whole of it is (MSN, arXiv:2204.07141).

    The target network sees the first view whole. Anchors are the second view without some of its
    patches, and further, small views (the paper's focal masks). All anchors together are to use
    the prototypes evenly, in place of a center.

    Args:
        backbone: a ViT; with small views, `options: {dynamic_img_size: true}`.
        num_prototypes: K.
        drop: share of the second view's patches that is left out.
        anchor_temperature, target_temperature: the lower of the two sharpens the target.
        me_max_weight: lambda, of the mean assignment's entropy.
        sinkhorn_iterations: to balance the targets over the prototypes; the authors' code has 3.
        momentum: of the target network; the paper raises it to 1.
    """

    family = "distillation"
    needs = "tokens"
    views_needed = 2
    least_images = 2
    evaluated = "target"  # linear_eval.py of facebookresearch/msn

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        num_prototypes: AtLeastTwo = 1024,
        drop: Scheduled[HalfOpenUnitInterval] = 0.15,
        anchor_temperature: Scheduled[PositiveFloat] = 0.1,
        target_temperature: Scheduled[PositiveFloat] = 0.025,
        me_max_weight: Scheduled[NonNegativeFloat] = 1.0,
        sinkhorn_iterations: NonNegativeInt = 0,
        momentum: Scheduled[UnitInterval] = 0.996,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.target = MomentumEncoder(self.encoder)
        self.prototypes = nn.Linear(self.encoder.out_features, num_prototypes, bias=False)
        self.drop, self.me_max_weight, self.momentum = drop, me_max_weight, momentum
        self.sinkhorn_iterations = sinkhorn_iterations
        self.anchor_temperature, self.target_temperature = anchor_temperature, target_temperature

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x, masked, *focal = batch.views  # [N, C, H, W] each
        backbone = self.encoder.backbone
        kept = self.kept(masked, batch.index)  # [N, L'], patches
        # In this order: a compiled pass after a plain one would spoil BatchNorm's backward pass.
        z = encode_views(self.encoder, focal)  # [N, D] each
        h = backbone.pool(backbone.tokens(masked, kept=kept))  # [N, F]
        z = [self.encoder.head(h), *z]  # of M anchors
        cosines = torch.stack([self.cosines(anchor) for anchor in z])  # [M, N, K]
        with torch.no_grad():
            target = self.cosines(self.target(x)) / self.target_temperature  # [N, K]
            p_t = sinkhorn_knopp(target.log_softmax(dim=1), 1.0, self.sinkhorn_iterations)  # [N, K]
        matching, me_max = msn_losses(cosines / self.anchor_temperature, p_t)
        return {
            "loss": matching + self.me_max_weight * me_max,
            "matching_loss": matching,
            "me_max": me_max,
            **health.figures(z[0], p_t),
        }

    def kept(self, images: Tensor, index: Tensor) -> Tensor:
        """Patches that are looked at, drawn uniformly for each sample, [N, L'] int64."""
        height, width = self.encoder.backbone.patch_size
        length = (images.shape[2] // height) * (images.shape[3] // width)
        order = random_order(self.random_key("patches", index), length)  # [N, L]
        return order[:, : max(1, int(length * (1 - self.drop)))]

    def cosines(self, z: Tensor) -> Tensor:
        """[N, D] -> similarities with the prototypes [N, K] float32."""
        with torch.autocast(z.device.type, enabled=False):
            z, q = F.normalize(z.float(), dim=1), F.normalize(self.prototypes.weight, dim=1)
            return z @ q.T

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.target.follow(self.encoder, self.momentum)

    def param_groups(self, weight_decay: float, decay_norm_and_bias: bool = True) -> list[dict]:
        """The prototypes are without weight decay, as with the authors."""
        groups = super().param_groups(weight_decay, decay_norm_and_bias)
        return set_apart(groups, self.prototypes, weight_decay=0.0, constant_weight_decay=True)


def msn_losses(scores: Tensor, p_t: Tensor) -> tuple[Tensor, Tensor]:
    """1/MN sum_{m,n} -p_t_n . log p_mn, and -H(mean of p over all ranks) (equation 1).

    Of the anchors' scores [M, N, K], p = softmax(scores), and the targets' p_t [N, K].
    """
    log_p = scores.log_softmax(dim=2)  # [M, N, K]
    matching = -(p_t * log_p).sum(dim=2).mean()
    mean = distributed.gather(log_p.exp().mean(dim=(0, 1))[None]).mean(dim=0)  # [K]
    log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()  # log 0 has no gradient
    return matching, (mean * log_mean).sum()
