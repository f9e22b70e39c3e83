"""Operations that move pixels: crops, resizes, flips."""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ssl_zoo.config import TRANSFORMS, Bounds, PositiveFloat, PositiveInt, Range, UnitInterval
from ssl_zoo.data.image.transform import (
    GeometricTransform,
    Params,
    Shape,
    Transform,
    ViewNumbers,
    between,
    filter_rows_and_columns,
    uniforms,
)

Size = PositiveInt | tuple[PositiveInt, PositiveInt]  # in pixels: of both sides, or [H, W]
Share = Annotated[float, Range(0, 1, open_low=True)]
Interpolation = Literal["bilinear", "bicubic"]


def height_and_width(size: int | tuple[int, int]) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


def resize_matrix(
    start: Tensor, length: Tensor, total: int, out: int, interpolation: str = "bilinear"
) -> Tensor:
    """Antialiased interpolation of pixels [start, start + length) [N] float32, as matrices.

    [N, out, total]; a row holds the weights of one output pixel and sums to 1.
    """
    scale = (length / out)[:, None]  # [N, 1], source pixels an output pixel
    sharpness = 1 / scale.clamp(min=1)  # the filter widens only when shrinking
    center = start[:, None] + scale * (torch.arange(out, device=start.device) + 0.5)  # [N, out]
    pixel = torch.arange(total, device=start.device)  # [total]
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])  # [N, total]
    position = ((pixel + 0.5) * sharpness).masked_fill_(~inside, math.inf)  # [N, total]
    distance = (position[:, None, :] - (center * sharpness)[:, :, None]).abs_()  # [N, out, total]
    if interpolation == "bilinear":
        weights = distance.neg_().add_(1).clamp_(min=0)
    else:  # Keys' cubic with a = -1/2
        d = distance.clamp_(max=2)
        near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
        weights = torch.where(d < 1, near, far)
    return weights.div_(weights.sum(2, keepdim=True))


@TRANSFORMS.register_module()
class RandomResizedCrop(GeometricTransform):
    """A random part of the image, resized with antialiasing (Szegedy et al., arXiv:1409.4842).

    As torchvision's: ten tries to fit a box, its area's share from `scale` and the logarithm of
    width / height from `ratio`, both uniform; then the largest central one.
    """

    one_size = True

    def __init__(
        self,
        *,
        size: Size,
        scale: Bounds[Share] = (0.08, 1.0),
        ratio: Bounds[PositiveFloat] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bilinear",
        views: ViewNumbers = None,
    ):
        super().__init__(views=views)
        self.size, self.scale, self.ratio = height_and_width(size), scale, ratio
        self.interpolation = interpolation

    def draw(self, key: Tensor, shape: Shape) -> Params:
        """box: [N, 4] int64: top, left, height, width."""
        _, height, width = shape
        height = torch.as_tensor(height, dtype=torch.float64).expand(len(key))  # [N]
        width = torch.as_tensor(width, dtype=torch.float64).expand(len(key))
        u = uniforms(key, 22).double()  # [N, 22]: ten areas, ten ratios, two offsets
        area = (height * width)[:, None] * between(u[:, :10], *self.scale)  # [N, 10]
        aspect = between(u[:, 10:20], *map(math.log, self.ratio)).exp()  # [N, 10]
        w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
        first = fits.byte().argmax(1, keepdim=True)  # [N, 1], the first try that fits
        any_fits = fits.any(1)
        # The fallback, the central box of the nearest ratio that is allowed.
        inner_w = torch.minimum(width, (height * self.ratio[1]).round())
        inner_h = torch.minimum(height, (width / self.ratio[0]).round())
        w = torch.where(any_fits, w.gather(1, first)[:, 0], inner_w)  # [N]
        h = torch.where(any_fits, h.gather(1, first)[:, 0], inner_h)
        top, left = (
            torch.where(any_fits, uniform * (room + 1), room / 2).floor()
            for uniform, room in ((u[:, 20], height - h), (u[:, 21], width - w))
        )
        return {"box": torch.stack([top, left, h, w], dim=1).long()}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        box = params["box"].to(images.device, torch.float32, non_blocking=True)
        top, left, h, w = box.unbind(1)
        height, width = images.shape[2:]
        rows = resize_matrix(top, h, height, self.size[0], self.interpolation)  # [N, oh, H]
        columns = resize_matrix(left, w, width, self.size[1], self.interpolation)  # [N, ow, W]
        images = filter_rows_and_columns(images, rows, columns)  # [N, C, oh, ow]
        return images if self.interpolation == "bilinear" else images.clamp_(0, 1)

    def apply_one(self, image: Tensor, params: Params) -> Tensor:
        top, left, h, w = params["box"].tolist()
        mode = InterpolationMode(self.interpolation)
        return F.resized_crop(image, top, left, h, w, self.size, interpolation=mode, antialias=True)

    def source_box(self, shapes: Tensor, params: Params) -> Tensor:
        start, size = params["box"].float().split(2, dim=1)
        return torch.cat([start, start + size], dim=1)

    def source_pixels_per_output_pixel(self, shapes: Tensor, params: Params) -> Tensor:
        return (params["box"][:, 2:] / torch.tensor(self.size)).amin(1)

    def scale_params(self, params: Params, shrink: Tensor) -> Params:
        box, shrink = params["box"], shrink[:, None]
        size = (box[:, 2:] + shrink // 2) // shrink  # [N, 2], rounded
        end = (box[:, :2] + box[:, 2:] + shrink // 2) // shrink
        return {"box": torch.cat([end - size, size], dim=1)}


@TRANSFORMS.register_module()
class Resize(GeometricTransform):
    """The whole image antialiased to [height, width], or its shorter side to one number."""

    random = False

    def __init__(
        self, *, size: Size, interpolation: Interpolation = "bilinear", views: ViewNumbers = None
    ):
        super().__init__(views=views)
        self.one_size = not isinstance(size, int)
        self.size = list(size) if self.one_size else [size]
        self.interpolation = interpolation

    def apply(self, images: Tensor, params: Params) -> Tensor:
        images = self.apply_one(images, params)
        return images if self.interpolation == "bilinear" else images.clamp(0, 1)

    def apply_one(self, image: Tensor, params: Params) -> Tensor:
        mode = InterpolationMode(self.interpolation)
        return F.resize(image, self.size, interpolation=mode, antialias=True)

    def output_shapes(self, shapes: Tensor) -> Tensor:
        if self.one_size:
            return super().output_shapes(shapes)
        sides = shapes[:, 1:]
        # In whole numbers, the longer side rounded down, as torchvision does.
        return torch.cat([shapes[:, :1], self.size[0] * sides // sides.amin(1, True)], dim=1)

    def source_pixels_per_output_pixel(self, shapes: Tensor, params: Params) -> Tensor:
        sides = shapes[:, 1:] if self.one_size else shapes[:, 1:].amin(1, keepdim=True)
        return (sides / torch.tensor(self.size)).amin(1)


@TRANSFORMS.register_module()
class CenterCrop(GeometricTransform):
    """The central part of the image, padded with black where the image is smaller."""

    random = False
    one_size = True

    def __init__(self, *, size: Size, views: ViewNumbers = None):
        super().__init__(views=views)
        self.size = height_and_width(size)

    def apply_one(self, image: Tensor, params: Params) -> Tensor:
        return F.center_crop(image, self.size)

    def source_box(self, shapes: Tensor, params: Params) -> Tensor:
        size = torch.tensor(self.size)
        gap = (shapes[:, 1:] - size) / 2
        start = torch.where(gap < 0, gap.trunc(), gap.round())  # padded: down; cut: half to even
        return torch.cat([start, start + size], dim=1)


@TRANSFORMS.register_module()
class HorizontalFlip(Transform):
    """Left and right exchanged."""

    moves_pixels = True

    def __init__(self, *, p: UnitInterval = 0.5, views: ViewNumbers = None):
        super().__init__(p, views)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return images.flip(-1)

    def source_box(self, shapes: Tensor, params: Params) -> Tensor:
        return super().source_box(shapes, params)[:, [0, 3, 2, 1]]
