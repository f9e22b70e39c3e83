"""The one thing that data and methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One step's samples, seen through V views.

    Attributes:
        views: V tensors [N, ...], of images [N, C, H, W]; views may differ in H and W (multi-crop),
            never in N.
        index: [N] int64, positions in the data set; of a stream the places in all that was read of
            it, so that what comes again is another sample.
        label: [N] int64, the class, -1 where there is none or it is unknown; for evaluators and
            supervised methods alone.
        boxes: V tensors [N, 4]: (top, left, bottom, right) of a view in its image, in the image's
            pixels, left > right where it is mirrored; none if the method does not ask for them.
    """

    views: list[Tensor]
    index: Tensor
    label: Tensor
    boxes: Sequence[Tensor] = ()

    def split(self, parts: int) -> list[Batch]:
        """The batch as at most `parts` micro-batches, as equal as they can be, none empty."""
        parts = min(parts, len(self.index))
        if parts == 1:
            return [self]
        tensors = [self.index, self.label, *self.views, *self.boxes]
        rows = zip(*(tensor.tensor_split(parts) for tensor in tensors), strict=True)
        count = len(self.views)
        return [Batch(seen[:count], index, label, seen[count:]) for index, label, *seen in rows]
