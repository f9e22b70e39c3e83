"""Constructors that check their arguments, whoever calls them."""

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from ssl_zoo.config.constraints import check_value, of_yaml, type_hints
from ssl_zoo.config.errors import ConfigError, join
from ssl_zoo.config.part import Part, Recorded


def check_arguments(target: Callable, arguments: Mapping[str, Any]) -> None:
    """Annotations first, then the target's own `validate`, which is given every argument."""
    hints = type_hints(target)
    for name, value in arguments.items():
        check_value(hints.get(name, Any), value, name)
    if hasattr(target, "validate"):
        defaults = {n: p.default for n, p in of_yaml(target).items() if p.default is not p.empty}
        target.validate(**defaults | arguments)


def constrained(target: Callable) -> Callable:
    """A constructor that checks its arguments, whoever calls it; a class is changed in place."""
    function = target.__init__ if inspect.isclass(target) else target
    if getattr(function, "constrained_for", None) is target:
        return target
    names = of_yaml(target).keys()

    @functools.wraps(function)
    def checked(*args, **kwargs):
        # A subclass that calls this one's constructor has its own constraints.
        if not inspect.isclass(target) or type(args[0]) is target:
            hints = type_hints(target)
            kwargs = {n: as_parts(hints.get(n, Any), v) for n, v in kwargs.items()}
            check_arguments(target, {n: v for n, v in kwargs.items() if n in names})
        return function(*args, **kwargs)

    checked.constrained_for = target
    if inspect.isclass(target):
        target.__init__ = checked
        return target
    if hasattr(target, "validate"):
        checked.validate = target.validate
    return checked


def as_parts(hint: Any, value: Any, key: str = "") -> Any:
    """With a `Part` wherever the annotation says so, of what Python gave there; see `Part.of`.

    Raises:
        ConfigError: an argument that the part does not have, or of which some are not named.
    """
    origin, args = get_origin(hint), get_args(hint)
    if value is None:
        return None
    if origin is Annotated and args[0] is Part:
        return _filled(Part.of(value, args[1].kind), args[1].beside, key)
    if origin is Annotated:
        return as_parts(args[0], value, key)
    if origin in (Union, types.UnionType):
        for option in args:
            value = as_parts(option, value, key)
    elif origin is dict and isinstance(value, Mapping):
        return {name: as_parts(args[1], item, join(key, name)) for name, item in value.items()}
    return value


def _filled(part: Part, beside: Callable | None, key: str) -> Part:
    """Its own parts are parts too, and what is meant for `beside` is there."""
    part.key = part.key or key
    if beside is not None and part.beside is None:
        others = of_yaml(beside)
        part.beside = Part(beside, **{n: v for n, v in part.kwargs.items() if n in others})
        part.kwargs = {n: v for n, v in part.kwargs.items() if n not in others}
    if part.kwargs and not isinstance(part, Recorded):
        try:
            inspect.signature(part.target).bind_partial(**part.kwargs)
        except TypeError as error:
            raise ConfigError(key, f"{part.target.__name__}: {error}") from error
        hints = type_hints(part.target)
        part.kwargs = {
            n: as_parts(hints.get(n, Any), given, join(part.key, n))
            for n, given in part.kwargs.items()
        }
    return part
