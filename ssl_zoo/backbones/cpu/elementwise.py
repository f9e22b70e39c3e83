"""ReLU and residual sums, which torch computes slowly in bf16 on a CPU."""

import torch
from timm.models import resnet
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _slow_here(x: Tensor) -> bool:
    """Is this what the file is for? Inductor fuses such layers in its own way."""
    return x.dtype == torch.bfloat16 and not torch.compiler.is_compiling()


class ReLU(nn.ReLU):
    """nn.ReLU, the same numbers at up to four times the speed where x is bf16 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not _slow_here(x) or x._is_view():  # autograd has rules of its own for views
            return super().forward(x)
        return _Rectify.apply(x, self.inplace)


class _Rectify(torch.autograd.Function):
    """max(x, 0) by comparing bits, without converting bf16 to float32 and back."""

    @staticmethod
    def forward(ctx, x: Tensor, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        y = x if inplace else torch.empty_like(x)
        # As int16 negative numbers and -inf are at most -128; NaNs of that sign, to remain, above.
        torch.threshold(x.view(torch.int16), -128, 0, out=y.view(torch.int16))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        bits = grad.view(torch.int16), y.view(torch.int16)
        return torch.ops.aten.threshold_backward(*bits, 0).view(torch.bfloat16), None


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
