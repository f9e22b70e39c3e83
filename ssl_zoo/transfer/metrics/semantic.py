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
    seen = union > 0
    if not seen.any():
        raise ValueError("no pixel counts")
    named = zip(classes, overlap.tolist(), seen.tolist(), strict=True)
    by_class = {name: x for name, x, there in named if there}
    accuracy = float(100 * right.sum() / matrix.sum())
    mean = float(overlap[seen].mean())
    return Measures({"mIoU": mean, "pixel_accuracy": accuracy}, by_class)
