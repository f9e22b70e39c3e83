"""Sums over all keys of a dictionary that never keep the [R, M] matrix of their similarities.

Both go through the keys block by block, as flash attention does (arXiv:2205.14135), and keep for
the backward pass O(R D + M D). If keys need a gradient too, their blocks are computed once more.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Entries of a block: what stays in a CPU core's cache, or what keeps a GPU's kernels long.
_BLOCK = {"cpu": 2**19, "cuda": 2**24}


class LogSumExp(torch.autograd.Function):
    """log sum_j exp(q_i . k_j), and how many keys are at least as near as the positive.

    `apply(q, keys, masked, extra, positive)`: q [R, D] scaled by 1 / t, keys [M, D], masked [R, C]
    columns that do not count or None, extra [R, E, D] keys of one query each or None, positive
    [R, 1] the positives' q . k. Returns [R] and, without gradient, [R] float32.
    """

    @staticmethod
    def forward(ctx, q, keys, masked, extra, positive) -> tuple[Tensor, Tensor]:
        # Running maximum and, relative to it, running sums.
        top = q.new_full((len(q), 1), -torch.inf)  # [R, 1]
        total, nearer = torch.zeros_like(top), torch.zeros_like(top)
        mean = torch.zeros_like(q)  # [R, D], sum_j exp(s_ij - top_i) k_j
        for block, s in _similarities(q, keys, masked, extra):
            nearer += _count(s, positive)
            higher = torch.maximum(top, s.amax(dim=1, keepdim=True))
            # A row that has only seen masked keys is at -inf, and -inf - -inf is no number.
            shift = higher.clamp(min=torch.finfo(q.dtype).min)
            shrink = (top - shift).exp_()
            s.sub_(shift).exp_()
            total.mul_(shrink).add_(s.sum(dim=1, keepdim=True))
            _add_weighted(mean.mul_(shrink), s, block)
            top = higher
        result = top[:, 0] + total[:, 0].log()
        # The nearest key alone adds 1 to the total; 0 is a row without any key that counts.
        ctx.save_for_backward(q, keys, masked, extra, mean / total.clamp(min=1), result)
        ctx.mark_non_differentiable(nearer)
        return result, nearer[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _):
        *rows, mean, result = ctx.saved_tensors
        shift = result[:, None].clamp(min=torch.finfo(mean.dtype).min)  # as in the forward pass
        return *_gradients(ctx, grad, *rows, mean, lambda s: s.sub_(shift).exp_()), None


class SoftplusSum(torch.autograd.Function):
    """sum_j log(1 + exp(q_i . k_j - even)), and how many keys are as near as the positive.

    `apply(q, keys, masked, extra, positive, even)`: as in `LogSumExp`; even [], without gradient.
    Returns [R] and, without gradient, [R] float32.
    """

    @staticmethod
    def forward(ctx, q, keys, masked, extra, positive, even) -> tuple[Tensor, Tensor]:
        total, nearer = q.new_zeros(len(q)), q.new_zeros(len(q), 1)
        mean = torch.zeros_like(q)  # [R, D], sum_j sigmoid(s_ij - even) k_j
        for block, s in _similarities(q, keys, masked, extra):
            nearer += _count(s, positive)
            s -= even
            total += F.softplus(s).sum(dim=1)
            _add_weighted(mean, s.sigmoid_(), block)
        ctx.save_for_backward(q, keys, masked, extra, mean, even)
        ctx.mark_non_differentiable(nearer)
        return total, nearer[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _):
        *rows, mean, even = ctx.saved_tensors
        gradients = _gradients(ctx, grad, *rows, mean, lambda s: s.sub_(even).sigmoid_())
        return *gradients, None, None


def _count(s: Tensor, positive: Tensor) -> Tensor:
    """[R, 1], how many of s [R, B] are at least the row's positive [R, 1].

    Added up as floats: on a CPU torch takes five times as long to add up booleans.
    """
    return torch.ge(s, positive, out=torch.empty_like(s)).sum(dim=1, keepdim=True)


def _add_weighted(total: Tensor, weight: Tensor, block: Tensor) -> None:
    """total_i += sum_j w_ij k_j: w [R, B], of keys [B, D] for all queries or [R, B, D] of each."""
    if block.dim() == 2:
        total.addmm_(weight, block)
    else:
        total[:, None].baddbmm_(weight[:, None], block)


def _similarities(
    q: Tensor, keys: Tensor, masked: Tensor | None, extra: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of keys, [B, D] or [R, E, D], and similarities [R, B], -inf in masked columns."""
    size = max(1, _BLOCK.get(q.device.type, 2**18) // max(1, len(q)))
    for first in range(0, len(keys), size):
        block = keys[first : first + size]
        s = q @ block.T  # [R, B]
        if masked is not None:
            column = masked - first  # [R, C]
            elsewhere = (column < 0) | (column >= len(block))
            # The minimum with inf changes nothing, so columns of other blocks may land anywhere.
            floor = torch.where(elsewhere, torch.inf, -torch.inf)
            s.scatter_reduce_(1, column.clamp(0, len(block) - 1), floor.to(s.dtype), "amin")
        yield block, s
    if extra is not None:
        yield extra, (extra @ q[:, :, None])[:, :, 0]


def _gradients(ctx, grad, q, keys, masked, extra, mean, weigh: Callable[[Tensor], Tensor]):
    """dL/dq_i = g_i sum_j w_ij k_j = g_i mean_i, and dL/dk_j = sum_i g_i w_ij q_i, w = weigh(s)."""
    of_keys = of_extra = None
    weighted = grad[:, None] * q  # [R, D]
    of_q = grad[:, None] * mean if ctx.needs_input_grad[0] else None
    if ctx.needs_input_grad[1]:
        of_keys = torch.cat([weigh(s).T @ weighted for _, s in _similarities(q, keys, masked)])
    if ctx.needs_input_grad[3]:
        ((_, s),) = _similarities(q, keys[:0], None, extra)
        of_extra = weigh(s)[:, :, None] * weighted[:, None]
    return of_q, of_keys, None, of_extra
