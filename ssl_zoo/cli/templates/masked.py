"""NewPart: one sentence on the idea."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ssl_zoo.config import METHODS, Range
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.heads import Linear
from ssl_zoo.ops.masking import mask_of, random_order
from ssl_zoo.ops.patches import patchify


@METHODS.register_module()
class NewPart(Method):
    """What is under the mask? Its pixels, from the patches in sight (SimMIM, arXiv:2111.09886).

    L = mean over masked pixels of |y - x|.

    Args:
        backbone: a ViT.
        ratio: share of the patches that is masked, rounded up.
    """

    family = "masked"
    needs = "tokens"

    def __init__(self, backbone: nn.Module, *, ratio: Annotated[float, Range(0.01, 1)] = 0.6):
        super().__init__()
        backbone.require_token_norm()
        width, self.length = backbone.num_features, math.prod(backbone.grid_size)  # F, L
        self.encoder = Encoder(backbone, Linear(width, out_features=backbone.patch_values))
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.num_masked = math.ceil(ratio * self.length)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, vit = batch.views[0], self.encoder.backbone  # [N, C, H, W]
        vit.require_own_size(images)
        order = random_order(self.random_key("mask", batch.index), self.length)  # [N, L]
        masked = mask_of(order[:, : self.num_masked], self.length)  # [N, L]
        z = vit.tokens(images, masked, self.mask_token)[:, vit.num_prefix_tokens :]  # [N, L, F]
        y = self.encoder.head(z).float()  # [N, L, C * p * p]
        x = patchify(images.float(), vit.patch_size)  # [N, L, C * p * p]
        loss = (y - x).abs().mean(dim=2)  # [N, L]
        return {"loss": (loss * masked).sum() / masked.sum()}
