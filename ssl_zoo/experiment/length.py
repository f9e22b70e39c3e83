"""How long a run is, what its config counts in epochs or steps, and what it is too short for."""

import copy
from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any, NamedTuple

from ssl_zoo.config import ConfigError, Part, join
from ssl_zoo.config.constraints import Span, duration, marks, type_hints


class Counted(NamedTuple):
    """A duration of a config: what it is, a number, and of what."""

    key: str
    span: Span
    number: float
    unit: str


def run_length(train: Mapping[str, Any]) -> tuple[str, float]:
    """(unit, number) of a section `train`: ('epochs', 5.0) or ('steps', 1000)."""
    unit = "epochs" if train.get("steps") is None else "steps"
    return unit, train[unit]


def check_ramps(whole: Part, steps: int | None = None, steps_per_epoch: int | None = None) -> None:
    """Raises ConfigError where what begins the run would not end in it.

    Of what the config counts in another unit than the run only once both are known, for which data
    have to be read.
    """
    run = _length(whole, steps, steps_per_epoch)
    asked = run_length(whole.arguments()["train"].arguments())[0]
    for key, span, number, unit in durations(whole):
        if span.ramp and number > run.get(unit, number):
            long = " and ".join(f"{value:.10g} {unit}" for unit, value in run.items())
            enough = number if unit == asked else ceil(run[asked] * number / run[unit])
            most = f"{run[unit]:.10g}" if unit == span.unit else f"'{run[unit]:.10g} {unit}'"
            raise ConfigError(
                key,
                "longer than the run, so what it leads to would never begin",
                found=f"{number:.10g} {unit} in a run of {long}",
                expected=f"{key}={most} or less, or train.{asked}={enough:.10g} or more",
            )


def out_of_reach(whole: Part, steps: int, steps_per_epoch: int | None = None) -> str:
    """What a person should know of what is due after the run's last step; '' for nothing."""
    run = _length(whole, steps, steps_per_epoch)
    late: dict[str, list[str]] = {}
    for key, span, number, unit in durations(whole):
        if not span.ramp and number > run.get(unit, number):
            own = f"{number:.10g}" if unit == span.unit else f"{number:.10g} {unit}"
            late.setdefault(key, []).append(own)
    if not late:
        return ""
    said = "; ".join(f"{key} {', '.join(numbers)}" for key, numbers in late.items())
    long = ", ".join(f"{value:.10g} {unit}" for unit, value in run.items())
    return f"the run ends after {long}, before {said}"


def _length(whole: Part, steps: int | None, steps_per_epoch: int | None) -> dict[str, float]:
    """The run's, by unit, as far as it is known."""
    unit, number = run_length(whole.arguments()["train"].arguments())
    run = {unit: number}
    if unit == "steps" and steps_per_epoch:
        run = {"epochs": number / steps_per_epoch, **run}
    return run if steps is None else run | {"steps": steps}


def durations(whole: Part) -> Iterator[Counted]:
    """All that a config counts in epochs or steps, but for its own length."""
    for key, part in walk(whole):
        hints = type_hints(part.target)
        for name, value in part.arguments().items():
            below = join(key, name)
            for span in (mark for mark in marks(hints.get(name)) if isinstance(mark, Span)):
                values = value if isinstance(value, list) else [value]
                for each in (v for v in values if v is not None):
                    yield Counted(below, span, *duration(each, span.unit, below))


def walk(part: Part, key: str = "") -> Iterator[tuple[str, Part]]:
    """(dotted key, part) of a part and all those in it that share the run's time."""
    yield key, part
    for name, value in () if _has_own_time(part) else part.arguments().items():
        below = join(key, name)
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for label, inner in parts:
            if isinstance(inner, Part):
                yield from walk(inner, join(below, label) if label else below)
    if part.beside is not None:
        yield from walk(part.beside, key)


def _has_own_time(part: Part) -> bool:
    """Whether its durations, other than those `beside` it, are of a training of its own."""
    return getattr(part.target, "own_data", False)


def in_own_units(part: Part, steps_per_epoch: int | None) -> Part:
    """The same call, with every duration as a number of what its parameter counts.

    In a stream, None, a step stands for an epoch, see `Trainer.unit`: nothing there counts those.
    """
    hints = type_hints(part.target)

    def own(name: str, value: Any) -> Any:
        if isinstance(value, Part):
            return in_own_units(value, steps_per_epoch)
        if isinstance(value, Mapping):
            return {label: own("", each) for label, each in value.items()}
        spans = [mark for mark in marks(hints.get(name)) if isinstance(mark, Span)]
        if isinstance(value, list) and spans:
            return [own(name, each) for each in value]
        return _in(spans[0].unit, value, steps_per_epoch or 1) if spans else value

    same = copy.copy(part)
    if not _has_own_time(part):
        same.kwargs = {name: own(name, value) for name, value in part.kwargs.items()}
    if part.beside is not None:
        same.beside = in_own_units(part.beside, steps_per_epoch)
    return same


def _in(unit: str, value: float | str | None, steps_per_epoch: int) -> float | None:
    if not isinstance(value, str):
        return value
    number, said = duration(value, unit)
    if unit == "steps":
        return max(1, round(number * (steps_per_epoch if said == "epochs" else 1)))
    return number / steps_per_epoch if said == "steps" else number
