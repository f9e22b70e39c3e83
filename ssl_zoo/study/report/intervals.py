"""What a few seeds say of more of them, by Student's t, at 95%."""

from statistics import fmean, stdev

from scipy.stats import t

LEVEL = 0.95


def of_mean(values: list[float]) -> float:
    """Half the width of the mean's interval; two values or more."""
    return _half_width(values, 1 / len(values))


def of_one_more(values: list[float]) -> tuple[float, float]:
    """Between which one more value is expected, from the same distribution as two values or more.

    mean ± t s sqrt(1 + 1/n), with n - 1 degrees of freedom.
    """
    half = _half_width(values, 1 + 1 / len(values))
    return fmean(values) - half, fmean(values) + half


def _half_width(values: list[float], variances: float) -> float:
    quantile = t.ppf((1 + LEVEL) / 2, len(values) - 1)
    return float(quantile * stdev(values) * variances**0.5)
