"""Mean intersection over union of semantic maps, from a confusion matrix."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_zoo.transfer.metrics.measures import Measures
from ssl_zoo.transfer.source import IGNORED


def confusion(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Pixels by true class and predicted one, [C, C] int64; matrices of pictures add up.

    Args:
        prediction: of any shape, 0 to C - 1.
        truth: of the same shape; IGNORED is not counted.
    """
    counted = truth != IGNORED
    pairs = truth[counted] * classes + prediction[counted]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def overlap_measures(matrix: Tensor, classes: Sequence[str]) -> Measures:
    """mIoU, and pixel_accuracy, of a matrix of `confusion`.

    A class of which no pixel is there and none is predicted is left out of the mean.
    """
    right = matrix.diag().double()
    union = matrix.sum(0) + matrix.sum(1) - right
    overlap = 100 * right / union  # nan where there is nothing
    seen = (union > 0).tolist()
    by_class = {name: x for name, x, s in zip(classes, overlap.tolist(), seen, strict=True) if s}
    if not by_class:
        raise ValueError("no pixel counts")
    accuracy = float(100 * right.sum() / matrix.sum())
    mean = sum(by_class.values()) / len(by_class)
    return Measures({"mIoU": mean, "pixel_accuracy": accuracy}, by_class)
