"""A ViT that embeds an image and its patches, some of which it is not shown."""

import torch
from torch import Tensor, nn

from ssl_zoo.config import HEADS, Part
from ssl_zoo.core.encoder import Encoder
from ssl_zoo.ops.batchnorm import groups_of, split_batchnorm
from ssl_zoo.ops.masking import take


class TokenEncoder(Encoder):
    """A ViT with a head for its class token and one for its patches, or one for both.

    Called with images alone it is an encoder like others: the class token's scores [N, K].
    """

    def __init__(self, backbone: nn.Module, head: Part[HEADS], patch_head: Part[HEADS] | None):
        width = backbone.num_features
        super().__init__(backbone, head(in_features=width))
        self.patch_head = self.head
        if patch_head is not None:
            self.patch_head = split_batchnorm(patch_head(in_features=width), groups_of(backbone))
        self.mask_token = nn.Parameter(torch.zeros(width))

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches down and across these images."""
        height, width = self.backbone.patch_size
        return images.shape[2] // height, images.shape[3] // width

    def features(
        self, images: Tensor, patches: Tensor, masked: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Class features [N, F] and [N, M, F] of `patches`, [N, M] int64, numbers of the L patches.

        `masked`, [N, M] bool, says which of them are hidden.
        """
        if masked is not None:
            h, w = self.grid(images)
            nothing = torch.zeros(len(images), h * w, dtype=torch.bool, device=images.device)
            masked = nothing.scatter(1, patches, masked)  # [N, L]
        x = self.backbone.tokens(images, masked, self.mask_token)  # [N, P + L, F]
        return self.backbone.pool(x), take(x, patches + self.backbone.num_prefix_tokens)

    def scores(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The heads' scores of `features`, float32: [N, K] and [N, M, K]."""
        g = self.head(u).float()
        return g, self.patch_head(v.flatten(0, 1)).float().unflatten(0, v.shape[:2])
