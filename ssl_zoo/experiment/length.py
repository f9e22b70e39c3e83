"""Numbers of epochs and steps that a run is too short for, see `Span`."""

from collections.abc import Iterator, Mapping
from math import ceil

from ssl_zoo.config import ConfigError, Part, join
from ssl_zoo.config.constraints import Span, marks, type_hints


def check_ramps(whole: Part, steps: int | None = None) -> None:
    """Raises ConfigError where what begins the run would not end in it.

    Of numbers of steps once the run's are known, for which data have to be read.
    """
    run = _length(whole, steps)
    for key, span, number in _spans(whole):
        if span.ramp and number > run.get(span.unit, number):
            long = " and ".join(f"{value:g} {unit}" for unit, value in run.items())
            enough = number if span.unit == "epochs" else ceil(run["epochs"] * number / steps)
            raise ConfigError(
                key,
                "longer than the run, so what it leads to would never begin",
                found=f"{number:g} {span.unit} in a run of {long}",
                expected=f"{key}={run[span.unit]:g} or less, or train.epochs={enough:g} or more",
            )


def out_of_reach(whole: Part, steps: int) -> str:
    """What a person should know of what is due after the run's last step; '' for nothing."""
    run = _length(whole, steps)
    late: dict[str, list[str]] = {}
    for key, span, number in _spans(whole):
        if not span.ramp and number > run[span.unit]:
            late.setdefault(key, []).append(f"{number:g}")
    if not late:
        return ""
    said = "; ".join(f"{key} {', '.join(numbers)}" for key, numbers in late.items())
    return f"the run ends after {run['epochs']:g} epochs, {steps} steps, before {said}"


def _length(whole: Part, steps: int | None) -> dict[str, float]:
    """The run's, by unit."""
    epochs = whole.arguments()["train"].arguments()["epochs"]
    return {"epochs": epochs} if steps is None else {"epochs": epochs, "steps": steps}


def _spans(part: Part, key: str = "") -> Iterator[tuple[str, Span, float]]:
    """(dotted key, what it is, number) of all numbers that are declared so in a config."""
    hints = type_hints(part.target)
    for name, value in part.arguments().items():
        below = join(key, name)
        for span in (mark for mark in marks(hints.get(name)) if isinstance(mark, Span)):
            numbers = value if isinstance(value, list) else [value]
            yield from ((below, span, number) for number in numbers if number is not None)
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for label, inner in parts:
            if isinstance(inner, Part):
                yield from _spans(inner, join(below, label) if label else below)
    if part.beside is not None:
        yield from _spans(part.beside, key)
