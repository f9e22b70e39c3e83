"""Predicting histograms of gradients of masked patches."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import METHODS, AtLeastTwo, ConfigError, PositiveInt, Scheduled
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.heads import Linear
from ssl_zoo.ops.masking import Share, masked_blocks, take
from ssl_zoo.ops.patches import patchify

# Mean gradient of a cell below which it is not brought to unit length: rounding on flat ground.
# A single pixel, one step of 8 bits off, gives more where images have variance 1.
FLAT = 1e-3


@METHODS.register_module()
class MaskFeat(Method):
    """HOG descriptors of masked patches by one linear layer (MaskFeat, arXiv:2112.09133).

    loss = mean over masked patches and their values of (y - HOG(x))^2.

    Args:
        cell: side of a histogram's cell in pixels, a divisor of the ViT's patch.
        orientations: bins of a histogram, over half a turn.
        mask_ratio: share of the patches that is masked, in blocks.
    """

    family = "masked"
    needs = "tokens"
    needs_own_size = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        cell: PositiveInt = 8,
        orientations: AtLeastTwo = 9,
        mask_ratio: Scheduled[Share] = 0.4,
    ):
        super().__init__()
        backbone.require_token_norm()
        if any(p % cell for p in backbone.patch_size):
            key, problem = "method.cell", "cells do not fill a patch"
            divisor = f"a divisor of {backbone.patch_size}"
            raise ConfigError(key, problem, found=str(cell), expected=divisor)
        # Each cell's pixels, channels included, become `orientations` numbers a channel.
        width = backbone.patch_values // cell**2 * orientations
        self.encoder = Encoder(backbone, Linear(backbone.num_features, out_features=width))
        token = torch.empty(backbone.num_features)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(token, std=0.02))
        self.cell, self.orientations = cell, orientations
        self.cells = tuple(p // cell for p in backbone.patch_size)  # of a patch
        self.mask_ratio = mask_ratio

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, vit = batch.views[0], self.encoder.backbone  # [N, C, H, W]
        vit.require_own_size(images)
        key = self.random_key("mask", batch.index)  # [N]
        chosen, masked = masked_blocks(key, vit.grid_size, self.mask_ratio)  # [N, M], [N, L]
        z = vit.tokens(images, masked, self.mask_token)[:, vit.num_prefix_tokens :]  # [N, L, F]
        y = self.encoder.head(take(z, chosen)).float()  # [N, M, cells * C * B]
        cells = hog(images, self.cell, self.orientations)  # [N, C * B, H / cell, W / cell]
        target = take(patchify(cells, self.cells), chosen)  # [N, M, cells * C * B]
        return {"loss": F.mse_loss(y, target)}


@torch.no_grad()
def hog(images: Tensor, cell: int, orientations: int) -> Tensor:
    """Histograms of oriented gradients, [N, C, H, W] -> [N, C * B, H / cell, W / cell] float32.

    Each pixel of each channel gives its gradient's magnitude to the one of B orientations that it
    has modulo half a turn; a cell's B bins are then brought to unit length. As in the authors'
    code, gradients are Sobel's, at borders of the mirrored image; its Gaussian window is left out.
    """
    n, c, height, width = images.shape
    x = F.pad(images.float(), (1, 1, 1, 1), mode="reflect").flatten(0, 1)  # [N * C, H + 2, W + 2]
    # As differences and not as a convolution: its rounding would leave tiny gradients of any
    # direction where there are none, on flat ground and across mirrored borders.
    across, down = x[:, :, 2:] - x[:, :, :-2], x[:, 2:] - x[:, :-2]
    gx = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]  # [N * C, H, W]
    gy = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    turn = torch.atan2(gy, gx) / math.pi  # [-1, 1]
    number = (turn * orientations).floor().long() % orientations
    votes = x.new_zeros(n * c, orientations, height, width)
    votes.scatter_(1, number[:, None], torch.hypot(gx, gy)[:, None])
    cells = F.avg_pool2d(votes, cell)  # [N * C, B, H / cell, W / cell]
    return F.normalize(cells, dim=1, eps=FLAT).unflatten(0, (n, c)).flatten(1, 2)
