"""Registries, and the strict step from a YAML block to a constructor call.

A YAML block is a constructor call, under one rule about signatures:

    def __init__(self, encoder, num_samples, *, size: int = 65536, momentum: float = 0.999)

What stands before the `*` is handed over by the code that owns the part; what stands after it
is YAML's. So a block can be checked against its constructor before anything is built or read.
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mmengine.registry import Registry as _MMEngineRegistry


class ConfigError(ValueError):
    """What a user got wrong, where, and what was expected.

    Args:
        key: dotted path of the offending key, `method.memory.size`.
        problem: one sentence.
        found, expected: what was there, what should have been.
        nearest: the closest valid name, if there is one.
        where: `file:line`, filled in by `Config` when it knows.
    """

    def __init__(self, key: str, problem: str, *, found="", expected="", nearest="", where=""):
        super().__init__(key, problem)
        self.key, self.problem, self.where = key, problem, where
        self.found, self.expected, self.nearest = found, expected, nearest

    def __str__(self) -> str:
        head = ": ".join(part for part in (self.where, self.key, self.problem) if part)
        details = [("found", self.found), ("expected", self.expected), ("nearest", self.nearest)]
        return "\n".join([head, *(f"  {name + ':':<10}{text}" for name, text in details if text)])


def nearest(name: str, candidates) -> str:
    """The candidate closest to `name`, or ''. Case does not count."""
    by_lower = {str(c).lower(): str(c) for c in candidates}
    match = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[match[0]] if match else ""


def above(name: str, value: float | None, bound: float) -> None:
    """Raises ConfigError unless value > bound; None passes."""
    if value is not None and not value > bound:
        raise ConfigError(name, "too small", found=repr(value), expected=f"above {bound}")


def at_least(name: str, value: float | None, bound: float) -> None:
    """Raises ConfigError unless value >= bound; None passes."""
    if value is not None and not value >= bound:
        raise ConfigError(name, "too small", found=repr(value), expected=f"at least {bound}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises ConfigError unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(name, "out of range", found=repr(value), expected=f"from {low} to {high}")


class Registry(_MMEngineRegistry):
    """mmengine's Registry, restricted to registered names.

    mmengine resolves any dotted path (`type: os.system`) and imports modules that a config names;
    here a name is either in the registry or an error.
    """

    def get(self, name: str) -> Callable:
        if not isinstance(name, str) or name not in self.module_dict:
            raise ConfigError(
                "type",
                f"no {self.name} of this name",
                found=repr(name),
                expected=f"one of {', '.join(sorted(self.module_dict))}",
                nearest=nearest(name, self.module_dict),
            )
        return self.module_dict[name]

    def build(self, cfg: Mapping, **offered) -> Any:
        """Checks a block, then calls its constructor: `HEADS.build(block, in_features=8)`."""
        return bind(self, cfg, key=self.name)(**offered)

    def summary(self) -> list[tuple[str, str, str]]:
        """(name, first docstring line, arXiv number or '') of every entry, by name."""
        rows = []
        for name, target in sorted(self.module_dict.items()):
            text = inspect.getdoc(target) or ""
            paper = re.search(r"arXiv:(\d{4}\.\d{4,5})", text)
            rows.append((name, text.split("\n")[0], paper.group(1) if paper else ""))
        return rows


METHODS = Registry("method")
HEADS = Registry("head")
MEMORY = Registry("memory")
BACKBONES = Registry("backbone")
LOSSES = Registry("loss")
DATASETS = Registry("dataset")
TRANSFORMS = Registry("transform")
OPTIMIZERS = Registry("optimizer")
SCHEDULES = Registry("schedule")


# A key that begins so is whole already: a method objects to its backbone, or to its data.
_SECTIONS = ("backbone.", "data.")


class Part:
    """A constructor with its YAML arguments, not yet called.

    The owner of a part calls it with what only the owner knows, and each constructor takes what
    it names before its `*`:

        head = Part(MLP, out_features=128)
        head(in_features=512)          # -> MLP(in_features=512, out_features=128)

    In a signature, `head: Part[HEADS]` marks a nested block whose `type` is looked up in HEADS,
    and `data: Part[Data]` one of a fixed type.
    """

    def __init__(self, target: Callable, /, **kwargs):
        self.target, self.kwargs = target, kwargs
        self.key, self.type = "", ""  # where in a config it stood, and under which name

    def __class_getitem__(cls, kind: Registry | type) -> Any:
        return Annotated[cls, kind]

    def __call__(self, **offered) -> Any:
        names, yaml = signature(self.target)
        taken = {name: offered[name] for name in names if name in offered}
        try:
            self._check_fit(offered, yaml)
            return self.target(**taken, **self.kwargs)
        except ConfigError as error:
            if self.key and not error.key.startswith((self.key, *_SECTIONS)):
                error.key = f"{self.key}.{error.key}" if error.key else self.key
            raise
        except ValueError as error:
            if not self.key:
                raise
            raise ConfigError(self.key, str(error)) from error

    def _check_fit(self, offered: Mapping, yaml: Mapping) -> None:
        """Raises ConfigError for a part of another use: a decoder where a head belongs."""
        parameters = inspect.signature(self.target).parameters.values()
        needed = {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
        needed -= {p.name for p in parameters if p.default is not p.empty}
        expected = ""
        if not needed <= offered.keys() | self.kwargs.keys():
            expected = f"a part that takes {', '.join(offered) or 'YAML alone'}"
        elif twice := sorted(offered.keys() & yaml.keys()):
            expected = f"one that takes {', '.join(twice)} before its *: code hands it over"
        if expected:
            name = getattr(self.target, "__name__", str(self.target))
            raise ConfigError("type", "does not belong here", found=name, expected=expected)

    def like(self, target: Callable, /, **changed) -> Part:
        """Another call in the same place of the config, with the same arguments but `changed`."""
        part = Part(target, **self.kwargs | changed)
        part.key, part.type = self.key, self.type
        return part

    def spelled_out(self) -> dict[str, Any]:
        """The block as plain YAML with every default written down."""
        parameters = signature(self.target)[1].values()
        full = {p.name: self.kwargs.get(p.name, p.default) for p in parameters}
        return ({"type": self.type} if self.type else {}) | {
            k: _spelled(v) for k, v in full.items()
        }

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.kwargs.items())
        return f"Part({self.target.__name__}, {arguments})"


def _spelled(value: Any) -> Any:
    if isinstance(value, Part):
        return value.spelled_out()
    if isinstance(value, Mapping):
        return {name: _spelled(item) for name, item in value.items()}
    return [_spelled(item) for item in value] if isinstance(value, (list, tuple)) else value


def signature(target: Callable) -> tuple[list[str], dict[str, inspect.Parameter]]:
    """Names that code hands over (before the `*`) and parameters that YAML may set (after it)."""
    parameters = inspect.signature(target).parameters.values()
    offered = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    yaml = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    return offered, yaml


def hints(target: Callable) -> dict[str, Any]:
    """Type hints of a constructor, resolved, with the registries of `Part[...]` kept."""
    function = target.__init__ if inspect.isclass(target) else target
    return get_type_hints(function, include_extras=True)


def join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def bind(kind: Registry | Callable, block: Any, key: str = "") -> Part:
    """Checks a YAML block against a constructor and returns the call as a `Part`.

    Args:
        kind: a Registry (the block names its `type`), or the constructor itself.
        block: plain YAML: dicts, lists, numbers, strings, None.
        key: dotted path of the block, for error messages.

    Raises:
        ConfigError: unknown or missing key, unknown type, value of the wrong type, or what the
            target's own `validate(**kwargs)` objects to.
    """
    if not isinstance(block, Mapping):
        raise ConfigError(key, "not a block", found=describe(block), expected="a mapping of keys")
    arguments = dict(block)
    if isinstance(kind, Registry):
        if "type" not in arguments:
            raise ConfigError(
                key,
                f"the block names no {kind.name}",
                found=", ".join(map(str, arguments)) or "an empty block",
                expected=f"type: one of {', '.join(sorted(kind.module_dict))}",
            )
        try:
            target = kind.get(arguments.pop("type"))
        except ConfigError as error:
            error.key = join(key, error.key)
            raise
    else:
        target = kind
    offered, parameters = signature(target)
    types_of = hints(target)
    name_of_target = getattr(target, "__name__", str(target))
    kwargs = {}
    for name, value in arguments.items():
        if name not in parameters:
            handed = f" ('{name}' is handed over by the code)" if name in offered else ""
            raise ConfigError(
                join(key, name),
                f"unknown key of {name_of_target}{handed}",
                found=repr(name),
                expected=f"one of {', '.join(parameters)}" if parameters else "no keys at all",
                nearest=nearest(name, parameters),
            )
        kwargs[name] = convert(types_of.get(name, Any), value, join(key, name))
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in kwargs:
            raise ConfigError(
                join(key, name),
                f"missing key of {name_of_target}",
                found=", ".join(map(str, arguments)) or "an empty block",
                expected=name,
            )
    if hasattr(target, "validate"):
        try:
            target.validate(**kwargs)
        except ConfigError as error:
            error.key = join(key, error.key)
            raise
        except ValueError as error:
            raise ConfigError(key, str(error)) from error
    part = Part(target, **kwargs)
    part.key = key
    part.type = block["type"] if isinstance(kind, Registry) else ""
    return part


def convert(hint: Any, value: Any, key: str) -> Any:
    """A YAML value as the type a parameter asks for: list to tuple, int to float, block to Part.

    Raises:
        ConfigError: the value is of another type.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin is Annotated and args[0] is Part:
        return value if isinstance(value, Part) else bind(args[1], value, key)
    if origin in (Union, types.UnionType):
        options = [a for a in args if a is not type(None)]
        if value is None and len(options) < len(args):
            return None
        errors = []
        for option in options:
            try:
                return convert(option, value, key)
            except ConfigError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
    elif origin is Literal:
        if value in args:
            return value
        raise ConfigError(
            key,
            "not one of the choices",
            found=describe(value),
            expected=f"one of {', '.join(map(str, args))}",
            nearest=nearest(value, args),
        )
    elif origin is dict and isinstance(value, Mapping):
        # A null entry takes an inherited one away.
        return {n: convert(args[1], v, join(key, n)) for n, v in value.items() if v is not None}
    elif origin is list and isinstance(value, list):
        return [convert(args[0], v, f"{key}[{i}]") for i, v in enumerate(value)]
    elif origin is tuple and isinstance(value, (list, tuple)):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(convert(a, v, f"{key}[{i}]") for i, (a, v) in pairs)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif hint in (bool, str, dict) and isinstance(value, hint):
        return value
    raise ConfigError(key, "value of the wrong type", found=describe(value), expected=spell(hint))


def describe(value: Any) -> str:
    return "null" if value is None else f"{value!r} ({type(value).__name__})"


def spell(hint: Any) -> str:
    """A type hint in words for an error message."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind = args[1]
        return f"a {kind.name} block" if isinstance(kind, Registry) else f"a {kind.__name__} block"
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else spell(a) for a in args)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is tuple and args[-1] is not Ellipsis:
        return f"a list of {len(args)}: [{', '.join(spell(a) for a in args)}]"
    if origin in (list, tuple):
        return f"a list of {spell(args[0])}"
    if origin is dict:
        return f"a mapping of names to {spell(args[1])}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )
