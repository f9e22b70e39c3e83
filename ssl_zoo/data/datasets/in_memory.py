"""Data sets that fit in memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ssl_zoo.data.source import ImageSet


class InMemory(ImageSet):
    """A split held in RAM as bytes.

    Args:
        images: [n, C, H, W] uint8.
        labels: [n] integers, -1 where unknown.
        limit: keep the first `limit` images.
    """

    in_ram = True

    def __init__(self, images, labels, num_classes: int, split: str, limit: int | None = None):
        self.images = torch.as_tensor(images)[:limit].contiguous()  # [n, C, H, W]
        self.labels = torch.as_tensor(labels, dtype=torch.int64)[:limit]  # [n]
        self.num_classes, self.split = num_classes, split
        self._held: dict[torch.device, ImageSet] = {}
        self._pinned = False

    def fetch(self, index: Tensor) -> Tensor:
        index = index.to(self.images.device, non_blocking=True)
        images = self.images.index_select(0, index)
        return images.pin_memory() if self._pinned else images

    def held_close_to(self, device: torch.device) -> ImageSet:
        """On a GPU a copy held there, if it takes at most an eighth of the memory that is free.

        A small network then never waits for the host to gather and send its batch. Else batches
        are gathered into pinned memory, from which they travel while the host goes on.
        """
        if device.type != "cuda":
            return self
        if device not in self._held:
            held = copy.copy(self)
            if self.images.nbytes <= torch.cuda.mem_get_info(device)[0] // 8:
                held.images = self.images.to(device, non_blocking=True)
            else:
                held._pinned = True
            self._held[device] = held
        return self._held[device]
