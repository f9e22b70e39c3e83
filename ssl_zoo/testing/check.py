"""One thing that is checked, with a name."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssl_zoo.config import Part, Registry
from ssl_zoo.system.hardware import kept_threads
from ssl_zoo.system.rng import kept_random_state


@dataclass(frozen=True)
class Check:
    """Calling it checks: AssertionError where something is wrong. `str` is its name, for pytest.

    Attributes:
        function: takes the subject, and a folder that is empty and goes when it returns.
        name: of the subject.
    """

    function: Callable[[Any, Path], None]
    subject: Any
    name: str

    def __call__(self) -> None:
        kept = kept_random_state(torch.device("cpu"))
        with kept_threads(), kept, tempfile.TemporaryDirectory() as folder:
            torch.set_num_threads(1)  # as a rank has; and what is small is fastest so
            torch.manual_seed(0)
            self.function(self.subject, Path(folder))

    def __str__(self) -> str:
        return f"{self.name}-{self.function.__name__}"


def each(functions: Iterable[Callable], subject: Any, name: str) -> list[Check]:
    return [Check(function, subject, name) for function in functions]


def part_of(kind: Registry, given: Any) -> tuple[Part, str]:
    """What was given as a part of this kind, and what it is called."""
    part = Part.of(given, kind)
    return part, part.type or getattr(part.target, "__name__", str(part.target))
