"""Layers that torch computes slowly in bf16 on a CPU, computed faster: ReLU, residual sums, and
convolutions that are 1 x 1 or have small feature maps.

The choice follows from shapes and from the processor's kind, never from a timing: runs must repeat
to the bit. benchmarks/floor.py shows torch's rates.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import NamedTuple

import torch
from timm.models import resnet
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


def speed_up(module: nn.Module) -> nn.Module:
    """Makes layers of `module` those of this file; names and weights stay as they are."""
    faster = {
        nn.ReLU: ReLU,
        nn.Conv2d: Conv2d,
        resnet.BasicBlock: BasicBlock,
        resnet.Bottleneck: Bottleneck,
    }
    for child in module.modules():
        child.__class__ = faster.get(type(child), type(child))
    return module


def _slow_here(x: Tensor) -> bool:
    """Is this what the file is for? Inductor fuses such layers in its own way."""
    return (
        x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.compiler.is_compiling()
    )


# ------------------------------------------------------------------------------------- ReLU


class ReLU(nn.ReLU):
    """nn.ReLU, the same numbers at up to four times the speed where x is bf16 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not _slow_here(x) or x._is_view():  # autograd has rules of its own for views
            return super().forward(x)
        return _Rectify.apply(x, self.inplace)


class _Rectify(torch.autograd.Function):
    """max(x, 0) by comparing bits, which spares bf16's way to float32 and back.

    As int16 the negative numbers and -inf are at most -128; the NaNs of that sign, which must
    remain, are above.
    """

    @staticmethod
    def forward(ctx, x: Tensor, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        y = x if inplace else torch.empty_like(x)
        torch.threshold(x.view(torch.int16), -128, 0, out=y.view(torch.int16))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        bits = grad.view(torch.int16), y.view(torch.int16)
        return torch.ops.aten.threshold_backward(*bits, 0).view(torch.bfloat16), None


# ---------------------------------------------------------------------------- residual sums


class BasicBlock(resnet.BasicBlock):
    """timm's; its sum makes a new tensor, since in bf16 adding in place takes twice as long."""

    def forward(self, x: Tensor) -> Tensor:
        if not _slow_here(x):
            return super().forward(x)
        x, shortcut = _Fork.apply(x)
        x = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        return self.act2(_sum(self, self.bn2(self.conv2(x)), shortcut))


class Bottleneck(resnet.Bottleneck):
    """timm's; as `BasicBlock`."""

    def forward(self, x: Tensor) -> Tensor:
        if not _slow_here(x):
            return super().forward(x)
        x, shortcut = _Fork.apply(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(x)))))
        return self.act3(_sum(self, self.bn3(self.conv3(x)), shortcut))


def _sum(block: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor:
    if block.se is not None:
        x = block.se(x)
    if block.drop_path is not None:
        x = block.drop_path(x)
    return x + (shortcut if block.downsample is None else block.downsample(shortcut))


class _Fork(torch.autograd.Function):
    """x twice; its gradients' sum is a new tensor, where autograd would add in place."""

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.view_as(x), x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, one: Tensor, other: Tensor) -> Tensor:
        return one + other


# ------------------------------------------------------------------------------ convolution


class Conv2d(nn.Conv2d):
    """nn.Conv2d; on a CPU without the taps that meet nothing, in bf16 by patches where it pays."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self._plain() or torch.compiler.is_compiling():
            return super().forward(x)
        rows, columns, window = _window(x.shape[2:], self.kernel_size, self.stride, self.padding)
        bf16 = (
            torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        )
        by_patches = bf16 and (prod(window.out) <= SMALL_MAP or _wholly(self.weight, window))
        whole = window.kernel == self.kernel_size and not by_patches
        if whole or min(window.out) < 1:  # torch says what is wrong with an image too small
            return super().forward(x)
        weight = self.weight[:, :, rows, columns]
        if not by_patches:
            return torch.conv2d(F.pad(x, window.pads), weight, None, self.stride)
        return _Convolve.apply(x.to(torch.bfloat16), weight.to(torch.bfloat16), window)

    def _plain(self) -> bool:
        return (
            self.groups == 1
            and self.dilation == (1, 1)
            and self.bias is None
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
        )


class Window(NamedTuple):
    """What the outputs of a convolution see of an image.

    Attributes:
        kernel: taps, (h, w).
        stride: (down, across).
        pads: zeros to the left, to the right, above and below; negative where nobody looks.
        out: (H', W').
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    out: tuple[int, int]

    @property
    def padding(self) -> Pair | None:
        """As torch takes it: zeros on either side, above and beside; or None, if sides differ."""
        left, right, top, bottom = self.pads
        return (top, left) if (left, top) == (right, bottom) else None

    def patches(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N H' W', h w C]."""
        if self.selects:
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
    def selects(self) -> bool:
        """Is each patch one pixel of the image?"""
        left, right, top, bottom = self.pads
        return self.kernel == (1, 1) and left == top == 0 and max(right, bottom) <= 0

    def select(self, x: Tensor) -> Tensor:
        """Those pixels, a view: [N, H, W, C] -> [N, H', W', C]."""
        (down, across), (height, width) = self.stride, self.out
        return x[:, ::down, ::across][:, :height, :width]

    def put_back(self, y: Tensor, shape: torch.Size) -> Tensor:
        """The images [N, H, W, C] that are `y` where `select` looks and else 0; `shape` NCHW."""
        if self.out == tuple(shape[2:]):
            return y
        x = y.new_zeros(shape[0], *shape[2:], shape[1])
        self.select(x).copy_(y)
        return x

    def backwards(self, shape: torch.Size) -> Window:
        """How gradients at the outputs come to the pixels of an image [N, C, H, W]; stride 1."""
        (h, w), (left, _, top, _) = self.kernel, self.pads
        first = h - 1 - top, w - 1 - left
        return _frame(tuple(shape[2:]), self.out, self.kernel, (1, 1), first)


@cache
def _window(image: Pair, kernel: Pair, stride: Pair, padding: Pair) -> tuple[slice, slice, Window]:
    """Of nn.Conv2d's arguments, for images of (H, W): the kernel's rows, columns and their window.

    Only those that ever meet a pixel: of 3 x 3 on a map of 1 x 1 it is one of each.
    """
    sides = list(zip(image, kernel, stride, padding, strict=True))
    out = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sides)
    taps = tuple(
        slice(max(0, p - s * (o - 1)), min(k, p + n))
        for (n, k, s, p), o in zip(sides, out, strict=True)
    )
    first = [p - tap.start for p, tap in zip(padding, taps, strict=True)]
    kernel = tuple(tap.stop - tap.start for tap in taps)
    return *taps, _frame(out, image, kernel, stride, first)


def _frame(out: Pair, image: Pair, kernel: Pair, stride: Pair, first: Pair) -> Window:
    """With `first` rows above the image and columns to its left, and as many after it as needed."""
    sides = zip(image, kernel, stride, first, out, strict=True)
    (top, bottom), (left, right) = [(f, s * (o - 1) + k - f - n) for n, k, s, f, o in sides]
    return Window(kernel, stride, (left, right, top, bottom), out)


class _Convolve(torch.autograd.Function):
    """conv2d of x [N, C, H, W] and weight [O, C, h, w], the window's taps alone."""

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
    if _wholly(weight, window):
        return _product(x, weight.permute(0, 2, 3, 1).flatten(1).T, window)
    if window.padding is None:
        return torch.conv2d(F.pad(x, window.pads), weight, None, window.stride)
    return torch.conv2d(x, weight, None, window.stride, window.padding)


def input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, window: Window) -> Tensor:
    """dL/dx [N, C, H, W], of this shape, from dL/dy [N, O, H', W'] and weight [O, C, h, w]."""
    wholly = _wholly(weight, window)
    if wholly and window.selects:
        found = grad.permute(0, 2, 3, 1) @ weight[:, :, 0, 0]  # [N, H', W', C]
        return window.put_back(found, shape).permute(0, 3, 1, 2)
    if wholly and window.stride == (1, 1):  # a convolution with the kernel turned around
        # The weight is channels last, so its rows of C are copied whole.
        columns = weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)  # [h w O, C]
        return _product(grad, columns, window.backwards(shape))
    if window.padding is not None:
        return torch.nn.grad.conv2d_input(shape, weight, grad, window.stride, window.padding)
    left, right, top, bottom = window.pads
    padded = (*shape[:2], shape[2] + top + bottom, shape[3] + left + right)
    found = torch.nn.grad.conv2d_input(padded, weight, grad, window.stride)
    return F.pad(found, [-pad for pad in window.pads])


def weight_gradient(x: Tensor, grad: Tensor, window: Window) -> Tensor:
    """dL/dw [O, C, h, w], channels last, from x [N, C, H, W] and dL/dy [N, O, H', W']."""
    rows = grad.permute(0, 2, 3, 1).flatten(0, 2)  # [N H' W', O]
    found = rows.T @ window.patches(x)  # [O, h w C]
    return found.view(len(found), *window.kernel, -1).permute(0, 3, 1, 2)


def _product(x: Tensor, columns: Tensor, window: Window) -> Tensor:
    """y [N, O, H', W'], channels last, from x [N, C, H, W] and the kernel as columns [h w C, O]."""
    y = window.patches(x) @ columns  # [N H' W', O]
    return y.view(len(x), *window.out, -1).permute(0, 3, 1, 2)


def _wholly(weight: Tensor, window: Window) -> bool:
    """Do all three passes go by patches, and not the weight gradient alone?"""
    most = SMALL_MAP_OF_MANY if weight.numel() >= MANY_WEIGHTS else SMALL_MAP
    return _amx() and (window.kernel == (1, 1) or prod(window.out) <= most)


@cache
def _amx() -> bool:
    return bf16_unit(torch.device("cpu")) == "amx_bf16"
