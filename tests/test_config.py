"""Configs: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch
import yaml

import ssl_zoo
from ssl_zoo import config, experiment
from ssl_zoo.config import BACKBONES, HEADS, ConfigError, Part, Range, bind
from ssl_zoo.config.binding import convert
from ssl_zoo.config.constraints import of_yaml, type_hints
from ssl_zoo.data import Data
from ssl_zoo.engine.hooks import Checkpoints
from ssl_zoo.engine.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(
    path
    for path in (ROOT / "configs").glob("*/*.yaml")
    if path.parent.name not in ("_base_", "ablation", "transfer")
)
DIGITS = ROOT / "configs" / "digits" / "moco_v2.yaml"


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        experiment.parse(config.load(path, overrides))
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_recipe_is_valid(path):
    experiment.parse(config.load(path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_resolved_recipe_is_the_same_recipe(path, tmp_path):
    resolved = experiment.parse(config.load(path)).spelled_out()
    config.dump(resolved, tmp_path / "config.yaml")
    again = config.load(tmp_path / "config.yaml")
    assert again.data == resolved
    assert experiment.parse(again).spelled_out() == resolved
    yaml.safe_load((tmp_path / "config.yaml").read_text())  # no python tags


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.0E5", 100000.0),
        (".5", 0.5),
        ("010", 10),
        ("-7", -7),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("null", None),
        ("", None),
        ("12:30", "12:30"),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
    ],
)
def test_yaml_reads_numbers_as_numbers_and_words_as_words(text, value, tmp_path):
    data = config.load(write(tmp_path, "a.yaml", f"key: {text}")).data
    assert data == {"key": value}
    assert type(data["key"]) is type(value)
    assert config.load(write(tmp_path, "b.yaml", config.dump(data))).data == data


def test_bases_merge_and_a_changed_type_starts_afresh(tmp_path):
    write(tmp_path, "base.yaml", "a: {x: 1, y: {type: P, p: 1, q: 2}}\nlist: [1, 2]")
    child = write(
        tmp_path, "child.yaml", "_base_: base.yaml\na: {x: 2, y: {type: R, r: 3}}\nlist: [3]"
    )
    assert config.load(child).data == {"a": {"x": 2, "y": {"type": "R", "r": 3}}, "list": [3]}
    same = write(tmp_path, "same.yaml", "_base_: base.yaml\na: {y: {type: P, q: 5}}")
    assert config.load(same).data["a"] == {"x": 1, "y": {"type": "P", "p": 1, "q": 5}}


def test_overrides_reach_nested_keys_dotted_names_and_types(tmp_path):
    path = write(
        tmp_path, "a.yaml", "m: {type: A, a: 1}\nschedules: {optimizer.lr: {type: Cosine}}"
    )
    changed = config.load(
        path, ["m.type=B", "m.b=1e-3", "schedules.optimizer.lr.final=0.1", ("n", 2)]
    )
    assert changed.data == {
        "m": {"type": "B", "b": 0.001},
        "schedules": {"optimizer.lr": {"type": "Cosine", "final": 0.1}},
        "n": 2,
    }
    assert config.load(path, ["m={type: B}"]).data["m"] == {"type": "B"}


def test_trap_2_sync_bn_beside_shuffle_bn_is_refused():
    message = error_of(DIGITS, "backbone.bn_groups=1", "train.sync_bn=true")
    assert "undoes ShuffleBN" in message and "method.memory.shuffle_bn=false" in message
    densecl = ROOT / "configs" / "imagenet" / "densecl.yaml"
    overrides = ["backbone.bn_groups=1", "train.sync_bn=true"]
    message = error_of(densecl, *overrides)
    assert "undoes ShuffleBN" in message and "method.shuffle_bn=false" in message
    experiment.parse(config.load(densecl, [*overrides, "method.shuffle_bn=false"]))
    experiment.parse(config.load(ROOT / "configs" / "imagenet" / "simclr.yaml"))


def test_a_schedule_is_added_by_its_dotted_name():
    override = "schedules.method.memory.momentum={type: Cosine, final: 1.0}"
    schedules = experiment.parse(config.load(DIGITS, [override])).kwargs["schedules"]
    assert set(schedules) == {"optimizer.lr", "method.memory.momentum"}


def test_a_mechanism_is_swapped_by_one_override():
    parts = experiment.parse(
        config.load(DIGITS, ["method.memory={type: EndToEnd, shuffle_bn: false}"])
    )
    memory = parts.kwargs["method"].kwargs["memory"]
    assert memory.spelled_out() == {
        "type": "EndToEnd",
        "same_view_negatives": False,
        "shuffle_bn": False,
    }


def test_a_key_that_moved_to_another_block_says_where():
    said = error_of(DIGITS, "method.memory={type: EndToEnd, symmetric: true}")
    assert "unknown key of EndToEnd" in said and "same_view_negatives" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "method.memory.sise=4",
            ["method.memory.sise", "unknown key of MoCoQueue", "'sise'", "size"],
        ),
        (
            "method.memory.type=MocoQueue",
            ["method.memory.type", "no memory", "nearest:  MoCoQueue"],
        ),
        ("method.memory.size=big", ["method.memory.size", "'big' (str)", "an integer"]),
        ("method.memory.size=1.5", ["method.memory.size", "1.5 (float)", "an integer"]),
        ("method.memory.momentum=true", ["method.memory.momentum", "a number"]),
        ("method.memory.encoder=1", ["method.memory.encoder", "handed over by the code"]),
        ("train.precision=bf8", ["train.precision", "auto, fp32, bf16, fp16", "nearest"]),
        ("backbone.name=resnet81", ["backbone.name", "timm knows no such model", "resnet"]),
        ("backbone.weights=/no/such.pth", ["backbone.weights", "no such file"]),
        ("data.views.count=1", ["data.views.count", "too few views for Contrastive", "at least 2"]),
        ("optimiser.lr=1", ["optimiser", "unknown key", "nearest:  optimizer"]),
        ("schedules={method.memory.momentun: {type: Cosine}}", ["momentun", "nearest:  momentum"]),
        (
            "schedules={methods.memory.momentum: {type: Cosine}}",
            ["names no part", "nearest:  method"],
        ),
        ("train.sync_bn=true", ["train.sync_bn", "joins what bn_groups splits"]),
        ("method.loss=InfoNCE", ["method.loss", "not a block", "'InfoNCE' (str)"]),
        (
            "schedules={method.loss.temperature: {final: 1}}",
            ["method.loss.temperature", "names no schedule", "Constant, Cosine"],
        ),
        ("seed", ["seed", "not an override", "key=value"]),
        ("train.epochs.deep=1", ["'train.epochs' is a value and holds no keys"]),
        ("seed=[", ["seed", "not YAML"]),
        ("evaluations.knn.k=0", ["evaluations.knn.k", "too small", "at least 1"]),
        ("knn.k=20", ["knn", "now evaluations: {knn: {type: KNN, ...}}"]),
        ("method={type: DINO, centre_momentum: 0.9}", ["centre_momentum', now center_momentum"]),
        (
            "schedules={optimizer.momentun: {type: Cosine}}",
            ["optimizer.momentun", "one of SGD's: lr, momentum, weight_decay"],
        ),
        (
            "schedules={method.loss.type: {type: Cosine}}",
            ["not a number that can be scheduled", "one of InfoNCE's: temperature"],
        ),
        (
            "schedules={method.memory: {type: Cosine}}",
            ["not a number that can be scheduled", "one of Contrastive's: it has none"],
        ),
        ("best=knm.top1", ["best", "names no evaluation", "knm.top1", "nearest:  knn"]),
        ("train.epochs=-1", ["train.epochs", "too small", "above 0"]),
        ("method.memory.size=0", ["method.memory.size", "too small"]),
        ("method.memory.momentum=9.99", ["method.memory.momentum", "out of range"]),
        ("method.loss.temperature=-1", ["method.loss.temperature", "too small"]),
        ("checkpoint.keep=0", ["checkpoint.keep", "too small"]),
        ("backbone.options={pretrained: true}", ["backbone.options.pretrained", "`weights`"]),
        ("schedules.optimizer.lr.warmup_epochs=-1", ["warmup_epochs", "too small", "-1"]),
        (
            "schedules.optimizer.lr="
            "{type: Exponential, gamma: 1, every_epochs: 1, warmup_epochs: -1}",
            ["schedules.optimizer.lr.warmup_epochs", "too small", "-1"],
        ),
        ("backbone.name=resnet18.nosuch", ["backbone.name", "resnet18.nosuch"]),
        ("schedules.optimizer.lr.final=-3", ["schedules.optimizer.lr.final", "too small", "-3"]),
        (
            "schedules={method.memory.momentum: {type: Cosine, final: 3}}",
            ["schedules.method.memory.momentum.final", "out of range", "3"],
        ),
        ("backbone.in_chans=0", ["backbone.in_chans", "too small", "at least 1"]),
        ("optimizer.lr=-0.1", ["optimizer.lr", "too small", "-0.1"]),
        ("optimizer.lr=.nan", ["optimizer.lr", "not finite", "nan"]),
        ("optimizer.lr=.inf", ["optimizer.lr", "not finite", "inf"]),
        ("optimizer.momentum=2", ["optimizer.momentum", "out of range"]),
        ("optimizer={type: AdamW, lr: 1, betas: [0.9, 1]}", ["optimizer.betas", "out of range"]),
        (
            "optimizer={type: LARS, lr: 1, weight_decay: -1}",
            ["optimizer.weight_decay", "too small"],
        ),
        ("method.memory.type=[1]", ["method.memory.type", "no memory of this name"]),
    ],
)
def test_a_mistake_is_named_with_its_key_and_the_way_out(override, said):
    message = error_of(DIGITS, override)
    assert all(words in message for words in said), message


def test_a_block_may_have_a_base_of_its_own(tmp_path):
    write(tmp_path, "block.yaml", "type: P\nq: 1\nr: {s: 2}\n")
    text = "a: {b: {_base_: block.yaml, r: {s: 3}}}\nc: 4\n"
    read = config.load(write(tmp_path, "whole.yaml", text))
    assert read.data == {"a": {"b": {"type": "P", "q": 1, "r": {"s": 3}}}, "c": 4}
    assert read.origins["a.b.q"].endswith("block.yaml:2")
    assert read.origins["a.b.r.s"].endswith("whole.yaml:1")
    with pytest.raises(ConfigError, match=r"whole.yaml:1: a._base_: not a path"):
        config.load(write(tmp_path, "whole.yaml", "a: {_base_: 3}"))


def test_a_mistake_in_a_base_names_the_bases_file_and_line(tmp_path):
    base = write(tmp_path, "base.yaml", "seed: 0\nmethod:\n  type: Contrastiv\n")
    child = write(tmp_path, "child.yaml", "_base_: base.yaml\n")
    message = error_of(child)
    assert f"{base}:3" in message
    assert "nearest:  Contrastive" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", ["bad.yaml:3", "duplicate key"]),
        ("a:\n  1: x", ["bad.yaml:2", "not a string", "put quotes"]),
        ("a: [1", ["bad.yaml", "not YAML"]),
        ("- 1", ["bad.yaml", "not a config"]),
        ("a: &x [*x]", ["an alias that contains itself"]),
        ("_base_: goood.yaml", ["no such file", "nearest", "good.yaml"]),
        ("_base_: bad.yaml", ["cyclic bases", "bad.yaml -> bad.yaml"]),
        ("_base_: 3", ["_base_", "not a path"]),
    ],
)
def test_a_bad_file_is_refused_with_its_place(text, said, tmp_path):
    write(tmp_path, "good.yaml", "a: 1")
    message = error_of(write(tmp_path, "bad.yaml", text))
    assert all(words in message for words in said), message


def test_a_file_that_is_not_text_is_refused_by_its_name(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"a: \xff")
    assert all(words in error_of(tmp_path / "bad.yaml") for words in ("bad.yaml", "UTF-8"))


def test_a_missing_config_names_its_nearest_neighbour(tmp_path):
    write(tmp_path, "moco.yaml", "a: 1")
    assert "nearest:  " + str(tmp_path / "moco.yaml") in error_of(tmp_path / "mocco.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch ran']",
        "a: !!python/name:os.system ''",
        "method: {type: os.system}",
        "method: {type: ssl_zoo.methods.contrastive.Contrastive}",
        "custom_imports: {imports: [antigravity]}",
    ],
)
def test_a_config_runs_no_code_and_imports_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error_of(write(tmp_path, "evil.yaml", text))
    assert not (tmp_path / "ran").exists()
    assert "antigravity" not in sys.modules


def test_constructor_objections_carry_the_key():
    part = bind(
        BACKBONES, {"type": "Timm", "name": "resnet18", "options": {"layers": 3}}, "backbone"
    )
    with pytest.raises(ConfigError, match=r"backbone\.options\.layers: timm's resnet18"):
        part()


@pytest.mark.parametrize(
    ("block", "offered"),
    [
        ({"type": "ViTDecoder"}, {"in_features": 8}),  # as a head
        ({"type": "MLP"}, {"in_features": 8, "out_features": 4, "grid": (2, 2)}),  # as a decoder
    ],
)
def test_a_part_of_another_use_is_refused(block, offered):
    with pytest.raises(ConfigError, match="does not belong here") as caught:
        bind(HEADS, block, key="method.head")(**offered)
    assert caught.value.key == "method.head.type" and caught.value.found == block["type"]


def test_a_methods_objection_to_its_backbone_names_the_backbones_key_and_line(tmp_path):
    text = f"""
_base_: {ROOT / "configs" / "fashion_mnist" / "mae.yaml"}
data: {{dataset: {{type: Digits}}}}
backbone: {{options: {{fc_norm: true}}}}
"""
    cfg = config.load(write(tmp_path, "averaged.yaml", text))
    with pytest.raises(ConfigError) as caught:
        experiment.build_trainer(cfg, torch.device("cpu"), tmp_path)
    assert caught.value.key == "backbone.options"
    assert caught.value.where.endswith("averaged.yaml:4")


def test_lists_become_tuples_and_integers_floats():
    def call(*, pair: tuple[float, float], many: list[int], named: dict[str, Part[HEADS]]):
        """A constructor."""

    block = {"pair": [1, 2], "many": [3], "named": {"a": {"type": "Linear"}, "gone": None}}
    part = bind(call, block)
    assert part.kwargs["pair"] == (1.0, 2.0) and isinstance(part.kwargs["pair"][0], float)
    assert part.kwargs["many"] == [3] and list(part.kwargs["named"]) == ["a"]
    with pytest.raises(ConfigError, match=r"pair: value of the wrong type"):
        bind(call, {**block, "pair": [1, 2, 3]})
    with pytest.raises(ConfigError, match=r"many\[0\]: value of the wrong type"):
        bind(call, {**block, "many": ["x"]})


# Constraints.


def ranges(hint: Any, wrap=lambda value: value) -> Iterator[tuple[Range, type, Any]]:
    """(range, type of number, how to put a number where the hint wants it), nested ones too."""
    origin, args = get_origin(hint), get_args(hint)
    if hasattr(hint, "__metadata__"):
        for mark in hint.__metadata__:
            if isinstance(mark, Range):
                yield mark, args[0], wrap
        yield from ranges(args[0], wrap)
    elif origin is dict:
        yield from ranges(args[1], lambda value: wrap({"name": value}))
    elif origin is tuple and args[-1] is not Ellipsis:
        for i, arg in enumerate(args):  # the others are of any value within
            others = [next(inside(a), 0) for a in args]
            yield from ranges(arg, lambda value, i=i, o=others: wrap((*o[:i], value, *o[i + 1 :])))
    elif origin in (list, tuple):
        yield from ranges(args[0], lambda value: wrap([value]))
    else:
        for option in args if origin is not None else ():
            yield from ranges(option, wrap)


def inside(hint: Any) -> Iterator[float]:
    for limits, kind, _ in ranges(hint):
        yield kind(limits.low + 1 if math.isfinite(limits.low) else 0)


def just_outside(limits: Range, kind: type) -> list[float]:
    below = kind(limits.low) if math.isfinite(limits.low) else None
    above = kind(limits.high) if math.isfinite(limits.high) or limits.open_high else None
    if below is not None and not limits.open_low:
        below = below - 1 if kind is int else math.nextafter(below, -math.inf)
    if above is not None and not limits.open_high:
        above = above + 1 if kind is int else math.nextafter(above, math.inf)
    return [bound for bound in (below, above) if bound is not None]


def constructors() -> list:
    kinds = [kind for kind in vars(config).values() if isinstance(kind, config.Registry)]
    targets = [target for kind in kinds for target in kind.module_dict.values()]
    return [*targets, Data, TrainSettings, Checkpoints]


@pytest.mark.parametrize("target", constructors(), ids=lambda t: t.__name__)
def test_a_number_just_outside_its_range_is_refused_in_yaml_and_in_python(target):
    for name in of_yaml(target):
        hint = type_hints(target)[name]
        for limits, kind, wrap in ranges(hint):
            for number in just_outside(limits, kind):
                with pytest.raises(ConfigError) as caught:
                    convert(hint, wrap(number), name)
                assert caught.value.key.startswith(name), (name, number)
                with pytest.raises(ConfigError) as caught:
                    target(**{name: wrap(number)})
                assert caught.value.key.startswith(name), (name, number)


# Size.


def bomb(levels: int) -> str:
    """Each level holds the one before ten times: a few hundred bytes, 10^levels items."""
    lines = ["a0: &a0 [" + ", ".join(["x"] * 10) + "]"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text", [bomb(8), bomb(20), "seed: 0", "a: " + "[" * 500 + "]" * 500], ids=len
)
def test_a_file_that_grows_without_bound_is_refused_within_a_second(text, tmp_path):
    began = time.perf_counter()
    if text == "seed: 0":  # the same as an override
        with pytest.raises(ConfigError, match="more than 100,000 values"):
            config.load(
                write(tmp_path, "a.yaml", text), ["m={" + bomb(8).replace("\n", ", ") + "}"]
            )
    else:
        said = error_of(write(tmp_path, "bomb.yaml", text))
        assert "bomb.yaml" in said and ("100,000 values" in said or "nested too deep" in said)
    assert time.perf_counter() - began < 1


def test_ordinary_aliases_stand_for_what_they_name(tmp_path):
    text = "a: &x {b: [1, 2]}\nc: *x\nd: [*x, *x]"
    block = {"b": [1, 2]}
    data = config.load(write(tmp_path, "a.yaml", text)).data
    assert data == {"a": block, "c": block, "d": [block, block]}


# The package.


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train"]], ids=str)
def test_help_imports_no_torch(words):
    code = f"""
import sys
from ssl_zoo.cli import main
try:
    main({words})
except SystemExit:
    pass
sys.exit(bool({{"torch", "timm", "numpy", "faiss"}} & sys.modules.keys()))
"""
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
    )


def test_no_public_function_shares_a_modules_name():
    names = [m.name for m in pkgutil.walk_packages(ssl_zoo.__path__, "ssl_zoo.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    short = {name.rpartition(".")[2] for name in names}
    functions = {
        f"{module.__name__}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }
    assert not [name for name in functions if name.rpartition(".")[2] in short]
