"""What runs had right of each class, from the rows that evaluations keep of test images.

The second spread of a difference: had the test set had other classes, how different would the mean
over seeds be? Seeds answer only how different it would be with other runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_zoo.runs import RunFolder
from ssl_zoo.study.verdict import OverClasses, error_over_classes


class Hits(NamedTuple):
    """Of runs taken together, [C] for the C classes of the test set, in the labels' order."""

    images: np.ndarray
    right: np.ndarray


def hits(runs: Iterable[tuple[RunFolder, float]], evaluation: str) -> Hits | None:
    """Of finished runs, added up.

    Args:
        runs: each with its score in the evaluation.

    Returns:
        None where a run's rows are not there, or are not what the score was taken of: it is no
        share of right predictions in %, or another evaluation has been made since.
    """
    total = None
    for folder, score in runs:
        found = hits_of(folder.rows_path(evaluation), score)
        if found is None:
            return None
        total = found if total is None else Hits(*map(np.add, total, found))
    return total


def hits_of(path: Path, score: float) -> Hits | None:
    """Of one evaluation's rows, see `hits`."""
    if not path.exists() or not path.stat().st_size:  # an evaluation may have no rows
        return None
    rows = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(1, 2), ndmin=2)
    _, label = np.unique(rows[:, 0], return_inverse=True)
    found = Hits(np.bincount(label), np.bincount(label, weights=rows[:, 0] == rows[:, 1]))
    # Scores are means in float32.
    same = abs(100 * found.right.sum() / found.images.sum() - score) <= 1e-3
    return found if same else None


def over_classes(a: Hits | None, b: Hits | None) -> OverClasses | None:
    """Of A's mean less B's, of runs with the same seeds; None where one of them is unknown."""
    if a is None or b is None or not np.array_equal(a.images, b.images):
        return None
    return error_over_classes(a.right - b.right, a.images)
