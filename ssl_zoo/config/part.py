"""A YAML block is a constructor call, under one rule about signatures:

    def __init__(self, encoder, num_samples, *, size: PositiveInt = 65536)

What stands before the `*` is handed over by the code that owns the part; what stands after it
is YAML's. So a block can be checked against its constructor before anything is built or read.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple, NoReturn

from torch import nn

from ssl_zoo.config.constraints import MACHINE, marked, of_yaml
from ssl_zoo.config.errors import ConfigError, join

# A key that begins so is whole already: a method objects to its backbone, or to its data.
_SECTIONS = ("backbone.", "data.")
PYTHON = "python: "  # begins the recorded type of what no registry knows


class Block(NamedTuple):
    """What `Part[...]` marks in a signature: where a block's type is looked up."""

    kind: Any  # a Registry, or the one class
    beside: Callable | None = None


class Part:
    """A constructor with its YAML arguments, not yet called; its owner calls it with the rest:

        head = Part(MLP, out_features=128)
        head(in_features=512)          # -> MLP(in_features=512, out_features=128)

    In a signature, `head: Part[HEADS]` marks a nested block whose `type` is looked up in HEADS,
    and `data: Part[Data]` one of a fixed type. `Part[EVALUATIONS, Monitored]` takes the keys of
    `Monitored` off the block first; `part.beside` is the call they make. Python may give a class, a
    function, a `functools.partial` or a ready object in its place, see `of`.
    """

    beside: Part | None = None

    def __init__(self, target: Callable, /, **kwargs):
        self.target, self.kwargs = target, kwargs
        self.key, self.type = "", ""  # where in a config it stood, and under which name

    def __class_getitem__(cls, kind: Any) -> Any:
        return Annotated[cls, Block(*kind) if isinstance(kind, tuple) else Block(kind)]

    @classmethod
    def of(cls, value: Any, kind: Any = None) -> Part:
        """What stands for a part in Python: a Part, class, function, `partial`, or what is ready.

        Args:
            kind: the registry, in which the part's type is looked up.

        Raises:
            ConfigError: a `partial` with arguments that it does not name.
        """
        if isinstance(value, Part):
            part = value
        elif isinstance(value, functools.partial):
            if value.args:
                found = ", ".join(map(repr, value.args))
                expected = f"by name, as in partial({value.func.__name__}, name=...)"
                raise ConfigError("", "a partial's arguments", found=found, expected=expected)
            part = Part(value.func, **value.keywords)
        else:
            part = (
                Part(value) if inspect.isclass(value) or inspect.isroutine(value) else Ready(value)
            )
        registered = getattr(kind, "module_dict", None)
        if registered is not None and not part.type:
            names = [name for name, target in registered.items() if target is part.target]
            part.type = names[0] if names and not isinstance(part, Ready) else named(part.target)
        return part

    def __call__(self, **offered) -> Any:
        names, yaml = signature(self.target)
        taken = {n: offered[n] for n in names if n in offered and n not in self.kwargs}
        with below(self.key):
            self._check_fit(offered, yaml)
            return self.target(**taken, **self.kwargs)

    def _check_fit(self, offered: Mapping, yaml: Mapping) -> None:
        """Raises ConfigError for a part of another use: a decoder where a head belongs."""
        parameters = inspect.signature(self.target).parameters.values()
        by_code = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        needed = {p.name for p in by_code if p.default is p.empty}
        expected = ""
        if not needed <= offered.keys() | self.kwargs.keys():
            expected = f"a part that takes {', '.join(offered) or 'YAML alone'}"
        elif twice := sorted(offered.keys() & yaml.keys()):
            expected = f"one that takes {', '.join(twice)} before its *: code hands it over"
        if expected:
            name = getattr(self.target, "__name__", str(self.target))
            raise ConfigError("type", "does not belong here", found=name, expected=expected)

    def replaced(self, target: Callable, /, **changed) -> Part:
        """Another call in the same place of the config, with the same arguments but `changed`."""
        part = Part(target, **self.kwargs | changed)
        part.key, part.type = self.key, self.type
        return part

    def arguments(self) -> dict[str, Any]:
        """All arguments that its owner does not hand over, defaults included."""
        return {n: p.default for n, p in of_yaml(self.target).items()} | self.kwargs

    def inner(self) -> Iterator[Part]:
        """The parts among its arguments, and theirs."""
        waiting = list(self.arguments().values())
        while waiting:
            value = waiting.pop(0)
            if isinstance(value, Part):
                yield value
                waiting += value.arguments().values()
            elif isinstance(value, Mapping):
                waiting += value.values()
            elif isinstance(value, list | tuple):
                waiting += value

    def spelled_out(self, machine: bool = True, python: bool = False) -> dict[str, Any]:
        """The block as plain YAML with every default.

        Args:
            machine: with keys marked `OfMachine`.
            python: inner parts that no file can name stay parts; else they are given by name.
        """
        left_out = () if machine else marked(self.target, MACHINE)
        block = {"type": self.type} if self.type else {}
        for name, value in self.arguments().items():
            if name not in left_out:
                block[name] = _spelled(value, machine, python)
        if self.beside is not None:
            block |= self.beside.spelled_out(machine, python)
        return block


def _spelled(value: Any, *how: bool) -> Any:
    if isinstance(value, Part):
        return value if how[1] and value.type.startswith(PYTHON) else value.spelled_out(*how)
    if isinstance(value, Mapping):
        return {name: _spelled(item, *how) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(item, *how) for item in value]
    plain = value is None or isinstance(value, str | int | float)  # bool is an int
    return value if plain else named(value if hasattr(value, "__qualname__") else type(value))


def known_by(value: Any) -> Hashable:
    """Equal for blocks that say the same; what is no plain value is the same only as itself."""
    if isinstance(value, Ready):
        return known_by(value.made)
    if isinstance(value, Part):
        return value.target, known_by(value.arguments())
    if isinstance(value, Mapping):
        return tuple((name, known_by(value[name])) for name in sorted(value, key=str))
    if isinstance(value, list | tuple):
        return tuple(map(known_by, value))
    return value if value is None or isinstance(value, str | int | float) else ("object", id(value))


class Ready(Part):
    """What Python has made already; nobody has a say in how.

    A module is copied, so that the next run starts where this one did.
    """

    def __init__(self, made: Any):
        super().__init__(type(made))
        self.made = made

    def __call__(self, **offered) -> Any:
        return copy.deepcopy(self.made) if isinstance(self.made, nn.Module) else self.made

    def replaced(self, target: Callable, /, **changed) -> Part:
        return self

    def arguments(self) -> dict[str, Any]:
        return {}


class Recorded(Part):
    """A block that a run recorded of what Python gave: it can be read, and builds nothing."""

    def __init__(self, kind: str, name: str, block: Mapping[str, Any]):
        super().__init__(type(self), **block)
        self.kind, self.type = kind, name

    def __call__(self, **offered) -> Any:
        self.refuse()

    def replaced(self, target: Callable, /, **changed) -> Part:
        return self

    def refuse(self) -> NoReturn:
        """Raises the ConfigError of whoever would need what it stands for."""
        problem = f"a {self.kind} that was given in Python, which no file can name"
        expected = "the call of ssl_zoo.train that made the run, once more"
        key = join(self.key, "type")
        raise ConfigError(key, problem, found=self.type, expected=expected)

    def arguments(self) -> dict[str, Any]:
        return self.kwargs


def refuse_recorded(part: Part) -> None:
    """Raises ConfigError where the call needs something that only Python has, see `Recorded`."""
    for each in (part, *part.inner()):
        if isinstance(each, Recorded):
            each.refuse()


def named(target: Any) -> str:
    """How a run records what no registry knows."""
    return f"{PYTHON}{target.__module__}.{target.__qualname__}"


def signature(target: Callable) -> tuple[list[str], dict[str, inspect.Parameter]]:
    """Names that code hands over (before the `*`) and parameters that YAML may set (after it)."""
    parameters = inspect.signature(target).parameters.values()
    offered = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return offered, of_yaml(target)


@contextmanager
def below(key: str) -> Iterator[None]:
    """Errors from inside, which name an argument, name it as a key of this block."""
    try:
        yield
    except ConfigError as error:
        if key and not f"{error.key}.".startswith((f"{key}.", *_SECTIONS)):
            error.key = f"{key}.{error.key}" if error.key else key
        raise
    except ValueError as error:
        if not key:
            raise
        raise ConfigError(key, str(error)) from error
