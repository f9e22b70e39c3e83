"""Convolutions that are 1 x 1 or have small maps, which torch computes slowly in bf16 on a CPU."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ssl_zoo.system.hardware import bf16_unit

# Outputs of a small map. There oneDNN's bf16 weight gradient falls to a tenth of the matrix
# product's rate and, where AMX multiplies, its other two passes to a third.
SMALL_MAP = 16
SMALL_MAP_OF_MANY = 49  # with AMX: a million weights or more soon pay for the patches
MANY_WEIGHTS = 2**20
Pair = tuple[int, int]  # down and across


class Conv2d(nn.Conv2d):
    """nn.Conv2d; of its kernel only what meets a pixel, and in bf16 by patches where it pays."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_plain() or torch.compiler.is_compiling():
            return super().forward(x)
        rows, columns, window = _window(x.shape[2:], self.kernel_size, self.stride, self.padding)
        by_patches = (
            torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and (prod(window.out) <= SMALL_MAP or _all_passes(self.weight, window))
        )
        whole = window.kernel == self.kernel_size and not by_patches
        if whole or min(window.out) < 1:  # torch says what is wrong with an image too small
            return super().forward(x)
        weight = self.weight[:, :, rows, columns]
        if not by_patches:
            return torch.conv2d(F.pad(x, window.pads), weight, None, self.stride)
        return _Convolve.apply(x.to(torch.bfloat16), weight.to(torch.bfloat16), window)

    def _is_plain(self) -> bool:
        zeros = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        return zeros and self.groups == 1 and self.dilation == (1, 1) and self.bias is None


class Window(NamedTuple):
    """What the outputs of a convolution see of an image."""

    kernel: Pair  # h, w
    stride: Pair
    pads: tuple[int, int, int, int]  # zeros left, right, above, below; negative: pixels left out
    out: Pair  # H', W'

    @property
    def padding(self) -> Pair | None:
        """As torch takes it: zeros on either side, above and beside; or None, if sides differ."""
        left, right, top, bottom = self.pads
        return (top, left) if (left, top) == (right, bottom) else None

    def patches(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N H' W', h w C]."""
        if self.is_selection:
            return self.select(x.permute(0, 2, 3, 1)).flatten(0, 2)
        left, right, top, bottom = self.pads
        dtype = x.dtype
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, right, top, bottom))
        if x.shape[3] % 4 == 0:  # four at a time: they are copied at 1.6 times the speed
            x = x.flatten().view(torch.int64).view(*x.shape[:3], -1)
        for side in (0, 1):
            x = x.unfold(1 + side, self.kernel[side], self.stride[side])
        x = x.permute(0, 1, 2, 4, 5, 3)  # [N, H', W', h, w, C]
        return x.flatten(3).flatten(0, 2).view(dtype)

    @property
    def is_selection(self) -> bool:
        """Is each patch one pixel of the image?"""
        left, right, top, bottom = self.pads
        return self.kernel == (1, 1) and left == top == 0 and max(right, bottom) <= 0

    def select(self, x: Tensor) -> Tensor:
        """Those pixels, a view: [N, H, W, C] -> [N, H', W', C]."""
        (down, across), (height, width) = self.stride, self.out
        return x[:, ::down, ::across][:, :height, :width]

    def scatter(self, y: Tensor, shape: torch.Size) -> Tensor:
        """The images [N, H, W, C] that are `y` where `select` looks and else 0; `shape` NCHW."""
        if self.out == tuple(shape[2:]):
            return y
        x = y.new_zeros(shape[0], *shape[2:], shape[1])
        self.select(x).copy_(y)
        return x

    def transposed(self, shape: torch.Size) -> Window:
        """How gradients at the outputs come to the pixels of an image [N, C, H, W]; stride 1."""
        (h, w), (left, _, top, _) = self.kernel, self.pads
        first = h - 1 - top, w - 1 - left
        return _frame(tuple(shape[2:]), self.out, self.kernel, (1, 1), first)


@cache
def _window(image: Pair, kernel: Pair, stride: Pair, padding: Pair) -> tuple[slice, slice, Window]:
    """The kernel's rows and columns that meet a pixel of images of (H, W), and their window."""
    sides = list(zip(image, kernel, stride, padding, strict=True))
    out = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sides)
    used = tuple(
        slice(max(0, p - s * (o - 1)), min(k, p + n))
        for (n, k, s, p), o in zip(sides, out, strict=True)
    )
    first = [p - part.start for p, part in zip(padding, used, strict=True)]
    kernel = tuple(part.stop - part.start for part in used)
    return *used, _frame(out, image, kernel, stride, first)


def _frame(out: Pair, image: Pair, kernel: Pair, stride: Pair, first: Pair) -> Window:
    """With `first` rows above the image and columns to its left, and as many after it as needed."""
    sides = zip(image, kernel, stride, first, out, strict=True)
    (top, bottom), (left, right) = [(f, s * (o - 1) + k - f - n) for n, k, s, f, o in sides]
    return Window(kernel, stride, (left, right, top, bottom), out)


class _Convolve(torch.autograd.Function):
    """conv2d of x [N, C, H, W] and weight [O, C, h, w], as large as the window's kernel."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.window = window
        return convolve(x, weight, window)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = input_gradient(grad, weight, x.shape, ctx.window)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(x, grad, ctx.window)
        return of_x, of_weight, None


def convolve(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """y [N, O, H', W'], channels last, from x [N, C, H, W] and weight [O, C, h, w]."""
    if _all_passes(weight, window):
        return _product(x, weight.permute(0, 2, 3, 1).flatten(1).T, window)
    if window.padding is None:
        return torch.conv2d(F.pad(x, window.pads), weight, None, window.stride)
    return torch.conv2d(x, weight, None, window.stride, window.padding)


def input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, window: Window) -> Tensor:
    """dL/dx [N, C, H, W], of this shape, from dL/dy [N, O, H', W'] and weight [O, C, h, w]."""
    by_patches = _all_passes(weight, window)
    if by_patches and window.is_selection:
        of_outputs = grad.permute(0, 2, 3, 1) @ weight[:, :, 0, 0]  # [N, H', W', C]
        return window.scatter(of_outputs, shape).permute(0, 3, 1, 2)
    if by_patches and window.stride == (1, 1):  # a convolution with the kernel turned around
        # The weight is channels last, so its rows of C are copied whole.
        columns = weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)  # [h w O, C]
        return _product(grad, columns, window.transposed(shape))
    if window.padding is not None:
        return torch.nn.grad.conv2d_input(shape, weight, grad, window.stride, window.padding)
    left, right, top, bottom = window.pads
    padded = (*shape[:2], shape[2] + top + bottom, shape[3] + left + right)
    of_padded = torch.nn.grad.conv2d_input(padded, weight, grad, window.stride)
    return F.pad(of_padded, [-pad for pad in window.pads])


def weight_gradient(x: Tensor, grad: Tensor, window: Window) -> Tensor:
    """dL/dw [O, C, h, w], channels last, from x [N, C, H, W] and dL/dy [N, O, H', W']."""
    rows = grad.permute(0, 2, 3, 1).flatten(0, 2)  # [N H' W', O]
    flat = rows.T @ window.patches(x)  # [O, h w C]
    return flat.view(len(flat), *window.kernel, -1).permute(0, 3, 1, 2)


def _product(x: Tensor, columns: Tensor, window: Window) -> Tensor:
    """y [N, O, H', W'], channels last, from x [N, C, H, W] and the kernel as columns [h w C, O]."""
    y = window.patches(x) @ columns  # [N H' W', O]
    return y.view(len(x), *window.out, -1).permute(0, 3, 1, 2)


def _all_passes(weight: Tensor, window: Window) -> bool:
    """Do all three passes go by patches, and not the weight gradient alone?"""
    most = SMALL_MAP_OF_MANY if weight.numel() >= MANY_WEIGHTS else SMALL_MAP
    return _amx() and (window.kernel == (1, 1) or prod(window.out) <= most)


@cache
def _amx() -> bool:
    return bf16_unit(torch.device("cpu")) == "amx_bf16"
