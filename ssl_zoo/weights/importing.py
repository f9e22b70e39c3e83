"""From a published checkpoint to a backbone of timm's, tensor by tensor and none left over."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import re
import statistics
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
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import adapt_input_conv
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ssl_zoo.backbones.timm_model import TimmModel
from ssl_zoo.config import ConfigError, not_among
from ssl_zoo.system.files import sha256
from ssl_zoo.weights import file as weights_file
from ssl_zoo.weights.file import Header, build
from ssl_zoo.weights.layouts import ANY, LAYOUTS, NAMINGS, NOT_OF_BACKBONE, WRAPPERS, Layout
from ssl_zoo.weights.taking import take

State = dict[str, Tensor]
# What checkpoints hold besides tensors and plain values, and what runs no code when it is made.
_SCALAR = np._core.multiarray.scalar  # of numpy 2, and by its name in numpy 1
_PLAIN = [argparse.Namespace, np.dtype, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")]
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
        options: of timm's models by name, what neither shapes nor the user tell.
    """

    layout: str
    naming: str
    place: str
    state: State
    options: Mapping[str, dict]


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
        path: a file; a folder that transformers or timm has saved a model in; or a run of ours.
        layout: a name in `LAYOUTS`; None: told by the keys.
        block: keys of the block `Timm`: `name` where shapes do not tell it, `in_chans` and
            `options` where another network is wanted than the file's.
        partial: leave at their initial values what the file lacks, and out what it has too much.

    Raises:
        ConfigError: an unknown layout; an architecture that has to be told.
        ValueError: a file that is broken or would run code, or one that does not hold the whole
            backbone.
    """
    own, config = weights_file.read_header(path), {}
    contents: Mapping[str, Any] = {}
    if not (path / "checkpoints").is_dir():
        path, config = _with_config(path)
        contents = read(path)
    if not contents or {"format", "method", "optimizer"} <= contents.keys():  # a run of ours
        taken = take(path)
        contents, own, path = taken.backbone.model.state_dict(), taken.header, taken.subject.path
    given = _over(own.backbone if own else {}, block or {})
    found = recognize(contents, path, layout)
    given = _over(_of_config(config), given)
    about = LAYOUTS[found.layout]
    state = renamed(found)
    if "name" in given:
        block = _block(given, found, state)
    else:
        block = _by_shapes(path, found, state, given)
    lines = [f"{path}: laid out as {found.layout} does ({about.source}): {found.place}"]
    if own:
        lines = [f"{path}: of ssl_zoo"]
    lines.append(f"{block['name']}, {'as told' if 'name' in given else 'by its shapes'}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for what `partial` leaves as it was made
        backbone = build(block)
    fitted, remarks = adapted(state, backbone.model, block)
    lines += [*remarks, *_of_layout(found, state, config, block)]
    lines += _load(path, fitted, backbone.model, partial)
    source = {"file": path.name, "sha256": sha256(path), "layout": found.layout}
    if own:
        clean = _changed(own, block, _clean(backbone, about, config))
        return Imported(backbone, Header(block, clean, own.source), lines)
    return Imported(backbone, Header(block, _clean(backbone, about, config), source), lines)


def read(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint, on the CPU; ValueError where there is more."""
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except FileNotFoundError:
            raise
        except Exception as error:  # safetensors' own kinds
            raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    # That it is missing or forbidden is said as it is.
    with path.open("rb") as file, torch.serialization.safe_globals(_PLAIN):
        try:
            contents = torch.load(file, map_location="cpu", weights_only=True)
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
    unknown = ", ".join(sorted(names)[:4])
    return (
        f"{path}: it is not read, since that would run code of {unknown}; expected tensors and "
        "plain values alone, as torch.save(model.state_dict(), FILE) writes them"
    )


def recognize(contents: Mapping[str, Any], path: Path, layout: str | None = None) -> Found:
    """The first layout and naming that the keys fit; ValueError if none do."""
    if layout is not None and layout not in LAYOUTS:
        raise not_among("--from", "no such layout", layout, LAYOUTS)
    tables = LAYOUTS if layout is None else {layout: LAYOUTS[layout]}
    # A network that no naming knows may still be one of timm's, below a prefix of the layout's.
    for timms in (False, True):
        for name, row in tables.items():
            for inside, state in _places(contents, row):
                if layout is None and not any(re.match(row.has, key) for key in state):
                    continue
                for prefix in row.prefixes:
                    keys = [key for key in state if key.startswith(prefix)]
                    own = {key.removeprefix(prefix): state[key] for key in keys}
                    for naming, how in NAMINGS.items():
                        if (naming == ANY) != timms or (timms and not prefix and name != ANY):
                            continue
                        if own and any(re.match(how.has, key) for key in own):
                            place = " and ".join(filter(None, (inside, prefix and f"{prefix}*")))
                            options = _options(name, state, contents)
                            return Found(name, naming, place or "at its top", own, options)
    as_told = f"as {layout} has them" if layout else "of any known layout"
    shown = ", ".join(islice((k for _, s in _places(contents, None) for k in s), _SIDE_BY_SIDE))
    top = ", ".join(map(str, islice(contents, _SIDE_BY_SIDE)))
    raise ValueError(
        f"{path}: no backbone {as_told} ({', '.join(LAYOUTS)})\n  at its top: {top}, ...\n"
        f"  its tensors: {shown or 'none'}, ..."
    )


def _options(layout: str, state: State, contents: Mapping[str, Any]) -> Mapping[str, dict]:
    row = LAYOUTS[layout]
    if layout == ANY and contents.get("arch") == "vit_small":  # moco-v3's linear classifiers
        return LAYOUTS["moco-v3"].options
    meta = contents.get("meta")
    if layout == "mmpretrain" and isinstance(meta, Mapping) and "mocov3-s" in str(meta.get("cfg")):
        return LAYOUTS["moco-v3"].options  # of a linear classifier: no momentum encoder is in it
    told = [more for has, more in row.when if any(re.match(has, key) for key in state)]
    return told[0] if told else row.options


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
        parts = {part: state.get(f"{before}{part}{after}") for part in "qkv"}
        if after == ".bias" and parts["k"] is None:
            parts["k"] = torch.zeros_like(x)
        if all(part is not None for part in parts.values()):
            joined[f"{before}qkv{after}"] = torch.cat([parts[part] for part in "qkv"])
        else:
            joined[key] = x
    return joined


def adapted(state: State, model: nn.Module, block: Mapping[str, Any]) -> tuple[State, list[str]]:
    """The tensors as this model takes them, by timm's own converter where it has one; remarks.

    Positions are interpolated to the model's grid, and the first layer is adapted to its channels.
    """
    remarks, first = [], f"{model.pretrained_cfg.get('first_conv')}.weight"
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    fitted = dict(state)
    if convert is not None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what is missing
                fitted = dict(convert(fitted, model))
        except (KeyError, IndexError, RuntimeError) as error:
            shown = ", ".join(islice(state, 3))
            problem = f"these are no tensors of a {type(model).__name__}: {shown}, ..."
            raise ValueError(f"{problem} (timm's converter: {error!r})") from error
    for key, x in state.items():  # timm drops DINOv3's where a model has none, zero or not
        placed = {key, key.replace("qkv.bias", "q_bias")} & fitted.keys()
        if key.endswith("attn.qkv.bias") and not placed and x.any():
            fitted[key] = x
    if (patch := _patch(state)) != (own := _patch(model.state_dict())) and None not in (patch, own):
        remarks.append(
            f"patches of {patch} pixels resampled to {own} (timm's resample_patch_embed)"
        )
    before, after = (x.get("pos_embed") for x in (state, fitted))
    if before is not None and after is not None and before.shape[1] - after.shape[1] not in (0, 1):
        remarks.append(
            f"positions interpolated from {before.shape[1]} to {after.shape[1]} tokens "
            "(bicubic, timm's resample_abs_pos_embed)"
        )
    in_chans, wanted = block.get("in_chans", 3), model.state_dict()
    channels = _channels(fitted, first)
    if channels is not None and channels != _channels(wanted, first) == in_chans:
        fitted[first] = adapt_input_conv(in_chans, fitted[first], base_chans=channels)
        way = "summed" if in_chans == 1 else "repeated and scaled"
        remarks.append(f"first layer of {channels} channels {way} for {in_chans}")
    for key, x in fitted.items():
        if key in wanted and x.squeeze().shape == wanted[key].squeeze().shape:
            fitted[key] = x.reshape(wanted[key].shape)  # a scale [C, 1, 1], a 1 x 1 convolution
    return fitted, remarks


def _channels(state: State, first: str) -> int | None:
    """That a first layer takes; None if it is no convolution, or not there."""
    weight = state.get(first)
    return weight.shape[1] if weight is not None and weight.ndim == 4 else None


def _compare(fitted: State, model: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """(loaded, missing, too many) names; one of another shape is missing and too many."""
    wanted = {key: x for key, x in model.state_dict().items() if not key.endswith(_COUNTER)}
    loaded = [k for k, x in wanted.items() if k in fitted and fitted[k].shape == x.shape]
    missing = [key for key in wanted if key not in loaded]
    return loaded, missing, [key for key in fitted if key not in loaded]


def _load(path: Path, fitted: State, model: nn.Module, partial: bool) -> Iterator[str]:
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
    if extra:
        yield f"left out: {len(extra)} ({', '.join(extra[:3])}{', ...' * (len(extra) > 3)})"


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


def _by_shapes(path: Path, found: Found, state: State, given: Mapping[str, Any]) -> dict[str, Any]:
    """The model of the naming's that all tensors fit, no two of which have the same shapes."""
    names = NAMINGS[found.naming].names
    for name in names:
        # Options, or tensors, that this one does not take.
        with contextlib.suppress(ValueError, RuntimeError, KeyError):
            block = _block({**given, "name": name}, found, state)
            if _fits(state, block):
                return block
    problem = f"{path}: its shapes do not tell which model it is"
    tried, expected = f"none of {', '.join(names)}", "timm's name: name=resnet50"
    raise ConfigError("name", problem, found=tried, expected=expected)


def _block(given: Mapping[str, Any], found: Found, state: State) -> dict[str, Any]:
    """A backbone's block: what the user gave, then what the layout and the tensors say."""
    options = found.options.get(_architecture(given), {})
    return _of_tensors({"type": "Timm", **_over({"options": options}, given)}, state)


def _architecture(block: Mapping[str, Any]) -> str:
    """timm's name without the tag of weights."""
    return block["name"].partition(".")[0]


def _fits(state: State, block: Mapping[str, Any]) -> bool:
    try:
        model = _on_meta(json.dumps(block)).model
        if _patch(state) != _patch(model.state_dict()):
            return False
        fitted, _ = adapted(state, model, block)
    except (ValueError, RuntimeError, KeyError):  # timm's converter on another depth
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
    plain = _on_meta(json.dumps(_over(block, {"options": options}))).model
    first = f"{plain.pretrained_cfg.get('first_conv')}.weight"
    channels = _channels(state, first)
    if "in_chans" not in block and channels not in (None, _channels(plain.state_dict(), first)):
        block["in_chans"] = channels
    if _stem(state) == (3, 3) and isinstance(plain, ResNet):
        block.setdefault("small_images", True)
    side = _grid(state)
    if side and "img_size" not in options and not block["name"].startswith("xcit"):
        usual = _on_meta(json.dumps(_over(block, {"options": options})))
        if getattr(usual, "grid_size", (side, side)) != (side, side):
            options["img_size"] = side * _patch(state)[0]
    return _over(block, {"options": options})


def _grid(state: State) -> int | None:
    """Patches across the square image that positions are for; None without any."""
    positions = state.get("pos_embed")
    if positions is None or positions.ndim != 3 or positions.shape[1] < 2 or not _patch(state):
        return None
    tokens = positions.shape[1]
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
    beside = path.with_name("preprocessor_config.json")  # transformers' mean and deviation
    files = [file for file in (config, beside) if file.is_file()]
    return path, dict(item for file in files for item in _json(file).items())


def _json(file: Path) -> dict[str, Any]:
    try:
        contents = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: no JSON, or not a whole one: {error}") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{file}: expected a mapping, found {type(contents).__name__}")
    return contents


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


def _of_layout(
    found: Found, state: State, config: Mapping[str, Any], block: Mapping[str, Any]
) -> Iterator[str]:
    """What a person should know about features that may differ from the project's."""
    if found.layout == "solo-learn" and _stem(state) == (3, 3):
        yield "solo-learn's stem for CIFAR pads by 2 pixels and this one by 1: features differ"
    small = "vit_small_patch16_224"
    width = state["pos_embed"].shape[-1] if "pos_embed" in state else None
    several = found.layout in ("solo-learn", "mmpretrain")
    if several and width in (192, 384) and small not in found.options:
        heads = f"{found.layout}'s ViTs of this width have 12 heads in MoCo v3 and 3 or 6 in others"
        yield f"{heads}, which no tensor tells: options.num_heads=12 for the first"
    elif "ViT" in found.naming and found.options and _architecture(block) not in found.options:
        known = "; ".join(f"{name} {options}" for name, options in found.options.items())
        if width is None or width in (192, 384):
            yield f"as told {block['name']} is timm's own; {found.layout} has others: {known}"
    eps = config.get("layer_norm_eps", 1e-6)
    if "ViT" in found.naming and eps != 1e-6:
        yield f"layer norms divide by a deviation with {eps:g} added there, with 1e-06 here"


def _stem(state: State) -> tuple[int, ...] | None:
    return tuple(state["conv1.weight"].shape[2:]) if "conv1.weight" in state else None


def _changed(own: Header, block: Mapping[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """The clean view of a file of ours, for a network of other channels or of another size."""
    before = own.backbone
    ops = dict(own.clean["ops"])
    sizes = [(of.get("options") or {}).get("img_size") for of in (before, block)]
    if sizes[0] != sizes[1]:
        other = {n: op for n, op in ops.items() if op["type"] not in ("Resize", "CenterCrop")}
        ops = {n: fresh["ops"][n] for n in ("resize", "crop")} | other
    channels = block.get("in_chans", 3)
    if channels != before.get("in_chans", 3):
        for name, op in ops.items():
            if op["type"] == "Normalize":
                same = {n: [statistics.fmean(op[n])] * channels for n in ("mean", "std")}
                ops[name] = {**op, **same}
    return {**own.clean, "ops": ops}


def _clean(backbone: TimmModel, row: Layout, config: Mapping[str, Any]) -> dict[str, Any]:
    """The view that such weights are judged on: as ImageNet's, 256 to 224 pixels, a center crop.

    timm's and transformers' config.json know of another mean and deviation. Gray images have the
    mean of those of colors.
    """
    size = min(backbone.made_for)
    ops: dict[str, Any] = {
        "resize": {"type": "Resize", "size": round(size * 256 / 224)},
        "crop": {"type": "CenterCrop", "size": size},
    }
    if row.normalized and backbone.in_chans in (1, 3):
        told = config.get("pretrained_cfg", {})
        mean = told.get("mean") or config.get("image_mean") or IMAGENET_DEFAULT_MEAN
        std = told.get("std") or config.get("image_std") or IMAGENET_DEFAULT_STD
        if backbone.in_chans == 1:
            mean, std = ([statistics.fmean(values)] for values in (mean, std))
        ops["normalize"] = {"type": "Normalize", "mean": list(mean), "std": list(std)}
    return {"ops": ops}
