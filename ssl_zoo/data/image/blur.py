"""Blur."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from ssl_zoo.config import TRANSFORMS, Bounds, ConfigError, PositiveFloat, PositiveInt, UnitInterval
from ssl_zoo.data.image.transform import (
    Params,
    Shape,
    Transform,
    ViewNumbers,
    between,
    filter_rows_and_columns,
    uniforms,
)


@lru_cache(maxsize=16)
def _reflections(size: int, taps: int, device: torch.device) -> Tensor:
    """Where each tap of a filter lands under reflecting borders, [taps, size * size] of 0 and 1."""
    where = torch.arange(size)[None, :] + torch.arange(taps)[:, None] - taps // 2  # [taps, size]
    where = (size - 1) - (where.abs() - (size - 1)).abs()
    return torch.nn.functional.one_hot(where, size).float().flatten(1).to(device, non_blocking=True)


@TRANSFORMS.register_module()
class GaussianBlur(Transform):
    """Gaussian blur with a width of each sample's own and reflecting borders.

    Args:
        sigma: bounds of the width in pixels.
        kernel_size: taps, an odd number. None: three sigma of the widest, if the image allows,
            close to the untruncated filter of MoCo v2's and DINO's code.
    """

    def __init__(
        self,
        *,
        sigma: Bounds[PositiveFloat] = (0.1, 2.0),
        kernel_size: PositiveInt | None = None,
        p: UnitInterval = 0.5,
        views: ViewNumbers = None,
    ):
        super().__init__(p, views)
        if kernel_size is not None and kernel_size % 2 == 0:
            problem, found = "a filter without a middle", str(kernel_size)
            raise ConfigError("kernel_size", problem, found=found, expected="an odd number")
        self.sigma, self.kernel_size = sigma, kernel_size

    def draw(self, key: Tensor, shape: Shape) -> Params:
        """sigma: [N] float32."""
        return {"sigma": between(uniforms(key, 1)[:, 0], *self.sigma)}

    def taps(self, size: int) -> int:
        """Taps along a side of `size` pixels; a reflection reaches at most size - 1 pixels out."""
        if self.kernel_size is None:
            return 2 * min(math.ceil(3 * self.sigma[1]), size - 1) + 1
        if self.kernel_size > 2 * size - 1:
            found = f"kernel_size {self.kernel_size} is too wide for images of {size} pixels"
            raise ValueError(f"GaussianBlur: {found}; at most {2 * size - 1}")
        return self.kernel_size

    def matrix(self, sigma: Tensor, size: int) -> Tensor:
        """[N] -> [N, size, size], a row the weights of one output pixel."""
        taps = self.taps(size)
        x = torch.arange(taps, device=sigma.device) - taps // 2  # [taps]
        kernel = torch.softmax(-0.5 * (x / sigma[:, None]) ** 2, dim=1)  # [N, taps]
        return (kernel @ _reflections(size, taps, sigma.device)).view(-1, size, size)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        sigma = params["sigma"].to(images.device, non_blocking=True)
        height, width = images.shape[2:]
        columns = self.matrix(sigma, width)  # [N, W, W]
        rows = columns if height == width else self.matrix(sigma, height)  # [N, H, H]
        return filter_rows_and_columns(images, rows, columns)
