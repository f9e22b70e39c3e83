"""NewPart: one sentence on the idea."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import METHODS
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.heads import Linear
from ssl_zoo.system import rng


@METHODS.register_module()
class NewPart(Method):
    """Which quarter of the image is blank? Four classes, after RotNet's four (arXiv:1803.07728)."""

    family = "pretext"

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.encoder = Encoder(backbone, Linear(backbone.num_features, out_features=4))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x = batch.views[0]  # [N, C, H, W]
        target = rng.integers(4, self.random_key("quarter", batch.index))  # [N]
        here = quarters(x) == target[:, None, None, None]  # [N, 1, H, W]
        logits = self.encoder(x.masked_fill(here, 0.0))  # [N, 4]
        top1 = 100 * (logits.argmax(dim=1) == target).float().mean()
        return {"loss": F.cross_entropy(logits.float(), target), "top1": top1}


def quarters(x: Tensor) -> Tensor:
    """The quarter that each pixel of [N, C, H, W] belongs to, [H, W], 0 to 3."""
    height, width = x.shape[2:]
    below = torch.arange(height, device=x.device) >= height // 2
    right = torch.arange(width, device=x.device) >= width // 2
    return 2 * below[:, None] + right
