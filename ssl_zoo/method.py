"""What the trainer knows of a method, and the one thing data and methods share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """One step's images, seen through V views.

    Attributes:
        views: V tensors [N, C, H, W]; views may differ in H and W (multi-crop), never in N.
        index: [N] int64, positions in the data set.
        label: [N] int64, -1 where unknown; for evaluators and the supervised baseline alone.
    """

    views: list[Tensor]
    index: Tensor
    label: Tensor

    def split(self, parts: int) -> list[Batch]:
        """The batch as at most `parts` micro-batches, as equal as they can be, none empty."""
        parts = min(parts, len(self.index))
        if parts == 1:
            return [self]
        views = zip(*(view.tensor_split(parts) for view in self.views), strict=True)
        rows = zip(
            views, self.index.tensor_split(parts), self.label.tensor_split(parts), strict=True
        )
        return [Batch(list(v), index, label) for v, index, label in rows]


class Method(nn.Module):
    """A pretext task: the trainer's whole knowledge of a method.

    `forward` computes, `after_step` mutates. `encoder.backbone` is what is kept and evaluated.
    """

    encoder: nn.Module

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns 'loss', further scalars to be logged, and rows [N, ...] for `after_step`."""
        raise NotImplementedError

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        """Called once a step, after the optimiser, with the whole step's batch and outputs."""

    def telemetry(self, labels: Tensor | None) -> dict[str, float]:
        """Scalars too costly for every step; called when the trainer logs, on rank 0 alone.

        Args:
            labels: [num_samples] int64, labels of the training set if it has any.
        """
        return {}

    def remark(self, batch_size: int) -> str:
        """What a person should know before watching the numbers; said once at the start."""
        return ""

    @staticmethod
    def views_needed(**arguments) -> int:
        """Views of each image that a config must make; given the method's YAML arguments."""
        return 1

    def param_groups(self, weight_decay: float, decay_norm_and_bias: bool = True) -> list[dict]:
        """Trainable parameters for the optimiser; norms and biases (ndim < 2) apart if asked."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        if decay_norm_and_bias:
            return [{"params": trainable, "weight_decay": weight_decay}]
        return [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]


def merge_outputs(outputs: list[tuple[float, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Micro-batches' (share of the rows, outputs) as one step's outputs, detached.

    Scalars are averaged by share, rows concatenated in order.
    """
    if len(outputs) == 1:
        return {name: value.detach() for name, value in outputs[0][1].items()}
    merged = {}
    for name, first in outputs[0][1].items():
        values = [(share, out[name].detach()) for share, out in outputs]
        if first.dim():
            merged[name] = torch.cat([value for _, value in values])
        else:
            merged[name] = sum(share * value for share, value in values)
    return merged
