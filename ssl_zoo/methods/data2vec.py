"""A teacher's contextual features of masked patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import METHODS, ConfigError, above, at_least, within
from ssl_zoo.core import Batch, Encoder, Method, MomentumEncoder
from ssl_zoo.heads import Linear
from ssl_zoo.ops import health
from ssl_zoo.ops.masking import block_order, mask_of, take


@METHODS.register_module()
class Data2Vec(Method):
    """Regress what a slow teacher sees in the whole image (data2vec, arXiv:2202.03555).

    loss = mean over masked patches of smooth_l1(y, 1/K sum over the last K blocks of LN(a_k)),
    a_k the teacher's output of block k. The authors' code for images normalises the mean once more,
    and has relative positions; here the whole ViT is averaged, positions included.

    Args:
        backbone: a ViT.
        top_blocks: K.
        beta: where smooth L1 goes from a square to a line.
        momentum: of the teacher.
        mask_ratio: share of the patches that is masked, in blocks.
    """

    family = "masked"
    needs = "tokens"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        top_blocks: int = 6,
        beta: float = 2.0,
        momentum: float = 0.999,
        mask_ratio: float = 0.6,
    ):
        super().__init__()
        self.validate(top_blocks=top_blocks, beta=beta, momentum=momentum, mask_ratio=mask_ratio)
        backbone.require_token_norm()
        if top_blocks > len(backbone.model.blocks):
            raise ConfigError(
                "method.top_blocks",
                "more than the ViT has",
                found=str(top_blocks),
                expected=f"at most {len(backbone.model.blocks)}",
            )
        width = backbone.num_features
        self.encoder = Encoder(backbone, Linear(width, out_features=width))
        self.teacher = MomentumEncoder(backbone)
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.top_blocks, self.beta, self.momentum = top_blocks, beta, momentum
        self.num_patches = math.prod(backbone.grid_size)  # L
        self.num_masked = max(1, round(mask_ratio * self.num_patches))  # M

    @staticmethod
    def validate(
        *,
        top_blocks: int = 6,
        beta: float = 2.0,
        momentum: float = 0.999,
        mask_ratio: float = 0.6,
    ) -> None:
        at_least("top_blocks", top_blocks, 1)
        above("beta", beta, 0)
        within("momentum", momentum, 0, 1)
        within("mask_ratio", mask_ratio, 0.01, 1.0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, student = batch.views[0], self.encoder.backbone  # [N, C, H, W]
        student.require_own_size(images)
        order = block_order(self.random_key("mask", batch.index), student.grid_size)  # [N, L]
        chosen = order[:, : self.num_masked]  # [N, M]
        masked = mask_of(chosen, self.num_patches)  # [N, L]
        z = student.tokens(images, masked, self.mask_token)[:, student.num_prefix_tokens :]
        y = self.encoder.head(take(z, chosen)).float()  # [N, M, F]
        target = self.targets(images)  # [N, L, F]
        return {
            "loss": F.smooth_l1_loss(y, take(target, chosen), beta=self.beta),
            "embedding_std": health.embedding_std(target.mean(dim=1)),
        }

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, L, F]."""
        blocks = self.teacher.encoder.model.forward_intermediates(
            images, indices=self.top_blocks, output_fmt="NLC", intermediates_only=True
        )  # K x [N, L, F], before the last norm
        normalised = [F.layer_norm(a.float(), a.shape[-1:]) for a in blocks]
        return torch.stack(normalised).mean(dim=0)

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.teacher.follow(self.encoder.backbone, self.momentum)
