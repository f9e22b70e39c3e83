"""Which patches a method hides, each sample its own, as a function of its key."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_zoo import rng


def random_order(key: Tensor, length: int) -> Tensor:
    """A random order of `length` patches for each key [N], [N, length] int64.

    The first K of a row are K patches drawn uniformly without replacement (MAE,
    arXiv:2111.06377: to keep), and `mask_of` makes a mask of any part of it.
    """
    patches = torch.arange(length, device=key.device)
    return rng.uniform(key[:, None], "order", patches).argsort(dim=1, stable=True)


def mask_of(chosen: Tensor, length: int) -> Tensor:
    """Patch numbers [N, K] int64 -> [N, length] bool, true where chosen."""
    mask = torch.zeros(len(chosen), length, dtype=torch.bool, device=chosen.device)
    return mask.scatter_(1, chosen, True)


def block_mask(
    key: Tensor,
    grid: tuple[int, int],
    count: int,
    scale: tuple[float, float] = (0.1, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    tries: int = 16,
) -> Tensor:
    """Rectangles laid over each other until `count` patches are covered, [N, h * w] bool.

    BEiT's blockwise masking (arXiv:2106.08254, algorithm 1), with exactly `count` patches in each
    sample: of the rectangle that goes beyond, and where rectangles do not suffice, patches are
    taken in random order.

    Args:
        key: [N] int64.
        grid: h and w, in patches.
        count: patches to mask.
        scale: bounds of a rectangle's area, as a share of the grid's.
        ratio: bounds of its height / width, drawn uniformly in the logarithm.
        tries: rectangles.
    """
    h, w = grid
    if not 0 <= count <= h * w:
        raise ValueError(f"count is a number of the {h * w} patches, found {count}")
    slot = torch.arange(4 * tries, device=key.device)
    u = rng.uniform(key[:, None], "block", slot).view(-1, tries, 4, 1, 1)
    area = (scale[0] + (scale[1] - scale[0]) * u[:, :, 0]) * h * w  # [N, tries, 1, 1]
    low, high = map(math.log, ratio)
    aspect = (low + (high - low) * u[:, :, 1]).exp()
    height = (area * aspect).sqrt().round().clamp(1, h)
    width = (area / aspect).sqrt().round().clamp(1, w)
    top = (u[:, :, 2] * (h - height + 1)).floor()
    left = (u[:, :, 3] * (w - width + 1)).floor()
    row = torch.arange(h, device=key.device)[:, None]
    column = torch.arange(w, device=key.device)
    inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    inside = inside.flatten(2)  # [N, tries, h * w]
    # Patches in the order in which rectangles cover them, those of one rectangle at random.
    first = torch.where(inside.any(1), inside.byte().argmax(1), tries)  # [N, h * w]
    patches = torch.arange(h * w, device=key.device)
    order = (first + rng.uniform(key[:, None], "order", patches)).argsort(dim=1, stable=True)
    return mask_of(order[:, :count], h * w)
