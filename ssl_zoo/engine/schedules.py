"""Schedules: any declared number as a pure function of the time in a run.

Time is in epochs, or in steps where the data are a stream, and so is all that a schedule counts.
"""

import math
from dataclasses import dataclass

from ssl_zoo.config import SCHEDULES, DueEpochs, NonNegativeFloat, PositiveFloat, RampEpochs


@dataclass(kw_only=True)
class Schedule:
    """A number over training, from the config's; for `warmup_epochs` it first rises from 0."""

    warmup_epochs: RampEpochs[NonNegativeFloat] = 0.0

    def __call__(self, base: float, now: float, end: float) -> float:
        """The value at a time of a run that ends at another."""
        if now < self.warmup_epochs:
            return base * now / self.warmup_epochs
        return self.value(base, now, end)

    def value(self, base: float, now: float, end: float) -> float:
        """The value after the warm-up."""
        return base


@SCHEDULES.register_module()
class Constant(Schedule):
    """The base value, after the warm-up."""


@SCHEDULES.register_module()
@dataclass(kw_only=True)
class Cosine(Schedule):
    """Half a cosine from the base value to `final`, after the warm-up (arXiv:1608.03983)."""

    final: float = 0.0

    def value(self, base: float, now: float, end: float) -> float:
        done = (now - self.warmup_epochs) / max(end - self.warmup_epochs, 1e-12)
        return self.final + (base - self.final) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


@SCHEDULES.register_module()
@dataclass(kw_only=True)
class Step(Schedule):
    """The base value, times `gamma` at each milestone (in epochs)."""

    milestones: DueEpochs[list[NonNegativeFloat]]
    gamma: NonNegativeFloat = 0.1

    def value(self, base: float, now: float, end: float) -> float:
        return base * self.gamma ** sum(now >= milestone for milestone in self.milestones)


@SCHEDULES.register_module()
@dataclass(kw_only=True)
class Exponential(Schedule):
    """The base value, times `gamma` every `every_epochs`, in steps."""

    gamma: NonNegativeFloat
    every_epochs: DueEpochs[PositiveFloat]

    def value(self, base: float, now: float, end: float) -> float:
        return base * self.gamma ** int(now / self.every_epochs)


@SCHEDULES.register_module()
@dataclass(kw_only=True)
class Linear:
    """A straight line from the base value to `final` over the first `over_epochs`."""

    final: float
    over_epochs: RampEpochs[PositiveFloat]

    def __call__(self, base: float, now: float, end: float) -> float:
        return base + (self.final - base) * min(now / self.over_epochs, 1.0)
