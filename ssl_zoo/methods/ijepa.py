"""Predicting the representations of image blocks from a context."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Bounds, ConfigError, Part
from ssl_zoo.config.constraints import PositiveFloat, PositiveInt, Range, Scheduled, UnitInterval
from ssl_zoo.core import Batch, Encoder, Method, MomentumEncoder
from ssl_zoo.ops import health
from ssl_zoo.ops.masking import Share, block, count_of, mask_of, take
from ssl_zoo.system import rng


@METHODS.register_module()
class IJEPA(Method):
    """Representations of target blocks from those of a context (I-JEPA, arXiv:2301.08243).

    loss = mean over target blocks and their patches of smooth_l1(s_hat, LN(s)), s the target
    encoder's output for the whole image (the authors' code; the paper has the squared distance).

    In the paper a batch's blocks have one random size, and contexts are cut to its smallest. Here
    the numbers of patches are fixed, so that a sample's masks depend on no other sample and nothing
    waits for the device; shapes and places are random for each sample.

    Args:
        predictor: (tokens, seen, wanted) -> representations of the wanted patches.
        num_targets: blocks to predict, M.
        target_scale, target_ratio: share of the patches in each; bounds of its height / width.
        context_scale: share of the patches in the context block, before targets are cut out.
        context_kept: share of the patches that the encoder sees, out of the context.
        momentum: of the target encoder.
    """

    family = "masked"
    needs = "tokens"
    needs_own_size = True
    evaluated = "target_encoder"  # the paper, appendix A.1

    def __init__(
        self,
        backbone: nn.Module,
        *,
        predictor: Part[HEADS],
        num_targets: PositiveInt = 4,
        target_scale: Scheduled[Annotated[float, Range(0.01, 0.99)]] = 0.175,
        target_ratio: Bounds[PositiveFloat] = (0.75, 1.5),
        context_scale: Scheduled[Share] = 0.925,
        context_kept: Scheduled[Share] = 0.35,
        momentum: Scheduled[UnitInterval] = 0.996,
    ):
        super().__init__()
        backbone.require_token_norm()
        width, self.grid = backbone.num_features, backbone.grid_size
        head = predictor(in_features=width, out_features=width, grid=self.grid)
        self.encoder = Encoder(backbone, head)
        self.target_encoder = MomentumEncoder(backbone)
        self.num_targets, self.momentum = num_targets, momentum
        self.target_scale, self.target_ratio = target_scale, target_ratio
        self.context_scale, self.context_kept = context_scale, context_kept

    @staticmethod
    def validate(*, context_scale: float, context_kept: float, **_) -> None:
        if context_kept > context_scale:
            found, most = str(context_kept), f"at most context_scale, {context_scale}"
            raise ConfigError("context_kept", "out of range", found=found, expected=most)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, encoder, predictor = batch.views[0], self.encoder.backbone, self.encoder.head
        encoder.require_own_size(images)
        context, targets = self.blocks(self.random_key("blocks", batch.index))  # [N, K], [N, M, T]
        with torch.no_grad():
            s = self.target_encoder.encoder.tokens(images)[:, encoder.num_prefix_tokens :]
        s = F.layer_norm(s.float(), s.shape[-1:])  # [N, L, F]
        z = encoder.tokens(images, kept=context)  # [N, P + K, F]
        # Each block is predicted apart from the others: M rows a sample.
        z, context = (x.repeat_interleave(self.num_targets, dim=0) for x in (z, context))
        s_hat = predictor(z, context, targets.flatten(0, 1))  # [N * M, T, F]
        s_blocks = take(s, targets.flatten(1))  # [N, M * T, F]
        return {
            "loss": F.smooth_l1_loss(s_hat.float().view_as(s_blocks), s_blocks),
            "embedding_std": health.embedding_std(s.mean(dim=1)),
        }

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.target_encoder.follow(self.encoder.backbone, self.momentum)

    def blocks(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Patches of context [N, K] and targets [N, M, T] for keys [N].

        They share none, unless targets cover the whole context: then K times one patch is seen,
        drawn from all. Where they leave it fewer than K patches, some of these are seen twice.
        """
        keys = rng.hashed(key[:, None], "target", torch.arange(self.num_targets, device=key.device))
        target_size = count_of(self.target_scale, self.grid)  # T
        targets = block(keys, self.grid, target_size, self.target_ratio)  # [N, M, T]
        context_size = count_of(self.context_scale, self.grid)
        around = block(rng.hashed(key, "context"), self.grid, context_size, (1.0, 1.0))
        length = math.prod(self.grid)
        left = mask_of(around, length) & ~mask_of(targets.flatten(1), length)  # [N, L]
        patches = torch.arange(length, device=key.device)
        chance = rng.uniform(key[:, None], "order", patches)  # [N, L]
        order = (chance + ~left).argsort(dim=1, stable=True)  # those left first
        slots = torch.arange(count_of(self.context_kept, self.grid), device=key.device)  # [K]
        return order.gather(1, slots % left.sum(dim=1, keepdim=True).clamp(min=1)), targets
