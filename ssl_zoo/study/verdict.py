"""Whether one arm is better than another, from runs paired by seed: numbers and one sentence.

What is random in a training run is its seed, so a pair of runs with one seed is one observation:
S seeds are S differences, however many images each was tested on. The test is the sign-flip test
(Fisher, The Design of Experiments, 1935, section 21): where arms do not differ, each difference
could as well have had the other sign, whatever its distribution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.05  # a p below it settles a comparison
POWER = 0.8
AT_ONCE = 2**12  # flips
# Of the largest difference, in a sum. Accuracies are counts divided in float32, and are kept with
# few digits, so what is equal in counts is not to the last bit.
ROUNDING = 1e-3
EXACT = 16  # seeds of which all 2^16 choices of signs are gone through


def sign_flip_p(differences: ArrayLike) -> np.ndarray:
    """The two-sided p of the sign-flip test of the mean.

    Exact up to 16 seeds. Beyond, 65,534 random flips from a fixed seed, the observed signs and
    their opposite, which is a valid test too.

    Args:
        differences: [..., S], of S seeds.

    Returns:
        [...]; at least `smallest_p(S)`. Flips that leave the mean as far from 0 count as well.
    """
    values = np.asarray(differences, dtype=float)
    seeds, rng = values.shape[-1], np.random.default_rng(0)
    observed = np.abs(values.sum(-1))
    least = observed - ROUNDING * np.abs(values).max(-1, initial=0)
    as_far = np.zeros(observed.shape, dtype=int)
    for first in range(0, 2 ** min(seeds, EXACT), AT_ONCE):
        if seeds <= EXACT:
            chosen = np.arange(first, min(first + AT_ONCE, 2**seeds))[:, None] >> np.arange(seeds)
        else:
            chosen = rng.integers(2, size=(AT_ONCE, seeds))
            if first == 0:
                chosen[:2] = [[0], [1]]  # the observed signs, and all turned
        sums = values @ (1 - 2 * (chosen & 1)).T  # [..., flips]
        as_far += (np.abs(sums) >= least[..., None]).sum(-1)
    return as_far / 2 ** min(seeds, EXACT)


def smallest_p(seeds: int) -> float:
    """What so many seeds can show at best, before any correction: 2 / 2^S."""
    return min(1.0, 2.0 / 2 ** min(seeds, EXACT))


def fewest_seeds(contrasts: int = 1) -> int:
    """That can show anything at all where so many contrasts are planned."""
    return next(s for s in itertools.count(1) if contrasts * smallest_p(s) < LEVEL)


def standard_error(differences: ArrayLike) -> np.ndarray:
    """Of the mean of [..., S], over seeds: [...]."""
    return stats.sem(differences, axis=-1)


def half_width(differences: ArrayLike) -> np.ndarray:
    """Of the 95% t interval around the mean of [..., S], S at least 2: [...]."""
    quantile = stats.t.ppf(1 - LEVEL / 2, np.shape(differences)[-1] - 1)
    return quantile * standard_error(differences)


def of_one_more(values: ArrayLike) -> tuple[float, float]:
    """The 95% prediction interval of [S], S at least 2: where one more value is expected.

    mean ± t s sqrt(1 + 1/S), with S - 1 degrees of freedom.
    """
    half = float(half_width(values)) * (np.size(values) + 1) ** 0.5
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def holm(p: ArrayLike) -> np.ndarray:
    """p values [..., m] of m planned contrasts, corrected (Holm, 1979): [..., m].

    The chance that any of them is below 0.05 where there is no difference is 0.05 at most.
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)
    steps = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, np.minimum(steps, 1.0), axis=-1)
    return corrected


def seeds_needed(std: float, difference: float, contrasts: int = 1) -> int:
    """With how many seeds a true difference would be found in four studies of five.

    By the t test's power of 80% at level 0.05 / contrasts, the level of Holm's first step, which is
    close to the sign-flip test's. With the fewest seeds that can show anything, that test asks for
    more: that all differences have one sign.

    Args:
        std: of the paired differences, over seeds.
        difference: the true one, in the same unit; above 0.
    """
    level, fewest = LEVEL / contrasts, fewest_seeds(contrasts)
    if not std:
        return fewest

    def enough(quantile) -> float:
        return ((quantile(1 - level / 2) + quantile(POWER)) * std / difference) ** 2

    # A normal quantile is smaller than any of t, so no fewer seeds are enough.
    start = max(fewest, math.ceil(enough(stats.norm.ppf)))
    if start == fewest and stats.norm.cdf(difference / std) ** fewest < POWER:
        start += 1
    return next(s for s in itertools.count(start) if s >= enough(stats.t(s - 1).ppf))


class OverClasses(NamedTuple):
    """How much a mean difference in accuracy owes to which classes the test set has."""

    classes: int
    standard_error: float  # points


def error_over_classes(hits: ArrayLike, images: ArrayLike) -> OverClasses | None:
    """By a bootstrap over classes, of the seeds' mean; None for fewer than two classes.

    Args:
        hits: [C], of each class, how many more test images A had right than B, over all seeds.
        images: [C], of each class, test images, over all seeds.
    """
    drawn = _drawn_classes(hits, images)
    return None if drawn is None else OverClasses(len(images), float(drawn.standard_error))


def interval_over_classes(right: ArrayLike, images: ArrayLike) -> tuple[float, float] | None:
    """Between what 95% of accuracies, in %, would lie on other classes, by the same bootstrap.

    Of `right` predictions [C] on `images` [C] of each class. None for fewer than two classes.
    """
    drawn = _drawn_classes(right, images)
    return None if drawn is None else tuple(map(float, drawn.confidence_interval))


def _drawn_classes(hits: ArrayLike, images: ArrayLike) -> Any:
    """scipy's result, by percentiles; None for fewer than two classes."""
    if len(np.asarray(images)) < 2:
        return None

    def points(hits, images, axis):
        return 100 * hits.sum(axis) / images.sum(axis)

    rng = np.random.default_rng(0)
    data = (np.asarray(hits, dtype=float), np.asarray(images, dtype=float))
    return stats.bootstrap(
        data,
        points,
        paired=True,
        n_resamples=2000,
        confidence_level=1 - LEVEL,
        method="percentile",
        rng=rng,
    )


@dataclass(frozen=True)
class Comparison:
    """A against B, seed by seed.

    Args:
        differences: by seed, A's score less B's.
        unit: '%': differences are in points.
        lacking: seeds that are wanted of both, and that are no pair.
        contrasts: so many were planned, of which this is one; 0: it is exploratory.
        corrected: p by Holm over the planned contrasts.
        over_classes: None where that is unknown.
    """

    a: str
    b: str
    differences: Mapping[int, float]
    unit: str = ""
    higher_is_better: bool = True
    lacking: Sequence[int] = ()
    contrasts: int = 0
    corrected: float | None = None
    over_classes: OverClasses | None = None

    @classmethod
    def of(
        cls, a: str, b: str, scores_a: Mapping[int, float], scores_b: Mapping[int, float], **more
    ) -> Comparison:
        """Of scores by seed; seeds that only one side has are left out."""
        both = {seed: scores_a[seed] - scores_b[seed] for seed in scores_a if seed in scores_b}
        return cls(a, b, both, **more)

    @cached_property
    def values(self) -> np.ndarray:
        return np.array(list(self.differences.values()))  # [S]

    @property
    def seeds(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        """NaN without a pair."""
        return float(self.values.mean()) if self.seeds else math.nan

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95%, by t; everything for fewer than two seeds."""
        half = float(half_width(self.values)) if self.seeds > 1 else math.inf
        return self.mean - half, self.mean + half

    @cached_property
    def raw_p(self) -> float:
        return float(sign_flip_p(self.values)) if self.seeds else 1.0

    @property
    def p(self) -> float:
        """What decides: corrected for a planned contrast."""
        return self.raw_p if self.corrected is None else self.corrected

    @property
    def verdict(self) -> str:
        """'better': A is; 'worse'; or 'cannot tell'."""
        if self.p >= LEVEL:
            return "cannot tell"
        return "better" if (self.mean > 0) == self.higher_is_better else "worse"

    @property
    def more_seeds(self) -> int | None:
        """About how many more would settle a difference of 1 point; None: not in %, or unknown."""
        if self.unit != "%" or self.seeds < 2:
            return None
        needed = seeds_needed(float(self.values.std(ddof=1)), 1.0, max(1, self.contrasts))
        return max(0, needed - self.seeds)

    @property
    def sentence(self) -> str:
        """The verdict in words. Amounts are A less B where it cannot be told which is better."""
        against = f"{self.a} against {self.b}"
        if not self.seeds:
            text = f"nothing to compare yet: {against}"
        elif self.seeds == 1:
            text = f"one seed ranks nothing: {against}: {self._amount(self.mean, sign='+')}"
        elif not self.values.any():
            text = f"no difference: {against} with each of {self.seeds} seeds"
        elif self.verdict == "cannot tell":
            text = f"cannot tell: {against}: {self._with_interval(sign='+')}{self._settling()}"
        else:
            best, other = (self.a, self.b) if self.verdict == "better" else (self.b, self.a)
            text = f"{best} is better than {other} by {self._with_interval()}"
            if self.contrasts and self.verdict == "worse":
                text = f"contradicted, {self.a} > {self.b}: {text}"
        return text + self._lacking()

    def _with_interval(self, sign: str = "") -> str:
        """'1.8 points (0.9 to 2.7), p 0.03'; how much better one is, or with a sign A less B."""
        flip = -1 if not sign and self.mean < 0 else 1
        low, high = sorted(flip * end for end in self.interval)
        digits = self._digits
        ends = f"{low:.{digits}f} to {high:.{digits}f}"
        return f"{self._amount(flip * self.mean, sign)} ({ends}), p {self.p:.2g}"

    def _amount(self, value: float, sign: str = "") -> str:
        unit = {"%": " points", "": ""}.get(self.unit, f" {self.unit}")
        return f"{value:{sign}.{self._digits}f}{unit}"

    @property
    def _digits(self) -> int:
        """Decimals that show the half width's first figure, at least one."""
        size = float(half_width(self.values)) if self.seeds > 1 else 0.0
        if size < 1e-9 * abs(self.mean):  # equal differences, but for rounding
            size = 0.0
        size = size or abs(self.mean)
        return 1 if not size else min(6, max(1, -math.floor(math.log10(size))))

    def _settling(self) -> str:
        more = self.more_seeds
        if more is None:
            return ""
        if not more:
            return f"; {self.seeds} seeds would have shown a difference of 1 point, most likely"
        seeds = "seed" if more == 1 else "seeds"
        return f"; about {more} more {seeds} would settle a difference of 1 point"

    def _lacking(self) -> str:
        if not self.lacking:
            return ""
        seeds = "seed" if len(self.lacking) == 1 else "seeds"
        which = f"{seeds} {', '.join(map(str, self.lacking))}"
        return f" (without {which}: not finished on both sides, or evaluated in two ways)"

    @property
    def spreads(self) -> str:
        """'standard error 0.38 over 8 seeds, 0.21 over 807 classes'; '' for fewer than two seeds.

        The two are apart: the one is about other runs, the other about other classes to test on.
        """
        if self.seeds < 2:
            return ""
        digits = self._digits + 1
        text = f"standard error {standard_error(self.values):.{digits}f} over {self.seeds} seeds"
        if self.over_classes:
            count, error = self.over_classes
            text += f", {error:.{digits}f} over {count} classes"
        return text


def planned(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same as planned contrasts, their p corrected by Holm; one without a pair counts too."""
    corrected = holm([comparison.raw_p for comparison in comparisons])
    count = len(comparisons)
    return [
        replace(comparison, contrasts=count, corrected=float(p))
        for comparison, p in zip(comparisons, corrected, strict=True)
    ]
