"""A faster weight gradient for small feature maps in bf16 on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# oneDNN's bf16 weight gradient falls to a tenth of the matrix product's rate on maps of this many
# positions (benchmarks/floor.py). A fixed bound, not a timing: runs must repeat to the bit.
SMALL_MAP = 16


class _Convolve(torch.autograd.Function):
    """conv2d whose weight gradient is one matrix product of patches and output gradients."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = torch.nn.grad.conv2d_input(x.shape, weight, grad, ctx.stride, ctx.padding)
        return of_x, weight_gradient(x, grad, weight.shape, ctx.stride, ctx.padding), None, None


def weight_gradient(
    x: Tensor, grad: Tensor, shape: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """dL/dw [O, C, h, w], channels last, of a convolution of x [N, C, H, W].

    Args:
        grad: dL/dy [N, O, H', W'].
        shape: the weights', (O, C, h, w).
    """
    out, channels, h, w = shape
    top, left = padding
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top))  # [N, H + 2 top, W + 2 left, C]
    patches = x.unfold(1, h, stride[0]).unfold(2, w, stride[1])  # [N, H', W', C, h, w]
    patches = patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, h * w * channels)
    rows = grad.permute(0, 2, 3, 1).reshape(-1, out)  # [N H' W', O]
    return (rows.T @ patches).view(out, h, w, channels).permute(0, 3, 1, 2)


class Conv2d(nn.Conv2d):
    """nn.Conv2d with the fast weight gradient where it pays; the same output everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._pays(x):
            return super().forward(x)
        dtype = torch.bfloat16
        return _Convolve.apply(x.to(dtype), self.weight.to(dtype), self.stride, self.padding)

    def _pays(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return False
        if not (
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
        positions = (x.shape[2] // self.stride[0]) * (x.shape[3] // self.stride[1])
        return simple and positions <= SMALL_MAP


def speed_up_convolutions(module: nn.Module) -> nn.Module:
    """Makes every plain nn.Conv2d in `module` a `Conv2d`; names and state_dict stay."""
    for child in module.modules():
        if type(child) is nn.Conv2d:
            child.__class__ = Conv2d
    return module
