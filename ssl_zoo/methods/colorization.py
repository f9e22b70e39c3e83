"""Predicting an image's colors from its lightness."""

from collections.abc import Iterable
from functools import cache
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import METHODS, PositiveFloat, PositiveInt, Range, UnitInterval
from ssl_zoo.core import Batch, Method
from ssl_zoo.ops.color import rgb_to_lab
from ssl_zoo.ops.modes import eval_mode
from ssl_zoo.system import distributed


@METHODS.register_module()
class Colorization(Method):
    """Which of Q colors does each pixel of a gray image have? (arXiv:1603.08511).

    Lab's lightness goes in, in each channel, since evaluation shows color images; a distribution
    over bins of the ab plane comes out, at twice the feature map's resolution. Rare colors of the
    training set weigh more. Views and clean images are RGB in [0, 1], so without `Normalize`.

    Args:
        bin_size: width of a bin of the ab plane. With 10, sRGB reaches Q = 261 bins; the paper's
            list has 313, some of them out of reach.
        neighbors: a pixel's target is spread over its closest bins.
        sigma: width of that spread, and of the smoothing of the bins' frequencies.
        uniform: lambda, the uniform distribution's part in colors' weights: with 1 all are equal.
        hidden_features: width of the layers between feature map and distribution.
    """

    needs = "map"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        bin_size: Annotated[int, Range(2, 50)] = 10,
        neighbors: Annotated[int, Range(1, 9)] = 5,
        sigma: PositiveFloat = 5.0,
        uniform: UnitInterval = 0.5,
        hidden_features: PositiveInt = 256,
    ):
        super().__init__()
        self.neighbors, self.sigma, self.uniform = neighbors, sigma, uniform
        self.register_buffer("bins", color_bins(bin_size).clone())  # [Q, 2], of a and b
        self.register_buffer("weight", torch.ones(len(self.bins)))  # w [Q]
        self.encoder = Colorizer(backbone, hidden_features, len(self.bins))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """L = -mean_hw w_{q*} sum_q Z_q log p_q, q* = argmax_q Z_q (equation 2, as a mean)."""
        lightness, ab = rgb_to_lab(batch.views[0]).tensor_split([1], dim=1)
        log_p = self.encoder(lightness / 100).float().log_softmax(dim=1)  # [N, Q, h, w]
        # As in the authors' code, pixels are left out and not averaged: colors' mean is gray.
        ab = F.interpolate(ab, size=log_p.shape[2:], mode="nearest-exact")  # [N, 2, h, w]
        closest, z = self.encode(ab)  # [N, k, h, w] each
        loss = -(z * log_p.gather(1, closest)).sum(dim=1)  # [N, h, w]
        top1 = 100 * (log_p.argmax(dim=1) == closest[:, 0]).float().mean()
        return {"loss": (self.weight[closest[:, 0]] * loss).mean(), "top1": top1}

    def encode(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the k bins closest to colors [N, 2, h, w], and their share Z: [N, k, h, w]."""
        # Not as |x|^2 - 2 x y + |y|^2, which is inexact among distances this close.
        mode = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(ab.movedim(1, 3).flatten(1, 2), self.bins, compute_mode=mode)
        distance, closest = distance.topk(self.neighbors, largest=False)  # [N, h * w, k]
        return tuple(x.mT.unflatten(2, ab.shape[2:]) for x in (closest, self.smoothed(distance)))

    def smoothed(self, distance: Tensor) -> Tensor:
        """Gaussians of distances, the sum over the last dimension 1."""
        return (-(distance**2) / (2 * self.sigma**2)).softmax(dim=-1)

    @torch.no_grad()
    def before_epoch(self, images: Iterable[tuple[Tensor, Tensor]]) -> None:
        """w = 1 / ((1 - lambda) p + lambda / Q), scaled to sum_q p_q w_q = 1 (equation 4).

        Before the first epoch alone. p is counted on each fourth pixel down and across, the
        paper's resolution, and smoothed in the ab plane. ValueError for other than RGB in [0, 1].
        """
        if self.steps > 0:
            return
        count = torch.zeros_like(self.weight, dtype=torch.float64)  # [Q]
        for x, _ in images:
            if x.shape[1] != 3 or x.min() < -0.1 or x.max() > 1.1:
                found = f"{x.shape[1]} channels from {x.min():.2f} to {x.max():.2f}"
                needed = "RGB images in [0, 1], so without Normalize"
                raise ValueError(f"Colorization takes {needed}; found {found}")
            closest, z = self.encode(rgb_to_lab(x[:, :, ::4, ::4])[:, 1:])
            count.index_add_(0, closest.flatten(), z.flatten().double())
        count = distributed.mean(count)
        kernel = self.smoothed(torch.cdist(self.bins, self.bins)).double()  # [Q, Q]
        p = count / count.sum() @ kernel  # [Q], sums to 1
        weight = 1 / ((1 - self.uniform) * p + self.uniform / len(p))
        self.weight.copy_(weight / (p * weight).sum())


class Colorizer(nn.Module):
    """Backbone and decoder: lightness [N, 1, H, W] -> logits [N, Q, 2h, 2w]."""

    def __init__(self, backbone: nn.Module, hidden_features: int, out_features: int):
        super().__init__()
        self.backbone = backbone
        _freeze_pooling(backbone)
        # The paper's conv8: twice the resolution first.
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(backbone.map_features, hidden_features, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_features, hidden_features, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_features, out_features, 1),
        )

    def forward(self, lightness: Tensor) -> Tensor:
        gray = lightness.expand(-1, 3, -1, -1)
        return self.decoder(self.backbone.feature_map(gray))


def _freeze_pooling(backbone: nn.Module) -> None:
    """What `pool` alone uses stays as it is: it gets no gradient, and DDP would wait for one."""
    with eval_mode(backbone), torch.enable_grad():
        pooled = backbone.pool(torch.zeros(2, backbone.map_features, 2, 2))
    if pooled.requires_grad:
        parameters = [p for p in backbone.parameters() if p.requires_grad]
        used = torch.autograd.grad(pooled.sum(), parameters, allow_unused=True)
        for p, grad in zip(parameters, used, strict=True):
            p.requires_grad_(grad is None)


@cache
def color_bins(size: int) -> Tensor:
    """Centers of the ab plane's bins that sRGB reaches, [Q, 2]; on a lattice of 64^3 colors."""
    level = torch.linspace(0, 1, 64)
    rgb = torch.cartesian_prod(level, level, level).T[None, :, None]  # [1, 3, 1, 64^3]
    ab = rgb_to_lab(rgb)[0, 1:, 0].T  # [64^3, 2]
    return size * (ab / size).round().unique(dim=0)
