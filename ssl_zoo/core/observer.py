"""Watching a method train."""

from __future__ import annotations

from torch import Tensor

from ssl_zoo.core.batch import Batch
from ssl_zoo.core.method import Method


class Observer:
    """Looks on while a method trains and writes scalars beside its losses; changes nothing."""

    def after_step(self, method: Method, batch: Batch, out: dict[str, Tensor]) -> None:
        """Called at every step, after the method's own `after_step`; must be cheap."""

    def scalars(self, method: Method, labels: Tensor | None) -> dict[str, float]:
        """Asked when a line is logged, on rank 0 alone.

        Args:
            labels: [num_samples] int64, labels of the training set if it has any.
        """
        return {}
