"""From plain YAML to a `Part`: each value is checked against the constructor that takes it.

Python may have put a class, a `partial` or a ready object where YAML has a block.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ssl_zoo.config.constraints import Range, Span, check_value, duration, of_yaml, type_hints
from ssl_zoo.config.construct import as_parts, check_arguments
from ssl_zoo.config.errors import ConfigError, describe, join, not_among
from ssl_zoo.config.part import PYTHON, Part, Recorded, below, signature
from ssl_zoo.config.registry import Registry

PLAIN = (Mapping, str, int, float, list, tuple, type(None))  # what YAML can hold
# Keys of earlier versions, of any block or of one type's, and what stands in their place.
RENAMED = {
    "knn": "evaluations: {knn: {type: KNN, ...}}",
    "centre_momentum": "center_momentum",
    "centring": "centering",
    "normalise_pixels": "normalize_pixels",
    "drop_colours": "drop_colors",
    "neighbours": "neighbors",
    "KNN.bank_limit": "train_limit",
    "KNN.query_limit": "test_limit",
    "OnlineProbe.query_limit": "test_limit",
    "EndToEnd.symmetric": "same_view_negatives here, and symmetric of method",
}


def bind(kind: Registry | Callable, block: Any, key: str = "", beside: Callable | None = None):
    """The call that a YAML block makes, as a `Part`; ConfigError where it does not check.

    Args:
        kind: a Registry (the block names its `type`), or the constructor itself.
        block: plain YAML: dicts, lists, numbers, strings, None.
        key: dotted path of the block, for error messages.
        beside: a second constructor, which takes its own keys off the block.
    """
    if not isinstance(block, Mapping):
        raise ConfigError(key, "not a block", found=describe(block), expected="a mapping of keys")
    block, name = dict(block), ""
    if isinstance(kind, Registry):
        if "type" not in block:
            given = ", ".join(map(str, block)) or "an empty block"
            known = f"type: one of {', '.join(kind.names())}"
            raise ConfigError(key, f"the block names no {kind.name}", found=given, expected=known)
        name = block.pop("type")
    others = of_yaml(beside) if beside is not None else {}
    own = {n: v for n, v in block.items() if n not in others}
    if isinstance(name, str) and name.startswith(PYTHON):
        part = Recorded(kind.name, name, own)
        part.key = key
    else:
        with below(key):
            target = kind.get(name) if isinstance(kind, Registry) else kind
        part = _call(target, own, key, others)
        part.type = name
    if beside is not None:
        part.beside = _call(beside, {n: v for n, v in block.items() if n in others}, key, {})
    return part


def _call(target: Callable, arguments: Mapping, key: str, others: Mapping) -> Part:
    offered, parameters = signature(target)
    hints = type_hints(target)
    target_name = getattr(target, "named", getattr(target, "__name__", str(target)))
    kwargs = {}
    for name, value in arguments.items():
        if name not in parameters:
            handed = f" ('{name}' is handed over by the code)" if name in offered else ""
            problem = f"unknown key of {target_name}{handed}"
            error = not_among(join(key, name), problem, name, [*parameters, *others])
            if renamed := RENAMED.get(f"{target_name}.{name}") or RENAMED.get(name):
                error.found += f", now {renamed}"
            raise error
        kwargs[name] = convert(hints.get(name, Any), value, join(key, name))
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in kwargs:
            given = ", ".join(map(str, arguments)) or "an empty block"
            problem = f"missing key of {target_name}"
            raise ConfigError(join(key, name), problem, found=given, expected=name)
    with below(key):
        check_arguments(target, kwargs)
        if getattr(target, "check_by_building", False):  # cheap: its constructor is its check
            target(**kwargs)
    part = Part(target, **kwargs)
    part.key = key
    return part


def convert(hint: Any, value: Any, key: str) -> Any:
    """A YAML value as what a parameter asks for: list to tuple, int to float, block to Part."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin is Annotated and args[0] is Part:
        if isinstance(value, PLAIN):
            return bind(args[1].kind, value, key, args[1].beside)
        part = as_parts(hint, value, key)
        if part.kwargs:
            with below(key):
                check_arguments(part.target, part.kwargs)
        return part
    if origin is Annotated:
        span = next((mark for mark in args[1:] if isinstance(mark, Span)), None)
        if span is not None and isinstance(value, str):
            duration(value, span.unit, key)
            return value
        if span is not None and get_origin(args[0]) is list and isinstance(value, list):
            item = Annotated[get_args(args[0])[0], span]
            return [convert(item, v, f"{key}[{i}]") for i, v in enumerate(value)]
        check_value(hint, converted := convert(args[0], value, key), key)
        return converted
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
        for error in errors:
            if error.problem in ("too small", "out of range"):
                raise error
    elif origin is Literal:
        if value in args:
            return value
        raise not_among(key, "not one of the choices", value, args)
    elif origin is dict and isinstance(value, Mapping):
        # A null entry takes an inherited one away.
        return {n: convert(args[1], v, join(key, n)) for n, v in value.items() if v is not None}
    elif origin is list and isinstance(value, list):
        return [convert(args[0], v, f"{key}[{i}]") for i, v in enumerate(value)]
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(convert(a, v, f"{key}[{i}]") for i, (a, v) in pairs)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif hint in (bool, str, dict) and isinstance(value, hint):
        return value
    raise ConfigError(key, "value of the wrong type", found=describe(value), expected=spell(hint))


def spell(hint: Any) -> str:
    """A type hint in words for an error message."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated and args[0] is Part:
        kind = args[1].kind
        name = kind.name if isinstance(kind, Registry) else kind.__name__
        return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name} block"
    if origin is Annotated:
        limits = [str(mark) for mark in args[1:] if isinstance(mark, Range)]
        return ", ".join([spell(args[0]), *limits])
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
