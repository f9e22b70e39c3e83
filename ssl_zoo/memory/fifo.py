"""First in, first out, in a buffer of fixed size."""

from __future__ import annotations

import torch
from torch import Tensor


def enqueue(oldest: Tensor, count: int, size: int) -> tuple[Tensor, slice]:
    """Where `count` rows go in a ring of `size`; any count and any size go together.

    Args:
        oldest: [] int64, the oldest row's slot; moved on in place.

    Returns:
        Slots [min(count, size)] int64, oldest first, and which of the rows go there: of a batch
        larger than the ring, the newest.
    """
    slots = (oldest + torch.arange(count, device=oldest.device)) % size
    newest = slice(max(0, count - size), None)
    oldest.copy_((oldest + count) % size)
    return slots[newest], newest
