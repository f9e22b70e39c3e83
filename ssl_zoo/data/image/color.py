"""Operations on the colors of images."""

from typing import Annotated

import torch
from torch import Tensor

from ssl_zoo.config import (
    TRANSFORMS,
    ConfigError,
    NonNegativeFloat,
    PositiveFloat,
    Range,
    UnitInterval,
)
from ssl_zoo.data.image.transform import Params, Shape, Transform, ViewNumbers, uniforms

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def _per_sample(values: Tensor, device: torch.device) -> Tensor:
    """[N] -> [N, 1, 1, 1] on the images' device."""
    return values[:, None, None, None].to(device, non_blocking=True)


def grayscale(images: Tensor) -> Tensor:
    """ITU-R 601 luma, [N, 3, H, W] -> [N, 1, H, W]; one channel is its own."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)  # each [N, 1, H, W]
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by `shift` [N, 1, 1] (a full turn is 1); images [N, 3, H, W] in [0, 1].

    With V = max, C = max - min and the hue h in sixths of a turn, a channel centered at hue n
    is V - C clamp(|h - n| - 1, 0, 1), the distance taken around the circle, n = 0, 2, 4.
    """
    red, green, blue = images.unbind(1)  # each [N, H, W]
    value = images.amax(1)
    chroma = value - images.amin(1)
    inverse = chroma.clamp(min=torch.finfo(chroma.dtype).tiny).reciprocal_()  # gray: any will do
    # `lerp` by 0 or 1 selects, at a quarter of the time that `where` takes on a CPU.
    largest = torch.empty_like(value)
    hue = (red - green).mul_(inverse).add_(4)  # [N, H, W]
    hue.lerp_((blue - red).mul_(inverse).add_(2), torch.eq(value, green, out=largest))
    hue.lerp_((green - blue).mul_(inverse), torch.eq(value, red, out=largest))
    hue += 6 * shift
    out = torch.empty_like(images)
    for channel, center in enumerate((0, 2, 4)):
        offset = hue - center
        distance = offset.sub_((offset / 6).round_(), alpha=6).abs_()  # [N, H, W] in [0, 3]
        torch.addcmul(value, distance.sub_(1).clamp_(0, 1), chroma, value=-1, out=out[:, channel])
    return out


@TRANSFORMS.register_module()
class ColorJitter(Transform):
    """Brightness, contrast, saturation and hue by random factors, in a random order of each sample.

    b draws a factor from [max(0, 1 - b), 1 + b]; hue h a turn from [-h, h], in full turns.
    """

    def __init__(
        self,
        *,
        brightness: NonNegativeFloat = 0.0,
        contrast: NonNegativeFloat = 0.0,
        saturation: NonNegativeFloat = 0.0,
        hue: Annotated[float, Range(0, 0.5)] = 0.0,
        p: UnitInterval = 1.0,
        views: ViewNumbers = None,
    ):
        super().__init__(p, views)
        self.strength = (brightness, contrast, saturation, hue)

    def draw(self, key: Tensor, shape: Shape) -> Params:
        """order: [N, A] int64, the A operations that do anything, in order of application;
        factor: [N, 4] float32, by operation."""
        active = [i for i, strength in enumerate(self.strength) if strength > 0]
        if shape[0] == 1:
            active = [i for i in active if i in (BRIGHTNESS, CONTRAST)]
        u = uniforms(key, 8)  # [N, 8]
        low = torch.tensor([max(0.0, 1 - s) for s in self.strength[:3]] + [-self.strength[HUE]])
        high = torch.tensor([1 + s for s in self.strength[:3]] + [self.strength[HUE]])
        ranks = u[:, 4:][:, active].argsort(dim=1, stable=True)
        order = torch.tensor(active, dtype=torch.int64)[ranks]
        return {"order": order, "factor": low + (high - low) * u[:, :4]}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        device = images.device
        for which in params["order"].unbind(1):  # [N], what each sample does now
            factor = params["factor"].gather(1, which[:, None])[:, 0]  # [N]
            # The first three blend the image with black, with its mean luma, or with its luma:
            # image <- clamp(factor image + (1 - factor) other).
            rest = 1 - factor
            scale = _per_sample(factor.where(which != HUE, 1.0), device)
            mean = _per_sample(rest.where(which == CONTRAST, 0.0), device)
            luma = _per_sample(rest.where(which == SATURATION, 0.0), device)
            gray = grayscale(images)  # [N, 1, H, W]
            mean = mean * gray.mean((1, 2, 3), keepdim=True)  # [N, 1, 1, 1]
            other = mean if images.shape[1] == 1 else torch.addcmul(mean, luma, gray)
            images = torch.addcmul(other, scale, images).clamp_(0, 1)
            rows = (which == HUE).nonzero().squeeze(1)
            if len(rows):
                turn = factor[rows][:, None, None].to(device, non_blocking=True)  # [n, 1, 1]
                rows = rows.to(device, non_blocking=True)
                images.index_copy_(0, rows, shift_hue(images.index_select(0, rows), turn))
        return images


@TRANSFORMS.register_module()
class Grayscale(Transform):
    """Luma in all channels, of every image."""

    random = False

    def __init__(self, *, views: ViewNumbers = None):
        super().__init__(views=views)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return grayscale(images).repeat(1, images.shape[1], 1, 1)


@TRANSFORMS.register_module()
class RandomGrayscale(Grayscale):
    """Luma in all channels."""

    random = True

    def __init__(self, *, p: UnitInterval = 0.1, views: ViewNumbers = None):
        Transform.__init__(self, p, views)


@TRANSFORMS.register_module()
class Solarize(Transform):
    """Inverts the values from `threshold` upwards."""

    def __init__(
        self, *, threshold: UnitInterval = 0.5, p: UnitInterval = 0.2, views: ViewNumbers = None
    ):
        super().__init__(p, views)
        self.threshold = threshold

    def apply(self, images: Tensor, params: Params) -> Tensor:
        chosen = torch.ge(images, self.threshold, out=torch.empty_like(images))  # 0 or 1
        return images.lerp(1 - images, chosen)


@TRANSFORMS.register_module()
class Normalize(Transform):
    """(image - mean) / std, one number each a channel, for images in [0, 1]."""

    random = False

    def __init__(self, *, mean: list[float], std: list[PositiveFloat], views: ViewNumbers = None):
        super().__init__(views=views)
        if not len(mean) == len(std) > 0:
            numbers = f"{len(mean)} means and {len(std)} stds"
            raise ConfigError("std", "not one for each mean", found=numbers)
        self.mean, self.std = mean, std

    def apply(self, images: Tensor, params: Params) -> Tensor:
        if images.shape[1] != len(self.mean):
            channels = f"{len(self.mean)} channels, the images have {images.shape[1]}"
            raise ValueError(f"Normalize has numbers for {channels}")
        mean, std = self._columns(images.device)
        return images.sub_(mean).div_(std)

    def undo(self, images: Tensor) -> Tensor:
        mean, std = self._columns(images.device)
        return images * std + mean

    def _columns(self, device: torch.device) -> Tensor:
        """mean and std, each [C, 1, 1]."""
        both = torch.tensor([self.mean, self.std])[:, :, None, None]
        return both.to(device, non_blocking=True)
