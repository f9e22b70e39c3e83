"""Constraints as types: what a parameter may be stands in its annotation, and nowhere else.

    def __init__(self, *, size: PositiveInt = 65536, momentum: Scheduled[UnitInterval] = 0.999)

`convert` checks them in YAML; `constrained`, around every registered constructor, in Python.
"""

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ssl_zoo.config.errors import ConfigError

INFINITY = float("inf")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; a bound that is `open` is not itself allowed."""

    low: float
    high: float = INFINITY
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == INFINITY:
            text = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
            return text + (" and finite" if self.open_high else "")
        if self.open_low or self.open_high:
            ends = "(" if self.open_low else "[", ")" if self.open_high else "]"
            return f"in {ends[0]}{self.low:g}, {self.high:g}{ends[1]}"
        return f"from {self.low:g} to {self.high:g}"

    def problem(self, value: float) -> str:
        if self.high != INFINITY:
            return "out of range"
        below = value < self.low or (self.open_low and value == self.low)
        return "too small" if below else "not finite"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
AtLeastTwo = Annotated[int, Range(2)]
PositiveFloat = Annotated[float, Range(0, INFINITY, open_low=True, open_high=True)]
NonNegativeFloat = Annotated[float, Range(0, INFINITY, open_high=True)]
UnitInterval = Annotated[float, Range(0, 1)]
HalfOpenUnitInterval = Annotated[float, Range(0, 1, open_high=True)]

_T = TypeVar("_T")
SCHEDULED, MACHINE, ASCENDING = "scheduled", "of the machine", "low <= high"
# A schedule may move this number: the part keeps it as an attribute (an optimizer: in its groups)
# and reads it anew at each step.
Scheduled = Annotated[_T, SCHEDULED]
# Where and how a run is computed, not what: another value is still the same run.
OfMachine = Annotated[_T, MACHINE]
# What is drawn lies between the two.
Bounds = Annotated[tuple[_T, _T], ASCENDING]


@dataclass(frozen=True)
class Span:
    """A duration, or a list of them: a number of epochs or steps of the run, or text that names
    its unit itself, '500 steps' or '1.5 epochs'.

    Attributes:
        unit: of a plain number, and the one that the part gets it in.
        ramp: what begins a run, and is not what it says unless it ends: a longer one than the run
            is an error. Else it is when something is due; what no run comes to is said.
    """

    unit: Literal["epochs", "steps"]
    ramp: bool


RampEpochs = Annotated[_T, Span("epochs", ramp=True)]
RampSteps = Annotated[_T, Span("steps", ramp=True)]
DueEpochs = Annotated[_T, Span("epochs", ramp=False)]
DueSteps = Annotated[_T, Span("steps", ramp=False)]
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?) epochs?|(\d+) steps?)")


def duration(value: float | str, unit: str, key: str = "") -> tuple[float, str]:
    """(number, unit) of a duration, see `Span`; ConfigError for text that is none."""
    if not isinstance(value, str):
        return value, unit
    said = _DURATION.fullmatch(value)
    epochs, steps = (float(text or 0) for text in said.groups()) if said else (0, 0)
    if not epochs + steps:
        expected = f"{unit} as a number, or text as '1.5 epochs' or '500 steps'"
        raise ConfigError(key, "not a duration", found=repr(value), expected=expected)
    return (epochs, "epochs") if epochs else (steps, "steps")


@functools.cache
def type_hints(target: Callable) -> dict[str, Any]:
    """Type hints of a constructor, resolved, with what `Annotated` adds.

    ConfigError for a name that its module has for type checkers alone.
    """
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        problem = f"an annotation of {target.__qualname__} cannot be read: {error}"
        raise ConfigError("", problem, expected="names that its module imports") from error


def marked(target: Callable, mark: str) -> list[str]:
    """The parameters whose annotation carries SCHEDULED or MACHINE."""
    return [name for name, hint in type_hints(target).items() if mark in marks(hint)]


def marks(hint: Any) -> tuple:
    """What `Annotated` adds to a hint, in a union's members too."""
    if get_origin(hint) is Annotated:
        return hint.__metadata__ + marks(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(mark for option in get_args(hint) for mark in marks(option))
    return ()


def check_value(hint: Any, value: Any, key: str) -> None:
    """Raises ConfigError where a number lies outside the ranges of its annotation."""
    if value is None:
        return
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        for limits in hint.__metadata__:
            problem = ""
            if isinstance(limits, Range) and number and value not in limits:
                problem = limits.problem(value)
            elif limits == ASCENDING and value[0] > value[1]:
                problem = "not [low, high]"
            if problem:
                raise ConfigError(key, problem, found=repr(value), expected=str(limits))
        check_value(args[0], value, key)
    elif origin in (Union, types.UnionType):
        for option in args:
            check_value(option, value, key)
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        same = origin is list or args[-1] is Ellipsis
        for i, item in enumerate(value):
            if same or i < len(args):
                check_value(args[0] if same else args[i], item, f"{key}[{i}]")
    elif origin is dict and isinstance(value, Mapping):
        for name, item in value.items():
            check_value(args[1], item, f"{key}.{name}")


@functools.cache
def of_yaml(target: Callable) -> dict[str, inspect.Parameter]:
    """The parameters after a constructor's `*`."""
    parameters = inspect.signature(target).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
