"""Whether the views go through the network, tried out without numbers (torch's meta device)."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

from ssl_zoo.backbones import on_meta
from ssl_zoo.config import ConfigError, Part, join
from ssl_zoo.data.image import Views
from ssl_zoo.experiment.check import views_needed

Size = tuple[int, int]  # height, width
FARTHEST = 64  # pixels from a size that does not go through to one that does


class Seen(NamedTuple):
    """Images that the network gets.

    Attributes:
        key: of what decides on their size.
        what: in words.
        use: how the method calls the backbone: one of its methods.
        own_size: they have to be of the size that a ViT is made for.
    """

    key: str
    what: str
    size: Size
    use: str = "forward"
    own_size: bool = False


def check_fit(sections: Mapping[str, Any], given: Size | None = None) -> None:
    """Raises ConfigError where some image, of a view or of an evaluation, does not go through.

    `given` is the size of the data set's images, where it is known and they have but one.
    """
    backbone: Part = sections["backbone"]
    network = on_meta(backbone)
    every = [*_of_method(sections, given), *_clean(sections, given)]
    for seen in every if network is not None else ():
        if problem := _problem(network, seen):
            name = backbone.kwargs.get("name", backbone.target.__name__)
            ways = [_nearest(network, seen), _option(backbone, seen.size, every)]
            raise ConfigError(
                seen.key,
                f"{name} does not take {seen.what}: {problem}",
                found=_spelled(seen.size),
                expected="; or ".join(filter(None, ways)),
            )


def _of_method(sections: Mapping[str, Any], given: Size | None) -> Iterator[Seen]:
    """What the method gets of each view, those of one size and origin together."""
    method: Part = sections["method"]
    kind, data = method.target, sections["data"].arguments()
    views = data["views"](views_needed=views_needed(method))
    alike: dict[tuple[str, Size, Size], list[int]] = {}
    for view in range(views.count):
        key, size = _size_of(views, view, given)
        if size is None:
            continue
        key = f"data.views.{key}"
        try:
            seen = kind.seen(view, size, **method.arguments())
        except ValueError as error:
            raise ConfigError(key, f"view {view}: {error}", found=_spelled(size)) from error
        alike.setdefault((key, size, seen), []).append(view)
    called = {"map": "feature_map", "maps": "feature_maps", "c4": "c4", "tokens": "tokens"}
    use = called.get(kind.needs, "forward")
    for (key, size, seen), numbers in alike.items():
        what = f"view{'s' * (len(numbers) > 1)} {_in_runs(numbers)}"
        if seen != size:
            key = "method.patch_size" if "patch_size" in method.arguments() else "method"
            what = f"what {kind.__name__} makes of {what}"
        yield Seen(key, what, seen, use, kind.needs_own_size)


def _clean(sections: Mapping[str, Any], given: Size | None) -> Iterator[Seen]:
    """The images that evaluations see."""
    for name, part in sections["evaluations"].items():
        blocks = part.beside().blocks
        own = f"evaluations.{name}.data.clean" if "clean" in blocks else "data.clean"
        clean = blocks.get("clean", sections["data"].arguments()["clean"])
        key, size = _size_of(clean(), 0, None if "dataset" in blocks else given)
        if size is not None:
            yield Seen(f"{own}.{key}", f"the images of {name}", size)
        views = part.arguments().get("views")
        if isinstance(views, Part) and views.target is Views:  # that it trains on
            key, size = _size_of(views(), 0, None if "dataset" in blocks else given)
            if size is not None:
                yield Seen(f"evaluations.{name}.views.{key}", f"the views of {name}", size)


def _size_of(views: Views, view: int, size: Size | None) -> tuple[str, Size | None]:
    """(key of the operation that decides, size) of a view of images of a size; None: any."""
    decides = "ops"
    for label, op in views.ops_of(view):
        if size is None and not op.one_size:
            continue
        shapes = torch.tensor([[1, *(size or (1, 1))]])
        before, size = size, tuple(op.output_shapes(shapes)[0, 1:].tolist())
        if op.one_size or size != before:
            decides = join("ops", f"{label}.size")
    return decides, size


@cache  # networks that cannot be told apart are one, see `Timm.on_meta`
def _runs(network: nn.Module, use: str, size: Size, own_size: bool) -> str:
    """Why images of a size do not go through; '' if they do."""
    images = torch.empty(2, network.in_chans, *size, device="meta")
    try:
        if own_size:
            network.require_own_size(images)
        with torch.no_grad():
            getattr(network, use)(images)
    except ConfigError as error:
        return f"{error.problem}, expected {error.found}"
    except Exception as error:  # whatever a network raises where a map has become too small
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return ""


def _problem(network: nn.Module, seen: Seen, size: Size | None = None) -> str:
    return _runs(network, seen.use, size or seen.size, seen.own_size)


def _nearest(network: nn.Module, seen: Seen) -> str:
    """The sizes next to this one that do go through, in words."""
    near = []
    for sign in (-1, 1):
        sizes = ([side + sign * d for side in seen.size] for d in range(1, FARTHEST + 1))
        fits = (s for s in map(tuple, sizes) if min(s) > 0 and not _problem(network, seen, s))
        near += [next(fits, None)]
    found = [size for size in near if size] or [network.made_for]
    return " or ".join(_spelled(size) for size in found if size)


def _option(backbone: Part, size: Size, every: list[Seen]) -> str:
    """An option with which images of this size, and all others, go through, as an override."""
    if "options" not in backbone.arguments():
        return ""
    options = backbone.arguments()["options"] or {}
    height, width = size
    own = height if height == width else [height, width]
    for name, value in ("img_size", own), ("dynamic_img_size", True), ("strict_img_size", False):
        try:
            changed = {"options": {**options, name: value}}
            network = on_meta(backbone.replaced(backbone.target, **changed))
        except ConfigError:  # not an option of this model
            continue
        cells = getattr(network, "patch_size", (1, 1))
        if name == "img_size" and any(s % p for s, p in zip(size, cells, strict=True)):
            continue  # timm would leave the border out
        if not any(_problem(network, seen) for seen in every):
            return f"backbone.options.{name}={str(value).lower()}"
    return ""


def _in_runs(numbers: list[int]) -> str:
    """[0, 2, 3, 4] -> '0, 2-4'."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _spelled(size: Size) -> str:
    return "{} x {}".format(*size)
