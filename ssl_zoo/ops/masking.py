"""Which patches a method hides, each sample its own, as a function of its key."""

import math
from typing import Annotated

import torch
from torch import Tensor

from ssl_zoo.config import Range
from ssl_zoo.system import rng

# A share of an image's patches that is not none of them.
Share = Annotated[float, Range(0.01, 1.0)]


def count_of(share: float, grid: tuple[int, int]) -> int:
    """A share of a grid's patches as their number, at least one."""
    return max(1, round(share * math.prod(grid)))


def random_order(key: Tensor, length: int) -> Tensor:
    """A random order of `length` patches for each key [N], [N, length] int64."""
    patches = torch.arange(length, device=key.device)
    return rng.uniform(key[:, None], "order", patches).argsort(dim=1, stable=True)


def mask_of(chosen: Tensor, length: int) -> Tensor:
    """Patch numbers [N, K] int64 -> [N, length] bool, true where chosen."""
    mask = torch.zeros(len(chosen), length, dtype=torch.bool, device=chosen.device)
    return mask.scatter_(1, chosen, True)


def take(x: Tensor, patches: Tensor) -> Tensor:
    """Some patches' rows: of [N, L, F] those numbered [N, K], [N, K, F]."""
    return x.gather(1, patches[:, :, None].expand(-1, -1, x.shape[2]))


def block(key: Tensor, grid: tuple[int, int], size: int, ratio: tuple[float, float]) -> Tensor:
    """A rectangle of `size` patches, its last row maybe short, by key: [...] -> [..., size]."""
    h, w = grid
    number = torch.arange(3, device=key.device)
    shape, down, across = rng.uniform(key[..., None], "block", number).unbind(-1)
    aspect = ratio[0] + (ratio[1] - ratio[0]) * shape  # height / width
    width = (size / aspect).sqrt().round().clamp(math.ceil(size / h), w).long()  # [...]
    height = (size + width - 1) // width
    top = (down * (h - height + 1)).long()
    left = (across * (w - width + 1)).long()
    i = torch.arange(size, device=key.device)
    width = width[..., None]
    return (top[..., None] + i // width) * w + left[..., None] + i % width


def block_order(
    key: Tensor,
    grid: tuple[int, int],
    scale: tuple[float, float] = (0.1, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    tries: int = 16,
) -> Tensor:
    """Patches in the order in which random rectangles cover a grid, [N, h * w] int64.

    BEiT's blockwise masking (arXiv:2106.08254, algorithm 1) with any number of patches: a row's
    first are masked. Of the rectangle that goes beyond, and where rectangles do not suffice,
    patches come in random order.

    Args:
        key, grid: [N] int64; patches down and across.
        scale: bounds of a rectangle's area, as a share of the grid's.
        ratio: bounds of its height / width, drawn uniformly in the logarithm.
        tries: rectangles.
    """
    h, w = grid
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
    return (first + rng.uniform(key[:, None], "order", patches)).argsort(dim=1, stable=True)


def masked_blocks(key: Tensor, grid: tuple[int, int], share: float) -> tuple[Tensor, Tensor]:
    """BEiT's masks, a share of each sample's patches: their numbers [N, M] and [N, h * w] bool."""
    chosen = block_order(key, grid)[:, : count_of(share, grid)]
    return chosen, mask_of(chosen, math.prod(grid))


def masked_patches(
    key: Tensor, grid: tuple[int, int], masked_images: float, ratio: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Each sample's patches that may be masked, in blocks, and those that are: twice [N, M].

    With chance `masked_images` any are, a share within `ratio`. M is the most that this allows, so
    that shapes do not depend on what is drawn.
    """
    length = grid[0] * grid[1]
    most = max(1, int(ratio[1] * length))
    share = ratio[0] + (ratio[1] - ratio[0]) * rng.uniform(key, "share")  # [N]
    count = (share * length) * (rng.uniform(key, "image") < masked_images)  # [N]
    masked = torch.arange(1, most + 1, device=key.device) <= count[:, None]  # [N, M]
    return block_order(key, grid)[:, :most], masked
