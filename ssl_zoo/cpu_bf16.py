"""Layers that torch computes slowly in bf16 on a CPU, computed faster: ReLU, residual sums, and
convolutions of small feature maps.

The choice follows from shapes and from the processor's kind, never from a timing: runs must repeat
to the bit. benchmarks/floor.py shows torch's rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from timm.models import resnet
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ssl_zoo.precision import bf16_unit

# On maps of this many positions oneDNN's bf16 weight gradient falls to a tenth of the matrix
# product's rate and, where AMX multiplies, its other two passes to a third.
SMALL_MAP = 16
Pair = Sequence[int]  # along height and width


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
    """nn.ReLU, to the bit, at up to four times the speed where x is bf16 on a CPU."""

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
    """nn.Conv2d, on small maps in bf16 by matrix products of patches where those are faster."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._pays(x):
            return super().forward(x)
        dtype = torch.bfloat16
        return _Convolve.apply(x.to(dtype), self.weight.to(dtype), self.stride, self.padding)

    def _pays(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or not (
            torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        ):
            return False
        simple = (
            self.groups == 1
            and self.dilation == (1, 1)
            and self.bias is None
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
        )
        return (
            simple and (x.shape[2] // self.stride[0]) * (x.shape[3] // self.stride[1]) <= SMALL_MAP
        )


class _Convolve(torch.autograd.Function):
    """conv2d of x [N, C, H, W] and weight [O, C, h, w], both bf16."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return convolve(x, weight, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = input_gradient(grad, weight, x.shape, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(x, grad, weight.shape, ctx.stride, ctx.padding)
        return of_x, of_weight, None, None


def convolve(x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """conv2d of x [N, C, H, W] and weight [O, C, h, w], channels last."""
    if not _amx():
        return torch.conv2d(x, weight, None, stride, padding)
    sides = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    size = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sides)
    return _product(x, weight, Window(x.shape[2:], weight.shape[2:], stride, padding, size))


def input_gradient(
    grad: Tensor, weight: Tensor, shape: torch.Size, stride: Pair, padding: Pair
) -> Tensor:
    """dL/dx [N, C, H, W] of a convolution, from dL/dy [N, O, H', W']."""
    if not _amx() or stride != (1, 1):
        return torch.nn.grad.conv2d_input(shape, weight, grad, stride, padding)
    kernel = weight.shape[2:]
    before = tuple(k - 1 - p for k, p in zip(kernel, padding, strict=True))
    there = weight.flip(2, 3).transpose(0, 1)  # [C, O, h, w]
    return _product(grad, there, Window(grad.shape[2:], kernel, stride, before, shape[2:]))


def weight_gradient(
    x: Tensor, grad: Tensor, shape: torch.Size, stride: Pair, padding: Pair
) -> Tensor:
    """dL/dw [O, C, h, w], channels last, from x [N, C, H, W] and dL/dy [N, O, H', W']."""
    out, channels, *kernel = shape
    window = Window(x.shape[2:], kernel, stride, padding, grad.shape[2:])
    rows = grad.permute(0, 2, 3, 1).reshape(-1, out)  # [N H' W', O]
    found = (rows.T @ window.patches(x)).view(out, *window.size, channels)
    if window.size != tuple(kernel):  # the other taps met nothing
        whole = found.new_zeros(out, *kernel, channels)
        whole[:, window.rows, window.columns] = found
        found = whole
    return found.permute(0, 3, 1, 2)


def _product(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """[N, C, H, W] and [O, C, h, w] -> [N, O, H', W'], channels last."""
    weight = weight[:, :, window.rows, window.columns].permute(0, 2, 3, 1)  # [O, h, w, C]
    y = window.patches(x) @ weight.flatten(1).T  # [N H' W', O]
    return y.view(len(x), *window.out, -1).permute(0, 3, 1, 2)


class Window:
    """Which pixels a convolution's outputs look at.

    Args:
        image: (H, W).
        kernel: (h, w).
        before: rows of zeros above the image, columns to its left.
        out: (H', W').

    Attributes:
        rows, columns: of the kernel, those that ever meet a pixel. On a map of 1 x 1 a kernel of
            3 x 3 has one.
        size: their numbers.
    """

    def __init__(self, image: Pair, kernel: Pair, stride: Pair, before: Pair, out: Pair):
        sides = list(zip(image, kernel, stride, before, out, strict=True))
        taps = [slice(max(0, b - s * (o - 1)), min(k, b + n)) for n, k, s, b, o in sides]
        self.rows, self.columns = taps
        self.size = tuple(tap.stop - tap.start for tap in taps)
        self.stride, self.out = stride, tuple(out)
        pads = []  # before and after each side; negative: of pixels that nobody looks at
        for (n, _, s, b, o), tap, k in zip(sides, taps, self.size, strict=True):
            first = b - tap.start
            pads.append((first, s * (o - 1) + k - first - n))
        (top, bottom), (left, right) = pads
        self.pads = (0, 0, left, right, top, bottom)

    def patches(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N H' W', h w C], taps that meet a pixel alone."""
        (h, w), (down, across), channels = self.size, self.stride, x.shape[1]
        x = F.pad(x.permute(0, 2, 3, 1), self.pads)
        x = x.unfold(1, h, down).unfold(2, w, across)  # [N, H', W', C, h, w]
        return x.permute(0, 1, 2, 4, 5, 3).reshape(-1, h * w * channels)


@cache
def _amx() -> bool:
    return bf16_unit(torch.device("cpu")) == "amx_bf16"
