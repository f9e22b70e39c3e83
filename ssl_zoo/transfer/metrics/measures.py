"""What a measure gives back."""

from typing import NamedTuple


class Measures(NamedTuple):
    """Percentages: of all (an `Outcome`'s metrics), and the main one by the names of classes.

    What cannot be measured on the data, such as the AP of small objects where there are none, is
    not among them.
    """

    metrics: dict[str, float]
    by_class: dict[str, float]
