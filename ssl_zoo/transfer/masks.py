"""Masks as COCO writes them: polygons, or run lengths of columns; by faster-coco-eval."""

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor


def library() -> ModuleType:
    """faster_coco_eval; an ImportError says how to get it."""
    try:
        import faster_coco_eval
    except ImportError as error:
        extra = "pip install 'ssl_zoo[transfer]'"
        raise ImportError(f"masks and COCO's measures need faster-coco-eval: {extra}") from error
    return faster_coco_eval


def decoded(segmentation: list | dict, size: tuple[int, int]) -> Tensor:
    """[H, W] uint8 of a list of polygons, each x0, y0, x1, y1, ..., or of run lengths.

    Polygons of fewer than three corners, which real files have, cover nothing.
    """
    height, width = size
    if isinstance(segmentation, list):
        segmentation = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not segmentation:
            return torch.zeros(size, dtype=torch.uint8)
    mask = library().mask
    runs = mask.segmToRle(segmentation, width, height)
    return torch.from_numpy(np.ascontiguousarray(mask.decode(runs)))


def encoded(mask: Tensor) -> dict[str, Any]:
    """Run lengths, as text that JSON holds, of [H, W], where anything but 0 is inside."""
    runs = library().mask.encode(np.asfortranarray((mask != 0).cpu().numpy().astype(np.uint8)))
    counts = runs["counts"]
    return {**runs, "counts": counts.decode() if isinstance(counts, bytes) else counts}


def counted_runs(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths as plain numbers, which need no library, of [H, W] bool."""
    flat = mask.flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=-1))  # -1: an end after the last pixel
    runs = np.diff(edges, prepend=0).tolist()
    return {"size": list(mask.shape), "counts": runs}
