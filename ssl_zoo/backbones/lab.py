"""Two networks, one for lightness and one for color."""

import torch
from torch import Tensor, nn

from ssl_zoo.backbones.base import Backbone, on_meta
from ssl_zoo.config import BACKBONES, Part
from ssl_zoo.ops.batchnorm import groups_of
from ssl_zoo.ops.color import rgb_to_lab

# Of each channel of Lab over sRGB the middle and half of the range: views are in [-1, 1].
_MIDDLE = [50.0, 6.0, -6.7]
_HALF_RANGE = [50.0, 92.3, 101.2]


@BACKBONES.register_module()
class LabPair(Backbone):
    """Lightness through one network, color through another, for CMC (arXiv:1906.05849).

    Images [N, 3, H, W] in [0, 1], so without `Normalize` -> features [N, 2F], of L and then of ab.

    Args:
        of: the network, built twice; `in_chans` is set here, to 1 for L and 2 for ab.
    """

    def __init__(self, *, of: Part[BACKBONES]):
        super().__init__()
        self.l, self.ab = (of.replaced(of.target, in_chans=c)() for c in (1, 2))
        self.bn_groups: int = groups_of(self.l)
        self.num_features: int = self.l.num_features + self.ab.num_features

    def forward(self, images: Tensor) -> Tensor:
        x_l, x_ab = self.views(images)
        return torch.cat([self.l(x_l), self.ab(x_ab)], dim=1)  # [N, 2F]

    @staticmethod
    def views(images: Tensor) -> tuple[Tensor, Tensor]:
        """sRGB [N, 3, H, W] in [0, 1] -> L [N, 1, H, W] and ab [N, 2, H, W] in [-1, 1]."""
        lab = rgb_to_lab(images)
        # Numbers and not a tensor, which would be a copy that the host waits for.
        scales = zip(lab.unbind(dim=1), _MIDDLE, _HALF_RANGE, strict=True)
        x_l, *x_ab = ((x - middle) / half_range for x, middle, half_range in scales)
        return x_l[:, None], torch.stack(x_ab, dim=1)

    @staticmethod
    def on_meta(of: Part[BACKBONES]) -> nn.Module | None:
        return on_meta(of.replaced(of.target, in_chans=1))
