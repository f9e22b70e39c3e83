"""What no part of a config can check alone."""

from collections.abc import Callable
from typing import Any

from ssl_zoo.backbones import FITS, check_built, fits
from ssl_zoo.config import ConfigError, Part, not_among
from ssl_zoo.config.constraints import SCHEDULED, check_value, marked, type_hints
from ssl_zoo.config.part import Ready
from ssl_zoo.evaluation.base import declared
from ssl_zoo.evaluation.monitor import best_of, check_blocks
from ssl_zoo.experiment.stream import check_stream


def check_whole(whole: Part) -> None:
    """Raises ConfigError where the sections of a config do not go together."""
    sections = whole.arguments()
    check_blocks(sections["evaluations"])
    best_of(sections["evaluations"], sections["best"])
    for name, schedule in sections["schedules"].items():
        _check_schedule(whole, name, schedule)
    _check_views(sections["method"], sections["data"])
    _check_backbone(sections["method"], sections["backbone"])
    for part in sections["evaluations"].values():
        _check_backbone(part, sections["backbone"])
    _check_sync_bn(sections)
    check_stream(whole)


def views_needed(method: Part) -> int:
    """Views of each image that a method asks for; a few answer from their arguments."""
    needed: int | Callable[..., int] = method.target.views_needed
    return needed(**method.kwargs) if callable(needed) else needed


def _check_schedule(whole: Part, name: str, schedule: Part) -> None:
    """A scheduled name is `optimizer.X` or a dotted key under `method`, of a declared number."""
    *path, number = name.split(".")
    part, key = whole, f"schedules.{name}"
    for depth, step in enumerate(path):
        parts = {k: v for k, v in part.arguments().items() if isinstance(v, Part)}
        if step not in parts or (depth == 0 and step not in ("optimizer", "method")):
            choices = ["optimizer", "method"] if depth == 0 else list(parts)
            raise not_among(key, "names no part of this config", step, choices)
        part = parts[step]
    declared = marked(part.target, SCHEDULED) if path else []
    numbers = [name for name in declared if part.arguments()[name] is not None]
    if number not in numbers:
        error = not_among(key, "not a number that can be scheduled", number, numbers)
        error.expected = f"one of {part.target.__name__}'s: {', '.join(numbers) or 'it has none'}"
        raise error
    final = schedule.arguments().get("final")
    if final is not None:
        check_value(type_hints(part.target)[number], final, f"{key}.final")


def _check_views(method: Part, data: Part) -> None:
    made, needed = data.kwargs["views"].arguments()["count"], views_needed(method)
    if made is not None and made < needed:
        problem = f"too few views for {method.target.__name__}"
        wanted = f"null, or at least {needed}"
        raise ConfigError("data.views.count", problem, found=str(made), expected=wanted)


def _check_backbone(user: Part, backbone: Part) -> None:
    """A method that masks patches wants a ViT, a detector maps, and so on."""
    needs, name = declared(user, "needs"), user.target.__name__
    if isinstance(backbone, Ready):
        check_built(backbone.made, needs, name)
    elif not fits(backbone, needs):
        named = "name" in backbone.kwargs
        raise ConfigError(
            "backbone.name" if named else "backbone.type",
            f"{name} needs {needs} of its backbone",
            found=backbone.kwargs["name"] if named else backbone.type,
            expected=FITS.get(needs, needs),
        )


def _check_sync_bn(sections: dict[str, Any]) -> None:
    """One statistic over all processes leaves ShuffleBN nothing to shuffle between."""
    if not sections["train"].arguments()["sync_bn"]:
        return
    method = sections["method"].spelled_out()
    blocks = {"method": method, "method.memory": method.get("memory") or {}}
    shuffles = [f"{key}.shuffle_bn" for key, block in blocks.items() if block.get("shuffle_bn")]
    if sections["backbone"].spelled_out().get("bn_groups", 1) > 1:
        raise ConfigError("train.sync_bn", "joins what bn_groups splits", expected="one of the two")
    if shuffles:
        expected = f"false, or {shuffles[0]}=false"
        raise ConfigError("train.sync_bn", "undoes ShuffleBN", expected=expected)
