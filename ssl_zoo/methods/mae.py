"""Masked autoencoders."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Part, Range, Scheduled
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
        normalize_pixels: each target patch to mean 0 and variance 1.
    """

    family = "masked"
    needs = "tokens"
    needs_own_size = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        decoder: Part[HEADS],
        mask_ratio: Scheduled[Annotated[float, Range(0.01, 0.99)]] = 0.75,
        normalize_pixels: bool = True,
    ):
        super().__init__()
        backbone.require_token_norm()
        width, values, grid = backbone.num_features, backbone.patch_values, backbone.grid_size
        head = decoder(in_features=width, out_features=values, grid=grid)
        self.encoder = Encoder(backbone, head)
        self.mask_ratio, self.normalize_pixels = mask_ratio, normalize_pixels

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.views[0]  # [N, C, H, W]
        encoder, decoder = self.encoder.backbone, self.encoder.head
        encoder.require_own_size(images)
        length = math.prod(encoder.grid_size)  # L
        order = random_order(self.random_key("mask", batch.index), length)  # [N, L]
        num_kept = min(max(1, int(length * (1 - self.mask_ratio))), length - 1)  # K
        kept, masked = order.tensor_split([num_kept], dim=1)  # [N, K], [N, L - K]
        z = encoder.tokens(images, kept=kept)  # [N, P + K, F]
        y = decoder(z, kept, masked).float()  # [N, L - K, C * p * p]
        x = take(patchify(images.float(), encoder.patch_size), masked)  # [N, L - K, C * p * p]
        if self.normalize_pixels:
            variance, mean = torch.var_mean(x, dim=2, keepdim=True)
            x = (x - mean) / (variance + 1e-6).sqrt()
        return {"loss": F.mse_loss(y, x)}
