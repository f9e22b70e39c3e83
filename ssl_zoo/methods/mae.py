"""Masked autoencoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Part, within
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.ops.masking import random_order, take
from ssl_zoo.ops.patches import patchify


@METHODS.register_module()
class MAE(Method):
    """A quarter of the patches is encoded, the rest decoded from it (MAE, arXiv:2111.06377).

    loss = mean over masked patches of |y - x|^2, x the patch's pixels.

    Args:
        backbone: a ViT; its positions are its own, learned where the paper has fixed ones.
        decoder: (tokens, seen, wanted) -> pixels of the wanted patches.
        mask_ratio: share of the patches that the encoder does not see.
        normalise_pixels: each target patch to mean 0 and variance 1.
    """

    family = "masked"
    needs = "tokens"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        decoder: Part[HEADS],
        mask_ratio: float = 0.75,
        normalise_pixels: bool = True,
    ):
        super().__init__()
        self.validate(mask_ratio=mask_ratio)
        backbone.require_token_norm()
        self.encoder = Encoder(
            backbone,
            decoder(
                in_features=backbone.num_features,
                out_features=backbone.patch_values,
                grid=backbone.grid_size,
            ),
        )
        h, w = backbone.grid_size
        self.num_patches = h * w  # L
        self.num_kept = max(1, int(self.num_patches * (1 - mask_ratio)))  # K
        self.normalise_pixels = normalise_pixels

    @staticmethod
    def validate(*, mask_ratio: float = 0.75, **_) -> None:
        within("mask_ratio", mask_ratio, 0.01, 0.99)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.views[0]  # [N, C, H, W]
        encoder, decoder = self.encoder.backbone, self.encoder.head
        encoder.require_own_size(images)
        order = random_order(self.random_key("mask", batch.index), self.num_patches)  # [N, L]
        kept, masked = order.tensor_split([self.num_kept], dim=1)  # [N, K], [N, L - K]
        z = encoder.tokens(images, kept=kept)  # [N, P + K, F]
        y = decoder(z, kept, masked).float()  # [N, L - K, C * p * p]
        x = take(patchify(images.float(), encoder.patch_size), masked)  # [N, L - K, C * p * p]
        if self.normalise_pixels:
            variance, mean = torch.var_mean(x, dim=2, keepdim=True)
            x = (x - mean) / (variance + 1e-6).sqrt()
        return {"loss": F.mse_loss(y, x)}
