"""Pieces of an image, for pretext tasks about where they belong or what they hold."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_zoo.system import rng


def cut(
    images: Tensor, grid: int, size: int, key: Tensor | None = None, jitter: int | None = None
) -> Tensor:
    """One patch out of each cell of a grid, [N, C, H, W] -> [N, grid * grid, C, size, size].

    Args:
        grid: cells along each side, of H // grid by W // grid pixels.
        size: of a patch in pixels. What a cell has more is the gap between patches: without one
            a network finds neighbors by the lines that cross their border (arXiv:1505.05192).
        key: [N] int64, places each patch at random within its cell; None: in the middle.
        jitter: pixels off the middle, ValueError where they do not fit; None: anywhere in its cell.
    """
    n, _, height, width = images.shape
    if min(height, width) // grid < size + 2 * (jitter or 0):
        patches = f"patches of {size} pixels{f' and {jitter} around' if jitter else ''}"
        cells = f"{grid} x {grid} cells of images of {height} x {width}"
        raise ValueError(f"{patches} do not fit into {cells}")
    number = torch.arange(grid * grid, device=images.device)
    pixels = []
    # Sizes stay numbers: a tensor of them would be a copy that the host waits for.
    for axis, cell in enumerate((height // grid, width // grid)):
        room, middle = cell - size, (cell - size) // 2
        place: Tensor | int = middle
        if key is not None:
            u = rng.uniform(key[:, None], "place", number, axis)  # [N, P]
            low, choices = (0, room + 1) if jitter is None else (middle - jitter, 2 * jitter + 1)
            place = low + (u * choices).long()
        corner = (number % grid if axis else number // grid) * cell + place  # [P] or [N, P]
        corner = corner.expand(n, -1)[..., None]  # [N, P, 1]
        pixels.append(corner + torch.arange(size, device=images.device))  # [N, P, size]
    row, column = pixels[0][..., None], pixels[1][:, :, None]
    sample = torch.arange(n, device=images.device)[:, None, None, None]
    return images[sample, :, row, column].permute(0, 1, 4, 2, 3)


def patch_shape(view: tuple[int, int], grid: int, size: int, jitter: int = 0) -> tuple[int, int]:
    """The size of what `cut` makes of a view of some size; ValueError as there."""
    return tuple(cut(torch.empty(1, 1, *view, device="meta"), grid, size, jitter=jitter).shape[3:])


def patchify(images: Tensor, size: tuple[int, int]) -> Tensor:
    """All patches of height and width `size`, row by row, [N, C, H, W] -> [N, L, C * h * w]."""
    return F.unfold(images, size, stride=size).mT


def cell_centers(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Centers (y, x) of h x w cells of boxes (top, left, bottom, right) [N, 4], [N, h * w, 2]."""
    start, end = boxes[:, None].split(2, dim=2)  # [N, 1, 2]
    y, x = ((torch.arange(cells, device=boxes.device) + 0.5) / cells for cells in grid)
    share = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)  # [h * w, 2]
    return start + (end - start) * share


def quarter_turns(images: Tensor) -> Tensor:
    """Square images turned left by 0, 1, 2 and 3 quarters, [N, C, S, S] -> [N, 4, C, S, S]."""
    height, width = images.shape[2:]
    if height != width:
        problem = f"expected square views, found {height} x {width} pixels (data.views)"
        raise ValueError(f"images are turned by quarters: {problem}")
    return torch.stack([images.rot90(turns, dims=(2, 3)) for turns in range(4)], dim=1)
