"""First in, first out, in buffers of a fixed size."""

import torch
from torch import Tensor, nn


class Ring(nn.Module):
    """The newest rows, in columns that share their slots; any count goes with any size.

    Args:
        columns: [size, ...] the rows to start with; a buffer of that name, `Ring(keys=...).keys`.

    Attributes:
        pushed: [] int64, rows pushed so far; the next one's slot is `pushed % size`.
    """

    def __init__(self, **columns: Tensor):
        super().__init__()
        for name, rows in columns.items():
            self.register_buffer(name, rows)
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(next(self.buffers()))

    @torch.no_grad()
    def push(self, **rows: Tensor) -> Tensor:
        """Puts rows [n, ...] of each column, oldest first, in place of the oldest ones.

        Returns their slots, [n] int64; of more rows than slots, the first ones' hold later rows.
        """
        count, size = len(next(iter(rows.values()))), len(self)
        slots = (self.pushed + torch.arange(count, device=self.pushed.device)) % size
        newest = slice(max(0, count - size), None)
        for name, of_column in rows.items():
            getattr(self, name)[slots[newest]] = of_column[newest]
        self.pushed += count
        return slots
