"""From a published checkpoint to a backbone of timm's, tensor by tensor and none left over."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ssl_zoo.backbones.timm_model import TimmModel
from ssl_zoo.config import ConfigError, not_among
from ssl_zoo.system.files import sha256
from ssl_zoo.weights import file as weights_file
from ssl_zoo.weights.file import Header, build
from ssl_zoo.weights.layouts import ANY, LAYOUTS, NAMINGS, NOT_OF_BACKBONE, WRAPPERS, Layout

State = dict[str, Tensor]
# What checkpoints hold besides tensors and plain values, and what runs no code when it is made.
_PLAIN = [argparse.Namespace, np.dtype, np._core.multiarray.scalar]
_PLAIN += [getattr(np.dtypes, name) for name in np.dtypes.__all__]
_COUNTER = "num_batches_tracked"  # of BatchNorm, which no feature depends on
_SIDE_BY_SIDE = 8  # names shown of what was found and of what was wanted
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in a folder of transformers or timm


class Found(NamedTuple):
    """A backbone in a file.

    Attributes:
        layout, naming: as in the tables.
        place: where in the file, in words.
        state: its tensors by their names there, without what stands before all of them.
    """

    layout: str
    naming: str
    place: str
    state: State


@dataclass(frozen=True)
class Imported:
    """A backbone with weights that came from elsewhere.

    Attributes:
        header: of the file that it is written to.
        lines: what was found and done, for a person.
    """

    backbone: TimmModel
    header: Header
    lines: list[str]

    def write(self, path: Path) -> None:
        weights_file.write(path, self.backbone.model.state_dict(), self.header)


def import_file(
    path: Path,
    layout: str | None = None,
    block: Mapping[str, Any] | None = None,
    partial: bool = False,
) -> Imported:
    """Reads a checkpoint of any project in `LAYOUTS`; no code in it runs.

    Args:
        path: a file; or a folder that transformers or timm has saved a model in.
        layout: a name in `LAYOUTS`; None: told by the keys.
        block: keys of the block `Timm`: `name` where shapes do not tell it, `in_chans` and
            `options` where another network is wanted than the file's.
        partial: leave at their initial values what the file lacks, and out what it has too much.

    Raises:
        ConfigError: an unknown layout; an architecture that has to be told.
        ValueError: a file that is broken or would run code, or one that does not hold the whole
            backbone.
    """
    path, config = _with_config(path)
    contents = read(path)
    if {"format", "method", "networks"} <= contents.keys():
        raise ValueError(f"{path} is of a run: ssl-zoo export {path} --to safetensors --out DIR")
    header = weights_file.read_header(path)
    given = dict(block or {})
    if header is not None:  # our own: its architecture is known
        given = _over(header.backbone, given)
    found = recognize(contents, path, layout)
    given = _over(_of_config(config), given)
    about = LAYOUTS[found.layout]
    state = renamed(found)
    if "name" in given:
        block = _block(given, found, state)
    else:
        block = _by_shapes(path, found, state, given)
    lines = [f"{path}: laid out as {found.layout} does ({about.source}): {found.place}"]
    lines.append(f"{block['name']}, {'as told' if 'name' in given else 'by its shapes'}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for what `partial` leaves as it was made
        backbone = build(block)
    fitted, remarks = adapted(state, backbone.model, block)
    lines += [*remarks, *_of_layout(found, state, config)]
    lines += _load(path, found, fitted, backbone.model, partial)
    source = {"file": path.name, "sha256": sha256(path), "layout": found.layout}
    return Imported(backbone, Header(block, _clean(backbone, about), source), lines)


def read(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint, on the CPU; ValueError where there is more."""
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except FileNotFoundError:
            raise
        except Exception as error:  # safetensors' own kinds
            raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    with path.open("rb"):  # that it is missing or forbidden is said as it is
        pass
    with torch.serialization.safe_globals(_PLAIN):
        try:
            contents = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # each of torch's readers has its own
            raise ValueError(_refused(path)) from error
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path}: expected a mapping of tensors, found {type(contents).__name__}")
    return dict(contents)


def _refused(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a checkpoint at all
        names = []
    if not names:
        return f"{path}: not a checkpoint of torch's, or not a whole one"
    known = {f"{kind.__module__}.{kind.__qualname__}" for kind in _PLAIN}
    unknown = sorted(name for name in names if name not in known)
    return (
        f"{path}: it is not read, since that would run code of {', '.join(unknown[:4])}; expected "
        "tensors and plain values alone, as torch.save(model.state_dict(), FILE) writes them"
    )


def recognize(contents: Mapping[str, Any], path: Path, layout: str | None = None) -> Found:
    """The first layout and naming that the keys fit; ValueError if none do."""
    if layout is not None and layout not in LAYOUTS:
        raise not_among("--from", "no such layout", layout, LAYOUTS)
    tables = LAYOUTS if layout is None else {layout: LAYOUTS[layout]}
    for name, row in tables.items():
        for inside, state in _places(contents, row):
            if layout is None and not any(re.match(row.has, key) for key in state):
                continue
            for prefix in row.prefixes:
                keys = [key for key in state if key.startswith(prefix)]
                own = {key.removeprefix(prefix): state[key] for key in keys}
                for naming, how in NAMINGS.items():
                    if naming == ANY and name != ANY:
                        continue
                    if own and any(re.match(how.has, key) for key in own):
                        place = " and ".join(filter(None, (inside, prefix and f"{prefix}*")))
                        return Found(name, naming, place or "at its top", own)
    as_told = f"as {layout} has them" if layout else "of any known layout"
    shown = ", ".join(islice((k for _, s in _places(contents, None) for k in s), _SIDE_BY_SIDE))
    top = ", ".join(map(str, islice(contents, _SIDE_BY_SIDE)))
    raise ValueError(
        f"{path}: no backbone {as_told} ({', '.join(LAYOUTS)})\n  at its top: {top}, ...\n"
        f"  its tensors: {shown or 'none'}, ..."
    )


def _places(contents: Mapping[str, Any], row: Layout | None) -> Iterator[tuple[str, State]]:
    """(key, tensors) of each state_dict that a layout may keep a backbone in; without one, all."""
    for inside in row.inside if row else ("", *map(str, contents)):
        below: Any = contents
        for key in filter(None, inside.split("/")):
            below = below.get(key) if isinstance(below, Mapping) else None
        if isinstance(below, Mapping):
            named = ((str(key), x) for key, x in below.items() if isinstance(x, Tensor))
            if state := {WRAPPERS.sub("", key): x for key, x in named}:
                yield inside, state


def renamed(found: Found) -> State:
    """The backbone's tensors under timm's names, before they are fitted to a model."""
    state = {}
    for key, x in found.state.items():
        for pattern, replacement in NAMINGS[found.naming].rules:
            key = re.sub(pattern, replacement, key)
        if not key.endswith(_COUNTER):
            state[key] = x
    return _joined(state)


def _joined(state: State) -> State:
    """Queries, keys and values in one tensor; DINOv3's keys have no bias, which is one of zero."""
    joined = {}
    for key, x in state.items():
        match = re.fullmatch(r"(.*\.attn\.)([qkv])(\.\w+)", key)
        if match is None:
            joined[key] = x
            continue
        before, _, after = match.groups()
        parts = [state.get(f"{before}{part}{after}") for part in "qkv"]
        known = next(part for part in parts if part is not None)
        whole = [torch.zeros_like(known) if part is None else part for part in parts]
        joined[f"{before}qkv{after}"] = torch.cat(whole)
    return joined


def adapted(state: State, model: nn.Module, block: Mapping[str, Any]) -> tuple[State, list[str]]:
    """The tensors as this model takes them, by timm's own converter where it has one; remarks.

    Positions are interpolated to the model's grid, and the first layer is adapted to its channels.
    """
    remarks, first = [], f"{model.pretrained_cfg.get('first_conv')}.weight"
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    fitted = dict(state)
    if convert is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what is missing
            fitted = dict(convert(fitted, model))
    before, after = (x.get("pos_embed") for x in (state, fitted))
    if before is not None and after is not None and before.shape[1] - after.shape[1] not in (0, 1):
        remarks.append(
            f"positions interpolated from {before.shape[1]} to {after.shape[1]} tokens "
            "(bicubic, timm's resample_abs_pos_embed)"
        )
    in_chans = block.get("in_chans", 3)
    if first in fitted and fitted[first].ndim == 4 and fitted[first].shape[1] != in_chans:
        channels = fitted[first].shape[1]
        fitted[first] = adapt_input_conv(in_chans, fitted[first], base_chans=channels)
        way = "summed" if in_chans == 1 else "repeated and scaled"
        remarks.append(f"first layer of {channels} channels {way} for {in_chans}")
    wanted = model.state_dict()
    for key, x in fitted.items():
        if key in wanted and x.squeeze().shape == wanted[key].squeeze().shape:
            fitted[key] = x.reshape(wanted[key].shape)  # a scale [C, 1, 1], a 1 x 1 convolution
    return fitted, remarks


def _compare(fitted: State, model: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """(loaded, missing, too many) names; one of another shape is missing and too many."""
    wanted = {key: x for key, x in model.state_dict().items() if not key.endswith(_COUNTER)}
    loaded = [k for k, x in wanted.items() if k in fitted and fitted[k].shape == x.shape]
    missing = [key for key in wanted if key not in loaded]
    return loaded, missing, [key for key in fitted if key not in loaded]


def _load(
    path: Path, found: Found, fitted: State, model: nn.Module, partial: bool
) -> Iterator[str]:
    """Loads what fits; ValueError unless it is all of both, or `partial`. Yields lines."""
    loaded, missing, extra = _compare(fitted, model)
    unknown = [key for key in extra if not NOT_OF_BACKBONE.match(key)]
    count = f"{len(loaded)} of {len(loaded) + len(missing)} tensors loaded"
    if (missing or unknown) and not partial:
        wanted = model.state_dict()
        rows = islice(
            zip_longest(
                (f"{key} {_shape(fitted[key])}" for key in unknown),
                (f"{key} {_shape(wanted[key])}" for key in missing),
                fillvalue="",
            ),
            _SIDE_BY_SIDE,
        )
        table = [f"  {'found':<58}wanted", *(f"  {a:<58}{b}" for a, b in rows)]
        problem = f"{path}: {count}; {len(unknown)} of the file's have no place; --partial takes it"
        raise ValueError("\n".join([problem, *table]))
    model.load_state_dict(model.state_dict() | {key: fitted[key] for key in loaded})
    yield count + (f"; the other {len(missing)} are as they start" if missing else "")
    beside = [*extra]
    if beside:
        yield f"left out: {len(beside)} ({', '.join(beside[:3])}{', ...' * (len(beside) > 3)})"


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


def _by_shapes(path: Path, found: Found, state: State, given: Mapping[str, Any]) -> dict[str, Any]:
    """The model of the naming's that all tensors fit, no two of which have the same shapes."""
    names = NAMINGS[found.naming].names
    for name in names:
        block = _block({**given, "name": name}, found, state)
        if _fits(state, block):
            return block
    problem = f"{path}: its shapes do not tell which model it is"
    tried, expected = f"none of {', '.join(names)}", "timm's name: name=resnet50"
    raise ConfigError("name", problem, found=tried, expected=expected)


def _block(given: Mapping[str, Any], found: Found, state: State) -> dict[str, Any]:
    """A backbone's block: what the user gave, then what the layout and the tensors say."""
    options = LAYOUTS[found.layout].options.get(given["name"], {})
    return _of_tensors({"type": "Timm", **_over({"options": options}, given)}, state)


def _fits(state: State, block: Mapping[str, Any]) -> bool:
    try:
        model = _on_meta(json.dumps(block)).model
        if _patch(state) != _patch(model.state_dict()):
            return False
        fitted, _ = adapted(state, model, block)
    except (ConfigError, ValueError, RuntimeError, KeyError):  # timm's converter on another depth
        return False
    _, missing, extra = _compare(fitted, model)
    return not missing and all(NOT_OF_BACKBONE.match(key) for key in extra)


@cache
def _on_meta(block: str) -> TimmModel:
    """The network of a block (JSON) without numbers, to be looked at only."""
    with torch.device("meta"):
        return build(json.loads(block))


def _patch(state: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    weight = state.get("patch_embed.proj.weight")
    return None if weight is None else tuple(weight.shape[2:])


def _of_tensors(block: dict[str, Any], state: State) -> dict[str, Any]:
    """The block with what the tensors say and the user has not: channels, stem, positions."""
    block, options = dict(block), dict(block.get("options") or {})
    first = next(
        (state[k] for k in ("conv1.weight", "patch_embed.proj.weight") if k in state), None
    )
    if "in_chans" not in block and first is not None and first.shape[1] != 3:
        block["in_chans"] = first.shape[1]
    if "conv1.weight" in state and state["conv1.weight"].shape[2:] == (3, 3):
        block.setdefault("small_images", True)
    side = _grid(state)
    if side and "img_size" not in options and not block["name"].startswith("xcit"):
        usual = _on_meta(json.dumps(_over(block, {"options": options})))
        if getattr(usual, "grid_size", (side, side)) != (side, side):
            options["img_size"] = side * _patch(state)[0]
    return _over(block, {"options": options})


def _grid(state: State) -> int | None:
    """Patches across the square image that positions are for; None without any."""
    if "pos_embed" not in state or state["pos_embed"].ndim != 3 or _patch(state) is None:
        return None
    tokens = state["pos_embed"].shape[1]
    sides = [math.isqrt(tokens - prefix) for prefix in (0, 1, 2)]
    return next((s for prefix, s in enumerate(sides) if s * s == tokens - prefix), None)


def _with_config(path: Path) -> tuple[Path, dict[str, Any]]:
    """The file of weights, and the config.json that transformers and timm put beside it."""
    if path.is_dir():
        inside = [path / name for name in _WEIGHTS if (path / name).is_file()]
        if not inside:
            raise FileNotFoundError(f"{path}: expected {' or '.join(_WEIGHTS)} in the folder")
        path = inside[0]
    config = path.with_name("config.json")
    if path.name not in _WEIGHTS or not config.is_file():
        return path, {}
    return path, json.loads(config.read_text(encoding="utf-8"))


def _of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the block that a config.json of timm's, or of transformers', decides."""
    if "architecture" in config:
        options = config.get("model_args", {})
        block = {"name": config["architecture"], "in_chans": options.get("in_chans", 3)}
        return _over(block, {"options": _but(options, "in_chans", "num_classes")})
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if heads and width and width != 64 * heads:  # timm's have 64 numbers a head
        return {"options": {"num_heads": heads}}
    return {}


def _but(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def _over(block: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` laid over a block, options one by one."""
    options = {**(block.get("options") or {}), **(given.get("options") or {})}
    return _but({**block, **given}, "options") | ({"options": options} if options else {})


def _of_layout(found: Found, state: State, config: Mapping[str, Any]) -> Iterator[str]:
    """What a person should know about features that may differ from the project's."""
    if found.layout == "solo-learn" and _patch_of_stem(state) == (3, 3):
        yield "solo-learn's stem for CIFAR pads by 2 pixels and this one by 1: features differ"
    eps = config.get("layer_norm_eps", 1e-6)
    if "ViT" in found.naming and eps != 1e-6:
        yield f"layer norms divide by a deviation with {eps:g} added there, with 1e-06 here"


def _patch_of_stem(state: State) -> tuple[int, ...] | None:
    return tuple(state["conv1.weight"].shape[2:]) if "conv1.weight" in state else None


def _clean(backbone: TimmModel, row: Layout) -> dict[str, Any]:
    """The view of ImageNet that such weights are judged on: 256 to 224 pixels, a center crop."""
    size = min(backbone.made_for)
    cfg = backbone.model.pretrained_cfg
    ops: dict[str, Any] = {
        "resize": {"type": "Resize", "size": round(size * 256 / 224)},
        "crop": {"type": "CenterCrop", "size": size},
    }
    if row.normalized and backbone.in_chans == 3:
        mean, std = cfg.get("mean", (0.485, 0.456, 0.406)), cfg.get("std", (0.229, 0.224, 0.225))
        ops["normalize"] = {"type": "Normalize", "mean": list(mean), "std": list(std)}
    return {"ops": ops}
