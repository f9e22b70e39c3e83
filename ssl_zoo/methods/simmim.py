"""Masked image modeling with raw pixels and a linear head."""

import math

import torch
from torch import Tensor, nn

from ssl_zoo.config import METHODS, ConfigError, PositiveInt, Scheduled
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.heads import Linear
from ssl_zoo.ops.masking import Share, mask_of, random_order
from ssl_zoo.ops.patches import patchify


@METHODS.register_module()
class SimMIM(Method):
    """Pixels of masked patches by one linear layer (SimMIM, arXiv:2111.09886).

    loss = mean over masked pixels of |y - x|.

    Args:
        mask_patch: side in pixels of what is masked as a whole, a multiple of the ViT's patch.
        mask_ratio: share of these that is masked, rounded up.
    """

    family = "masked"
    needs = "tokens"
    needs_own_size = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        mask_patch: PositiveInt = 32,
        mask_ratio: Scheduled[Share] = 0.6,
    ):
        super().__init__()
        backbone.require_token_norm()
        width = backbone.num_features
        self.encoder = Encoder(backbone, Linear(width, out_features=backbone.patch_values))
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        sides = [n * p for n, p in zip(backbone.grid_size, backbone.patch_size, strict=True)]
        if any(mask_patch % p for p in backbone.patch_size) or any(n % mask_patch for n in sides):
            key, problem = "method.mask_patch", "does not go with the patches"
            multiple = f"a multiple of {backbone.patch_size} that divides {sides}"
            raise ConfigError(key, problem, found=str(mask_patch), expected=multiple)
        self.units = [side // mask_patch for side in sides]  # down and across
        self.patches = [mask_patch // p for p in backbone.patch_size]  # of a unit
        self.mask_ratio = mask_ratio

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, vit = batch.views[0], self.encoder.backbone  # [N, C, H, W]
        vit.require_own_size(images)
        masked = self.masks(self.random_key("mask", batch.index))  # [N, L]
        z = vit.tokens(images, masked, self.mask_token)[:, vit.num_prefix_tokens :]  # [N, L, F]
        y = self.encoder.head(z).float()  # [N, L, C * p * p]
        x = patchify(images.float(), vit.patch_size)  # [N, L, C * p * p]
        loss = (y - x).abs().mean(dim=2)  # [N, L]
        return {"loss": (loss * masked).sum() / masked.sum()}

    def masks(self, key: Tensor) -> Tensor:
        """[N] -> [N, L] bool, true in whole units of `mask_patch` pixels."""
        number = math.prod(self.units)
        num_masked = max(1, math.ceil(self.mask_ratio * number))
        chosen = random_order(key, number)[:, :num_masked]
        masked = mask_of(chosen, number).view(-1, *self.units)
        for dim, times in enumerate(self.patches, start=1):
            masked = masked.repeat_interleave(times, dim=dim)
        return masked.flatten(1)
