"""Augmentation of a whole batch at once, with each sample's own parameters.

An operation has two halves. `draw` turns keys (one 64-bit number a sample, a hash of seed, epoch,
index, view and the operation's label) into parameters, always on the CPU, so that choosing rows
needs no synchronisation with a GPU. `apply` is exact: what torchvision's functional of the same
name does to one image with one parameter, it does to each image of a batch with its own.

Images are float32 in [0, 1], [N, C, H, W], with one channel or three.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ssl_zoo.config import TRANSFORMS, Part
from ssl_zoo.system import rng

Params = dict[str, Tensor]
Shape = tuple[int, int | Tensor, int | Tensor]  # C, H, W; H and W are [N] where images vary in size


class Transform:
    """Base of the operations.

    Args:
        p: chance that a sample is changed at all.
        views: numbers of the views that this operation belongs to (BYOL's asymmetric views,
            multi-crop); None for all.
    """

    check_by_building = True
    random = True  # draws random numbers, so it has no place in evaluation
    colour = False  # an identity on images of one channel
    moves = False  # pixels go to other places, see `part`
    one_size = False  # images come out in one size, whatever went in

    def __init__(self, p: float = 1.0, views: list[int] | None = None):
        if not 0 <= p <= 1:
            raise ValueError(f"p is a probability, found {p}")
        self.p = p
        self.views = views

    def draw(self, key: Tensor, shape: Shape) -> Params:
        """Parameters, rows beside `key` [N] int64; on the CPU."""
        return {}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """[N, C, H, W] -> [N, C, h, w]; may overwrite `images`."""
        raise NotImplementedError

    def chosen(self, key: Tensor) -> Tensor:
        """Which samples are changed, [N] bool."""
        return rng.uniform(key, "p") < self.p

    def part(self, shapes: Tensor, params: Params) -> Tensor:
        """What is seen of images of (C, H, W) `shapes` [N, 3] when all are changed, [N, 4] float32.

        (top, left, bottom, right) in their pixels; left > right where they are mirrored.
        """
        raise NotImplementedError

    def resized(self, shapes: Tensor) -> Tensor:
        """The (C, H, W) that come out, [N, 3]."""
        return shapes

    def __call__(self, images: Tensor, key: Tensor) -> Tensor:
        """Draws and applies, to the chosen rows alone; may overwrite `images`."""
        if self.colour and images.shape[1] == 1:
            return images
        if self.p == 1:
            return self.apply(images, self.draw(key, images.shape[1:]))
        rows = self.chosen(key).nonzero().squeeze(1)  # [n]
        if len(rows) == 0:
            return images
        params = self.draw(key[rows], images.shape[1:])
        rows = rows.to(images.device, non_blocking=True)
        return images.index_copy_(0, rows, self.apply(images.index_select(0, rows), params))


class GeometricTransform(Transform):
    """An operation that also takes images one at a time, as bytes, each of its own size."""

    moves = True

    def apply_one(self, image: Tensor, params: Params) -> Tensor:
        """uint8 [C, H, W] -> uint8 [C, h, w], with a single sample's parameters."""
        raise NotImplementedError

    def spare(self, shapes: Tensor, params: Params) -> Tensor:
        """Pixels that go into one of the output's, along the side that has fewer, [N] float32.

        Args:
            shapes: [N, 3] of (C, H, W).
        """
        return torch.ones(len(shapes))

    def shrunk(self, params: Params, by: Tensor) -> Params:
        """The same parameters for images decoded at 1/by of their size, `by` [N] int64."""
        return params


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size is in pixels and at least 1, found {size}")
    return height, width


def _interval(bounds: tuple[float, float], name: str) -> None:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"{name} is [low, high] with 0 < low <= high, found {bounds}")


def _slots(key: Tensor, count: int) -> Tensor:
    """`count` uniform numbers a sample, [N] int64 -> [N, count] float32."""
    return rng.uniform(key[:, None], torch.arange(count))


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _spread(values: Tensor, device: torch.device) -> Tensor:
    """[N] -> [N, 1, 1, 1] on the images' device."""
    return values[:, None, None, None].to(device, non_blocking=True)


def _whole(shapes: Tensor) -> Tensor:
    """All of images of (C, H, W) `shapes` [N, 3], as (top, left, bottom, right) [N, 4] float32."""
    return torch.nn.functional.pad(shapes[:, 1:].float(), (2, 0))


def _sized(shapes: Tensor, size: Sequence[int]) -> Tensor:
    """[N, 3] of (C, H, W), with `size` for H and W."""
    return torch.cat([shapes[:, :1], shapes.new_tensor(size).expand(len(shapes), 2)], dim=1)


def grayscale(images: Tensor) -> Tensor:
    """ITU-R 601 luma, [N, 3, H, W] -> [N, 1, H, W]; one channel is its own."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)  # each [N, 1, H, W]
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


# --------------------------------------------------------------------------------- geometry


def resize_matrix(
    start: Tensor, length: Tensor, total: int, out: int, interpolation: str = "bilinear"
) -> Tensor:
    """Antialiased interpolation of the pixels [start, start + length) of `total`, as matrices.

    Args:
        start, length: [N] float32, in pixels.

    Returns:
        [N, out, total]; a row holds the weights of one output pixel and sums to 1.
    """
    scale = (length / out)[:, None]  # [N, 1], source pixels an output pixel
    sharpness = 1 / scale.clamp(min=1)  # the filter widens only when shrinking
    centre = start[:, None] + scale * (torch.arange(out, device=start.device) + 0.5)  # [N, out]
    pixel = torch.arange(total, device=start.device)  # [total]
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])  # [N, total]
    position = ((pixel + 0.5) * sharpness).masked_fill_(~inside, math.inf)  # [N, total]
    distance = (position[:, None, :] - (centre * sharpness)[:, :, None]).abs_()  # [N, out, total]
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

    As torchvision's: ten tries to fit a box of random area and aspect ratio, then the largest
    central one. The crop and the resize are two products with matrices of each sample's own.

    Args:
        size: output height and width in pixels, or one number for both.
        scale: bounds of the box's area as a share of the image's.
        ratio: bounds of width / height, drawn uniformly in the logarithm.
    """

    one_size = True

    def __init__(
        self,
        *,
        size: int | tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        views: list[int] | None = None,
    ):
        super().__init__(views=views)
        _interval(scale, "scale")
        _interval(ratio, "ratio")
        if scale[1] > 1:
            raise ValueError(f"scale is a share of the image's area, at most 1, found {scale}")
        self.size, self.scale, self.ratio = _pair(size), tuple(scale), tuple(ratio)
        self.interpolation = interpolation

    def draw(self, key: Tensor, shape: Shape) -> Params:
        """box: [N, 4] int64: top, left, height, width."""
        _, height, width = shape
        height = torch.as_tensor(height, dtype=torch.float64).expand(len(key))  # [N]
        width = torch.as_tensor(width, dtype=torch.float64).expand(len(key))
        u = _slots(key, 22).double()  # [N, 22]: ten areas, ten ratios, two offsets
        area = (height * width)[:, None] * _between(u[:, :10], *self.scale)  # [N, 10]
        aspect = _between(u[:, 10:20], *map(math.log, self.ratio)).exp()  # [N, 10]
        w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
        first = fits.byte().argmax(1, keepdim=True)  # [N, 1], the first try that fits
        found = fits.any(1)
        # The fallback, the central box of the nearest ratio that is allowed.
        inner_w = torch.minimum(width, (height * self.ratio[1]).round())
        inner_h = torch.minimum(height, (width / self.ratio[0]).round())
        w = torch.where(found, w.gather(1, first)[:, 0], inner_w)  # [N]
        h = torch.where(found, h.gather(1, first)[:, 0], inner_h)
        top = torch.where(found, (u[:, 20] * (height - h + 1)).floor(), ((height - h) / 2).floor())
        left = torch.where(found, (u[:, 21] * (width - w + 1)).floor(), ((width - w) / 2).floor())
        return {"box": torch.stack([top, left, h, w], dim=1).long()}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        box = params["box"].to(images.device, torch.float32, non_blocking=True)
        top, left, h, w = box.unbind(1)
        n, channels, height, width = images.shape
        rows = resize_matrix(top, h, height, self.size[0], self.interpolation)  # [N, oh, H]
        columns = resize_matrix(left, w, width, self.size[1], self.interpolation)  # [N, ow, W]
        images = images.reshape(n, channels * height, width) @ columns.mT  # [N, C * H, ow]
        images = images.view(n, channels, height, self.size[1])
        # One product a channel: broadcasting over channels would copy the matrices.
        images = torch.stack([rows @ plane for plane in images.unbind(1)], dim=1)  # [N, C, oh, ow]
        return images if self.interpolation == "bilinear" else images.clamp_(0, 1)

    def apply_one(self, image: Tensor, params: Params) -> Tensor:
        top, left, h, w = params["box"].tolist()
        mode = InterpolationMode(self.interpolation)
        size = list(self.size)
        return F.resized_crop(image, top, left, h, w, size, interpolation=mode, antialias=True)

    def part(self, shapes: Tensor, params: Params) -> Tensor:
        start, size = params["box"].float().split(2, dim=1)
        return torch.cat([start, start + size], dim=1)

    def resized(self, shapes: Tensor) -> Tensor:
        return _sized(shapes, self.size)

    def spare(self, shapes: Tensor, params: Params) -> Tensor:
        return (params["box"][:, 2:] / torch.tensor(self.size)).amin(1)

    def shrunk(self, params: Params, by: Tensor) -> Params:
        box, by = params["box"], by[:, None]
        size = (box[:, 2:] + by // 2) // by  # [N, 2], rounded
        end = (box[:, :2] + box[:, 2:] + by // 2) // by
        return {"box": torch.cat([end - size, size], dim=1)}


@TRANSFORMS.register_module()
class Resize(GeometricTransform):
    """The whole image at another size, antialiased.

    Args:
        size: [height, width] in pixels, or one number for the shorter side at the same aspect.
    """

    random = False

    def __init__(
        self,
        *,
        size: int | tuple[int, int],
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        views: list[int] | None = None,
    ):
        super().__init__(views=views)
        _pair(size)
        self.one_size = not isinstance(size, int)
        self.size = list(size) if self.one_size else [size]
        self.interpolation = interpolation

    def apply(self, images: Tensor, params: Params) -> Tensor:
        images = self.apply_one(images, params)
        return images if self.interpolation == "bilinear" else images.clamp(0, 1)

    def apply_one(self, image: Tensor, params: Params) -> Tensor:
        mode = InterpolationMode(self.interpolation)
        return F.resize(image, self.size, interpolation=mode, antialias=True)

    def part(self, shapes: Tensor, params: Params) -> Tensor:
        return _whole(shapes)

    def resized(self, shapes: Tensor) -> Tensor:
        if self.one_size:
            return _sized(shapes, self.size)
        sides = shapes[:, 1:]
        # In whole numbers, the longer side rounded down, as torchvision does.
        return torch.cat([shapes[:, :1], self.size[0] * sides // sides.amin(1, True)], dim=1)

    def spare(self, shapes: Tensor, params: Params) -> Tensor:
        sides = shapes[:, 1:] if self.one_size else shapes[:, 1:].amin(1, keepdim=True)
        return (sides / torch.tensor(self.size)).amin(1)


@TRANSFORMS.register_module()
class CenterCrop(GeometricTransform):
    """The central part of the image, padded with black where the image is smaller.

    Args:
        size: height and width in pixels, or one number for both.
    """

    random = False
    one_size = True

    def __init__(self, *, size: int | tuple[int, int], views: list[int] | None = None):
        super().__init__(views=views)
        self.size = _pair(size)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return self.apply_one(images, params)

    def apply_one(self, image: Tensor, params: Params) -> Tensor:
        return F.center_crop(image, list(self.size))

    def part(self, shapes: Tensor, params: Params) -> Tensor:
        size = torch.tensor(self.size)
        gap = (shapes[:, 1:] - size) / 2
        start = torch.where(gap < 0, gap.trunc(), gap.round())  # padded: down; cut: half to even
        return torch.cat([start, start + size], dim=1)

    def resized(self, shapes: Tensor) -> Tensor:
        return _sized(shapes, self.size)


@TRANSFORMS.register_module()
class HorizontalFlip(Transform):
    """Left and right exchanged."""

    moves = True

    def __init__(self, *, p: float = 0.5, views: list[int] | None = None):
        super().__init__(p, views)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return images.flip(-1)

    def part(self, shapes: Tensor, params: Params) -> Tensor:
        return _whole(shapes)[:, [0, 3, 2, 1]]


# ----------------------------------------------------------------------------------- colour

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by `shift` [N, 1, 1] (a full turn is 1); images [N, 3, H, W] in [0, 1].

    With V = max, C = max - min and the hue h in sixths of a turn, a channel centred at hue n
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
    for channel, centre in enumerate((0, 2, 4)):
        offset = hue - centre
        distance = offset.sub_((offset / 6).round_(), alpha=6).abs_()  # [N, H, W] in [0, 3]
        torch.addcmul(value, distance.sub_(1).clamp_(0, 1), chroma, value=-1, out=out[:, channel])
    return out


@TRANSFORMS.register_module()
class ColorJitter(Transform):
    """Brightness, contrast, saturation and hue by random factors, in a random order of each sample.

    Args:
        brightness, contrast, saturation: b draws a factor from [max(0, 1 - b), 1 + b].
        hue: h draws a turn from [-h, h], in full turns; at most 0.5.
    """

    def __init__(
        self,
        *,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        p: float = 1.0,
        views: list[int] | None = None,
    ):
        super().__init__(p, views)
        self.strength = (brightness, contrast, saturation, hue)
        if min(self.strength) < 0 or hue > 0.5:
            raise ValueError(f"strengths are at least 0 and hue at most 0.5, found {self.strength}")

    def draw(self, key: Tensor, shape: Shape) -> Params:
        """order: [N, A] int64, the A operations that do anything, in order of application;
        factor: [N, 4] float32, by operation."""
        active = [i for i, strength in enumerate(self.strength) if strength > 0]
        if shape[0] == 1:
            active = [i for i in active if i in (BRIGHTNESS, CONTRAST)]
        u = _slots(key, 8)  # [N, 8]
        low = torch.tensor([max(0.0, 1 - s) for s in self.strength[:3]] + [-self.strength[HUE]])
        high = torch.tensor([1 + s for s in self.strength[:3]] + [self.strength[HUE]])
        order = torch.tensor(active, dtype=torch.int64)[
            u[:, 4:][:, active].argsort(dim=1, stable=True)
        ]
        return {"order": order, "factor": low + (high - low) * u[:, :4]}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        device = images.device
        for which in params["order"].unbind(1):  # [N], what each sample does now
            factor = params["factor"].gather(1, which[:, None])[:, 0]  # [N]
            # The first three blend the image with black, with its mean luma, or with its luma:
            # image <- clamp(factor image + (1 - factor) other).
            rest = 1 - factor
            own = _spread(factor.where(which != HUE, 1.0), device)
            mean = _spread(rest.where(which == CONTRAST, 0.0), device)
            luma = _spread(rest.where(which == SATURATION, 0.0), device)
            gray = grayscale(images)  # [N, 1, H, W]
            mean = mean * gray.mean((1, 2, 3), keepdim=True)  # [N, 1, 1, 1]
            other = mean if images.shape[1] == 1 else torch.addcmul(mean, luma, gray)
            images = torch.addcmul(other, own, images).clamp_(0, 1)
            rows = (which == HUE).nonzero().squeeze(1)
            if len(rows):
                turn = factor[rows][:, None, None].to(device, non_blocking=True)  # [n, 1, 1]
                rows = rows.to(device, non_blocking=True)
                images.index_copy_(0, rows, shift_hue(images.index_select(0, rows), turn))
        return images


@TRANSFORMS.register_module()
class RandomGrayscale(Transform):
    """Luma in all three channels."""

    colour = True

    def __init__(self, *, p: float = 0.1, views: list[int] | None = None):
        super().__init__(p, views)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return grayscale(images).repeat(1, images.shape[1], 1, 1)


@TRANSFORMS.register_module()
class Solarize(Transform):
    """Inverts the values from `threshold` (in [0, 1]) upwards."""

    def __init__(self, *, threshold: float = 0.5, p: float = 0.2, views: list[int] | None = None):
        super().__init__(p, views)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is within [0, 1], found {threshold}")
        self.threshold = threshold

    def apply(self, images: Tensor, params: Params) -> Tensor:
        chosen = torch.ge(images, self.threshold, out=torch.empty_like(images))  # 0 or 1
        return images.lerp(1 - images, chosen)


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
        kernel_size: taps, an odd number. None: enough for three sigma of the widest, as far as
            the image allows, close to the untruncated filter of MoCo v2's and DINO's code.
    """

    def __init__(
        self,
        *,
        sigma: tuple[float, float] = (0.1, 2.0),
        kernel_size: int | None = None,
        p: float = 0.5,
        views: list[int] | None = None,
    ):
        super().__init__(p, views)
        _interval(sigma, "sigma")
        if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
            raise ValueError(f"kernel_size is an odd number of taps, found {kernel_size}")
        self.sigma, self.kernel_size = tuple(sigma), kernel_size

    def draw(self, key: Tensor, shape: Shape) -> Params:
        """sigma: [N] float32."""
        return {"sigma": _between(_slots(key, 1)[:, 0], *self.sigma)}

    def taps(self, size: int) -> int:
        """Taps along a side of `size` pixels; a reflection reaches at most size - 1 pixels out."""
        if self.kernel_size is None:
            return 2 * min(math.ceil(3 * self.sigma[1]), size - 1) + 1
        if self.kernel_size > 2 * size - 1:
            raise ValueError(
                f"GaussianBlur: kernel_size {self.kernel_size} reaches beyond the reflection of "
                f"images of {size} pixels; at most {2 * size - 1}"
            )
        return self.kernel_size

    def matrix(self, sigma: Tensor, size: int) -> Tensor:
        """[N] -> [N, size, size], a row the weights of one output pixel."""
        taps = self.taps(size)
        x = torch.arange(taps, device=sigma.device) - taps // 2  # [taps]
        kernel = torch.softmax(-0.5 * (x / sigma[:, None]) ** 2, dim=1)  # [N, taps]
        return (kernel @ _reflections(size, taps, sigma.device)).view(-1, size, size)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        sigma = params["sigma"].to(images.device, non_blocking=True)
        n, channels, height, width = images.shape
        columns = self.matrix(sigma, width)  # [N, W, W]
        rows = columns if height == width else self.matrix(sigma, height)  # [N, H, H]
        images = (images.reshape(n, channels * height, width) @ columns.mT).view(images.shape)
        return torch.stack([rows @ plane for plane in images.unbind(1)], dim=1)


@TRANSFORMS.register_module()
class Normalize(Transform):
    """(image - mean) / std.

    Args:
        mean, std: one number a channel, for images in [0, 1].
    """

    random = False

    def __init__(self, *, mean: list[float], std: list[float], views: list[int] | None = None):
        super().__init__(views=views)
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(f"one mean and one positive std a channel, found {mean} and {std}")
        self.mean, self.std = list(mean), list(std)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        if images.shape[1] != len(self.mean):
            raise ValueError(
                f"Normalize has numbers for {len(self.mean)} channels, "
                f"the images have {images.shape[1]}"
            )
        mean, std = self._columns(images.device)
        return images.sub_(mean).div_(std)

    def undo(self, images: Tensor) -> Tensor:
        mean, std = self._columns(images.device)
        return images * std + mean

    def _columns(self, device: torch.device) -> Tensor:
        """mean and std, each [C, 1, 1]."""
        both = torch.tensor([self.mean, self.std])[:, :, None, None]
        return both.to(device, non_blocking=True)


# ------------------------------------------------------------------------------------ views


class Views:
    """Several random views of each image, every number a function of what it is for.

    The view of a sample depends on (seed, epoch, index, view, label of the operation) alone, so it
    is the same in whatever batch, worker or process it is made.

    Args:
        ops: operations by a label of the user's choice, applied in order. The label seeds an
            operation's random numbers, so adding one leaves the others' as they are.
        count: number of views.
    """

    check_by_building = True

    def __init__(self, *, ops: dict[str, Part[TRANSFORMS]], count: int = 2):
        if count < 1:
            raise ValueError(f"count is the number of views, at least 1, found {count}")
        self.ops: dict[str, Transform] = {label: part() for label, part in ops.items()}
        self.count = count
        for label, op in self.ops.items():
            if op.views is not None and not set(op.views) <= set(range(count)):
                raise ValueError(
                    f"ops.{label}.views {op.views} names a view that is not there: "
                    f"count is {count}, views are numbered from 0"
                )

    def ops_of(self, view: int) -> list[tuple[str, Transform]]:
        """The (label, operation) pairs of one view, in order."""
        return [(n, op) for n, op in self.ops.items() if op.views is None or view in op.views]

    def lead(self, view: int) -> int:
        """How many operations it takes to bring images of varying size to one size.

        Raises:
            ValueError: the view's operations do not begin so.
        """
        for i, (label, op) in enumerate(self.ops_of(view)):
            if not isinstance(op, GeometricTransform):
                raise ValueError(
                    f"the images vary in size, so view {view} must first crop or resize them to "
                    f"one size (RandomResizedCrop, CenterCrop, or Resize to [height, width]); "
                    f"ops.{label} ({type(op).__name__}) comes before that"
                )
            if op.one_size:
                return i + 1
        raise ValueError(
            f"the images vary in size and no operation of view {view} brings them to one size: "
            "add RandomResizedCrop, CenterCrop, or Resize to [height, width]"
        )

    def alike(self, views: Iterable[int]) -> list[list[int]]:
        """Numbers of views, those with the same operations together."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for view in views:
            groups.setdefault(tuple(label for label, _ in self.ops_of(view)), []).append(view)
        return list(groups.values())

    def _keyed(
        self, views: list[int], seed: int, epoch: int, index: Tensor
    ) -> Iterator[tuple[Transform, Tensor]]:
        """(operation, its keys [V x N] int64, view by view), in order, of views that are alike."""
        index = index.cpu()
        key = torch.cat([rng.hashed(seed, epoch, index, view) for view in views])
        for label, op in self.ops_of(views[0]):
            yield op, rng.hashed(key, label) if op.random else key

    def shrink(
        self, views: Iterable[int], shapes: Tensor, seed: int, epoch: int, index: Tensor
    ) -> Tensor:
        """How much smaller each image may be decoded for all of `views`, [N] int64 of 1, 2, 4, 8.

        1/k is allowed if the first operation of every view, making h x w pixels of a box of H x W,
        has k h <= H and k w <= W: no view enlarges what was decoded smaller.

        Args:
            shapes: [N, 3] of (C, H, W).
        """
        spare = torch.full((len(index),), torch.inf)  # [N]
        for view in views:
            op, key = next(self._keyed([view], seed, epoch, index))
            params = op.draw(key, (3, shapes[:, 1], shapes[:, 2]))
            spare = torch.minimum(spare, op.spare(shapes, params))
        return 2 ** sum((spare >= k).long() for k in (2, 4, 8))

    def boxes(self, view: int, shapes: Tensor, seed: int, epoch: int, index: Tensor) -> Tensor:
        """Where a view lies in its image: (top, left, bottom, right) [N, 4] float32, in pixels.

        left > right where the view is mirrored.

        Args:
            shapes: [N, 3] of the images' (C, H, W).
        """
        box = _whole(shapes)
        for op, key in self._keyed([view], seed, epoch, index):
            if op.moves:
                channels, height, width = shapes.unbind(1)
                part = op.part(shapes, op.draw(key, (channels, height, width)))
                part = torch.where(op.chosen(key)[:, None], part, _whole(shapes))
                start, end = box.split(2, dim=1)  # [N, 2], where the current view's corners lie
                pixel = (end - start) / shapes[:, 1:]  # [N, 2], negative where mirrored
                box = start.repeat(1, 2) + pixel.repeat(1, 2) * part
                shapes = op.resized(shapes)
        return box

    def begin(
        self,
        view: int,
        images: list[Tensor],
        seed: int,
        epoch: int,
        index: Tensor,
        shapes: Tensor | None = None,
        shrink: Tensor | None = None,
    ) -> Tensor:
        """Brings images of varying size to one size, one by one (a loader's worker does this).

        The result is bytes, as a decoder and an image library would leave it: a quarter of the
        floats' traffic between processes and to the device.

        Args:
            images: N of uint8 [C, H, W].
            shapes: [N, 3], the images' (C, H, W) before they were decoded at 1/shrink [N]; so a
                box is where it would be in the whole image.

        Returns:
            uint8 [N, C, h, w], for `finish`.
        """
        keyed = self._keyed([view], seed, epoch, index)
        for _, (op, key) in zip(range(self.lead(view)), keyed, strict=False):
            if shapes is None:
                shapes = torch.tensor([image.shape for image in images])  # [N, 3]
            params = op.draw(key, (images[0].shape[0], shapes[:, 1], shapes[:, 2]))
            if shrink is not None:
                params = op.shrunk(params, shrink)
            rows = [{name: value[i] for name, value in params.items()} for i in range(len(images))]
            images = [op.apply_one(image, row) for image, row in zip(images, rows, strict=True)]
            shapes = shrink = None  # from here on the images are what they would have been
        return torch.stack(images)

    def finish(
        self, views: list[int], images: Tensor, seed: int, epoch: int, index: Tensor, done: int = 0
    ) -> list[Tensor]:
        """Views that are alike, each float32 [N, C, h, w], on the images' device.

        They are made as one batch: small images cost calls and not arithmetic.

        Args:
            images: uint8 [N, C, H, W].
            done: operations that `begin` has applied.
        """
        # Views keep full precision even where a training loop asks for them under autocast.
        with torch.autocast(images.device.type, enabled=False):
            made = images.float().div_(255)
            if len(views) > 1:
                made = made.repeat(len(views), 1, 1, 1)  # [V x N, C, H, W]
            for i, (op, key) in enumerate(self._keyed(views, seed, epoch, index)):
                if i >= done:
                    made = op(made, key)
        return list(made.split(len(index)))

    def __call__(
        self, images: Tensor | list[Tensor], seed: int, epoch: int, index: Tensor
    ) -> list[Tensor]:
        """`count` views, each float32 [N, C, h, w].

        Args:
            images: uint8 [N, C, H, W], or a list of uint8 [C, H, W] that vary in size.
            index: [N] int64, positions in the data set; on the CPU, lest a GPU be waited for.
        """
        of = {"seed": seed, "epoch": epoch, "index": index}
        numbers, varied = range(self.count), isinstance(images, list)
        begun = [self.begin(view, images, **of) for view in numbers] if varied else [images]
        return self.complete(numbers, begun, varied, **of)

    def complete(
        self,
        numbers: range,
        images: list[Tensor],
        varied: bool,
        seed: int,
        epoch: int,
        index: Tensor,
    ) -> list[Tensor]:
        """The views `numbers`, each float32 [N, C, h, w].

        Args:
            images: uint8 [N, C, H, W]: where images varied in size, what `begin` made for each
                view; otherwise one tensor for all views.
        """
        of = {"seed": seed, "epoch": epoch, "index": index}
        if varied:
            return [
                self.finish([view], part, done=self.lead(view), **of)[0]
                for view, part in zip(numbers, images, strict=True)
            ]
        made: dict[int, Tensor] = {}
        for views in self.alike(numbers):
            made |= zip(views, self.finish(views, images[0], **of), strict=True)
        return [made[view] for view in numbers]

    def denormalize(self, view: int, images: Tensor) -> Tensor:
        """Undoes the view's normalisation for display, [N, C, h, w] in [0, 1]."""
        for _, op in reversed(self.ops_of(view)):
            if isinstance(op, Normalize):
                images = op.undo(images)
        return images.clamp(0, 1)
