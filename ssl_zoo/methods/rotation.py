"""Predicting image rotations."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import METHODS
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.heads import Linear
from ssl_zoo.ops.patches import quarter_turns


@METHODS.register_module()
class Rotation(Method):
    """Which way is up? Four rotations of each image, four classes (RotNet, arXiv:1803.07728)."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.encoder = Encoder(backbone, Linear(backbone.num_features, out_features=4))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x = batch.views[0]  # [N, C, H, W]
        turned = quarter_turns(x)  # [N, 4, C, H, W]
        target = torch.arange(4, device=x.device).repeat(len(x))  # [4N]
        logits = self.encoder(turned.flatten(0, 1))  # [4N, C, H, W] -> [4N, 4]
        top1 = 100 * (logits.argmax(dim=1) == target).float().mean()
        return {"loss": F.cross_entropy(logits.float(), target), "top1": top1}
