"""What every method must do, whatever its equation is.

A config is built as it is, with a small backbone and noise for images, and put through training's
own code.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_zoo import config, experiment
from ssl_zoo.backbones import OWED, Timm, fits
from ssl_zoo.config import BACKBONES, METHODS, OPTIMIZERS, ConfigError, Part, bind
from ssl_zoo.config.constraints import SCHEDULED, marked
from ssl_zoo.core import Batch, Encoder, Family, MomentumEncoder
from ssl_zoo.engine.precision import autocast
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.evaluation.features import extract
from ssl_zoo.memory import Ring
from ssl_zoo.system import distributed
from ssl_zoo.testing.check import Check, each
from ssl_zoo.testing.ranks import on_ranks

CPU = torch.device("cpu")
SAMPLES = 96
Override = str | tuple[str, Any]


def method_checks(
    config: str | Path, settings: Sequence[Override] = (), in_use: Sequence[Override] = ()
) -> list[Check]:
    """Checks of the method that a config trains, with the parts that it has there.

    Its backbone (if it is timm's) and its data are exchanged for small ones, and its evaluations
    are left out.

    Args:
        config: a file, or a recipe's name.
        settings: overrides, of numbers that do not go with 96 images and a batch of 7, say.
        in_use: further ones, where a number that may be scheduled would else have nothing to do.
    """
    recipe = Recipe(str(config), tuple(settings), tuple(in_use))
    return each(CHECKS, recipe, recipe.name)


@cache
def resolved(path: str) -> dict[str, Any]:
    return config.load(path).data


@dataclass(frozen=True)
class Recipe:
    """A config made small: a step takes milliseconds."""

    config: str
    settings: tuple[Override, ...] = ()
    in_use: tuple[Override, ...] = ()
    device: torch.device = CPU

    @property
    def name(self) -> str:
        path = config.find(self.config)
        return path.stem if path == Path(self.config) else self.config

    @property
    def block(self) -> dict[str, Any]:
        """Of the method."""
        return resolved(self.config)["method"]

    def make(
        self,
        folder: Path,
        batch_size: int = 12,
        norm: bool = True,
        groups: int = 1,
        seed: int = 0,
        compile: bool = False,
        changed: Sequence[Override] = (),
    ) -> Trainer:
        """A run that is ready for its first step."""
        cfg = self.small(batch_size, norm, groups, seed, compile, changed)
        folder.mkdir(exist_ok=True)
        trainer = experiment.build_trainer(cfg, self.device, folder)
        trainer.method.train()
        trainer.method.before_epoch(trainer.data.clean_share(self.device))
        return trainer

    def small(
        self,
        batch_size: int = 12,
        norm: bool = True,
        groups: int = 1,
        seed: int = 0,
        compile: bool = False,
        changed: Sequence[Override] = (),
    ) -> config.Config:
        """The config of such a run."""
        data = resolved(self.config)
        overrides = [
            ("seed", seed),
            ("data.dataset", noise(data)),
            ("data.batch_size", batch_size),
            ("backbone", small_backbone(data["backbone"], norm, groups)),
            ("evaluations", None),
            ("evaluations", {}),
            ("best", None),
            ("train.precision", "fp32"),
            ("train.steps", None),
            ("train.epochs", 400),  # more than what begins a run takes
            ("train.compile", compile),
            *self.settings,
            *changed,
        ]
        return config.load(self.config, overrides)


def noise(data: Mapping[str, Any]) -> dict[str, Any]:
    """Images as large as what the views cut out of them, of as many channels as the backbone takes.

    Views without a `size` are of 32 pixels, unless the settings name `data.dataset.size`.
    """
    block = {"type": "Synthetic", "num_samples": SAMPLES}
    block["channels"] = data["backbone"].get("in_chans", 3)
    if sizes := [*_sizes(data["data"]["views"])]:
        block["size"] = max(sizes)
    return block


def _sizes(block: Any) -> Iterator[int]:
    if isinstance(block, Mapping):
        for name, value in block.items():
            if name == "size" and isinstance(value, int):
                yield value
            yield from _sizes(value)
    elif isinstance(block, list):
        for item in block:
            yield from _sizes(item)


def small_backbone(backbone: dict[str, Any], norm: bool, groups: int) -> dict[str, Any]:
    """The same kind of backbone, as small as it gets; without BatchNorm unless `norm`.

    One that is somebody's own is left as it is.
    """
    if "of" in backbone:
        return backbone | {"of": small_backbone(backbone["of"], norm, groups)}
    if backbone["type"] != "Timm":
        return backbone
    if masks(config.dump(backbone)):
        options = backbone.get("options", {}) | {"embed_dim": 32, "depth": 2, "num_heads": 2}
        return backbone | {"options": options, "bn_groups": groups}
    channels = backbone.get("in_chans", 3)
    return {"type": "TinyNet", "in_chans": channels, "norm": norm, "bn_groups": groups}


@cache  # tried out on a network each time
def masks(block: str) -> bool:
    """Whether timm's network of this block, in YAML, is a ViT that takes masked patches."""
    block = config.loads(block, "backbone").data
    return fits(Part(Timm, name=block["name"]), "tokens")


def batch_of(trainer: Trainer, step: int = 0) -> Batch:
    return next(trainer.data.batches(step, step + 1, trainer.device))


def step(trainer: Trainer, number: int = 0) -> dict[str, Tensor]:
    out = trainer.train_step(batch_of(trainer, number))
    trainer.step += 1
    return out


def gradients(trainer: Trainer, batch: Batch) -> tuple[Tensor, dict[str, Tensor | None]]:
    loss = trainer.parallel(batch)["loss"]
    loss.backward()
    named = trainer.method.named_parameters()
    return loss.detach(), {n: p.grad for n, p in named if p.requires_grad}


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    return [n for n in a if not torch.equal(a[n].nan_to_num(), b[n].nan_to_num())]


def finite(loss: Tensor) -> None:
    assert loss.dim() == 0 and loss.isfinite(), f"'loss' is one finite number, found {loss}"


def it_names_its_family_and_what_it_needs(recipe: Recipe, folder: Path) -> None:
    kind = METHODS.get(recipe.block["type"])
    assert kind.family in get_args(Family), f"family {kind.family!r} is none of {get_args(Family)}"
    backbone = bind(BACKBONES, resolved(recipe.config)["backbone"], "backbone")
    known = kind.needs in OWED or fits(backbone, kind.needs)
    assert known, f"needs {kind.needs!r} is none of {', '.join(OWED)}, nor a method of its backbone"


def the_loss_is_finite_and_every_trainable_parameter_gets_a_gradient(
    recipe: Recipe, folder: Path
) -> None:
    trainer = recipe.make(folder)
    loss, grads = gradients(trainer, batch_of(trainer))
    finite(loss)
    without = [n for n, g in grads.items() if g is None or not g.isfinite().all()]
    assert not without, f"no gradient, or none that is finite: {', '.join(without)}"
    of_backbone = [g for n, g in grads.items() if n.startswith("encoder.backbone.")]
    assert any(g.any() for g in of_backbone), "encoder.backbone is not trained"
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    trainable = {id(p) for p in trainer.method.parameters() if p.requires_grad}
    assert optimized == trainable, "the optimizer does not have the trainable parameters"


def one_seed_gives_one_result_and_another_seed_another(recipe: Recipe, folder: Path) -> None:
    first, again, other = (recipe.make(folder, seed=s) for s in (3, 3, 4))
    for trainer in (first, again, other):
        torch.manual_seed(0)
        for number in range(2):
            finite(step(trainer, number)["loss"])
    changed = differing(state(first.method), state(again.method))
    assert not changed, f"another result from the same seed: {', '.join(changed)}"
    assert first.method.steps == 2, "after_step begins with super().after_step(batch, out)"
    backbones = [state(t.method.encoder.backbone) for t in (first, other)]
    assert differing(*backbones), "two seeds give the same backbone"


def one_batch_is_learned_while_its_targets_stand_still(recipe: Recipe, folder: Path) -> None:
    trainer = recipe.make(folder)
    batch = batch_of(trainer)
    parameters = [p for p in trainer.method.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    losses = []
    for _ in range(40):
        loss = trainer.method(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    # Against a queue's random keys there is little to gain.
    queued = any(isinstance(module, Ring) for module in trainer.method.modules())
    least = (0.005 if queued else 0.05) * abs(first)
    assert last < first - least, f"40 steps on one batch bring the loss from {first} to {last}"


def a_checkpoint_brings_everything_back_to_the_bit(recipe: Recipe, folder: Path) -> None:
    trainer = recipe.make(folder)
    for number in range(2):
        step(trainer, number)
    trainer.hooks["checkpoints"].save(trainer)
    resumed = recipe.make(folder, seed=0)
    assert resumed.resume()
    for number in (1, 2):
        changed = differing(state(trainer.method), state(resumed.method))
        assert not changed, f"{number - 1} steps after a resume: {', '.join(changed)}"
        if number == 1:
            rng = torch.get_rng_state()
            step(trainer, 2)
            torch.set_rng_state(rng)
            finite(step(resumed, 2)["loss"])


def what_has_a_row_for_each_image_is_declared(recipe: Recipe, folder: Path) -> None:
    fewer, more = (
        recipe.make(folder, changed=[f"data.dataset.num_samples={n}"]).method
        for n in (SAMPLES, SAMPLES + 7)
    )
    declared = {
        f"{prefix}.{name}".removeprefix("."): [dim]
        for prefix, module in fewer.named_modules()
        for name, dim in getattr(module, "per_sample", {}).items()
    }
    found = longer(fewer.state_dict(), more.state_dict())
    assert found == declared, f"per_sample: declared {declared}, found {found}"


def longer(fewer: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Which dimensions differ, of those tensors that differ in shape."""
    pairs = zip(fewer.items(), more.values(), strict=True)
    dims = {n: [d for d in range(a.dim()) if a.shape[d] != b.shape[d]] for (n, a), b in pairs}
    return {name: found for name, found in dims.items() if found}


def targets_get_no_gradient_and_are_in_the_checkpoint(recipe: Recipe, folder: Path) -> None:
    method = recipe.make(folder).method
    for name, module in method.named_modules():
        if isinstance(module, MomentumEncoder):
            assert not any(p.requires_grad for p in module.parameters()), f"{name} is trained"
            lacking = {f"{name}.{key}" for key in module.state_dict()} - set(method.state_dict())
            assert not lacking, f"not in the checkpoint: {', '.join(sorted(lacking))}"
    # What a method keeps beside its modules is not in the checkpoint.
    loose = [n for m in method.modules() for n, v in vars(m).items() if isinstance(v, nn.Parameter)]
    assert not loose, f"not in the checkpoint: {', '.join(loose)}"


def evaluation_leaves_the_method_as_it_was(recipe: Recipe, folder: Path) -> None:
    trainer = recipe.make(folder)
    out = step(trainer)
    method, before, rng = trainer.method, state(trainer.method), torch.get_rng_state()
    modes = {name: module.training for name, module in method.named_modules()}
    networks, backbone = method.networks(), method.encoder.backbone
    assert networks["backbone"] is backbone, "networks()['backbone'] is encoder.backbone"
    assert next(iter(networks)) == method.evaluated, f"networks() begins with {method.evaluated}"
    for name, network in networks.items():
        same = method.get_submodule(trainer.networks[name]) is network
        assert same, f"networks()[{name!r}] is no module of the method's own"
        clean = trainer.data.splits.clean_batches("test", trainer.device, 32)
        width = extract(network, clean, trainer.device).features.shape[1]
        assert width == backbone.num_features, f"{name} gives {width} features"
    for observer in trainer.hooks["metrics"].observers.values():
        observer.after_step(method, batch_of(trainer), out)
        scalars = observer.scalars(method, trainer.data.labels)
        assert all(isinstance(value, float) for value in scalars.values()), f"{scalars}: no floats"
    changed = differing(before, state(method))
    assert not changed, f"telemetry or an evaluation changes {', '.join(changed)}"
    assert torch.equal(rng, torch.get_rng_state()), "telemetry or an evaluation draws numbers"
    assert modes == {name: module.training for name, module in method.named_modules()}, (
        "telemetry or an evaluation changes a module's mode"
    )


def bf16_agrees_with_fp32(recipe: Recipe, folder: Path) -> None:
    trainer = recipe.make(folder)
    method, losses = trainer.method, []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        with autocast(trainer.device, precision):
            losses.append(copy.deepcopy(method)(batch_of(trainer))["loss"])
    assert losses[1].dtype == torch.float32, f"a loss of {losses[1].dtype} under autocast"
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.02)


def a_batch_that_divides_nothing_trains(recipe: Recipe, folder: Path) -> None:
    trainer = recipe.make(folder, batch_size=7)
    for number in range(3):
        finite(step(trainer, number)["loss"])


def a_last_batch_of_one_is_refused_or_trains(recipe: Recipe, folder: Path) -> None:
    changed = ["data.drop_last=false"]
    try:
        trainer = recipe.make(folder, batch_size=SAMPLES - 1, norm=False, changed=changed)
    except ConfigError as error:
        refused = error.key == "data.batch_size" and "data.drop_last=true" in error.expected
        assert refused, f"refused for another reason: {error}"
        return
    batch = batch_of(trainer, 1)
    loss, grads = gradients(trainer, batch)
    assert len(batch.index) == 1
    trained = loss.isfinite() and any(g is not None and g.any() for g in grads.values())
    assert trained, "one image alone has no loss, or no gradient: see `Method.least_images`"


def scheduled(part: Part, key: str = "method") -> Iterator[tuple[str, float]]:
    """Dotted names and values of all numbers that schedules may move in a method and its parts."""
    for name, value in part.arguments().items():
        if isinstance(value, Part):
            yield from scheduled(value, f"{key}.{name}")
        elif name in marked(part.target, SCHEDULED) and value is not None:
            yield f"{key}.{name}", value


def every_scheduled_value_is_an_attribute_that_training_reads(recipe: Recipe, folder: Path) -> None:
    def after_a_step(name: str = "", changed_to: float = 0.0) -> dict[str, Tensor]:
        trainer = recipe.make(folder, changed=recipe.in_use)
        if name:
            *path, attribute = name.split(".")
            vars(reduce(getattr, path, trainer))[attribute] = changed_to
        torch.manual_seed(0)
        loss = step(trainer)["loss"]
        return state(trainer.method) | {"loss": loss}

    if not (declared := dict(scheduled(bind(METHODS, recipe.block)))):
        return
    method, plain = recipe.make(folder).method, after_a_step()
    for name, value in declared.items():
        *path, attribute = name.split(".")
        kept = vars(reduce(getattr, path[1:], method)).get(attribute)
        assert type(kept) is float and kept == value, f"{name} is no attribute of that name"
        moved = differing(after_a_step(name, value / 2 or 0.5), plain)
        assert moved, f"{name} is not read in a step"


def a_schedule_moves_every_value_that_is_declared(recipe: Recipe, folder: Path) -> None:
    values = dict(scheduled(bind(METHODS, recipe.block)))
    values |= dict(scheduled(bind(OPTIMIZERS, resolved(recipe.config)["optimizer"]), "optimizer"))
    finals = {name: value / 2 or 0.5 for name, value in values.items()}
    schedules = {
        name: {"type": "Linear", "final": final, "over_epochs": 1} for name, final in finals.items()
    }
    trainer = recipe.make(folder, changed=[("schedules", None), ("schedules", schedules)])
    hook, bases = trainer.hooks["schedules"], trainer.hooks["schedules"].current(trainer)
    for number in range(2):
        hook.before_step(trainer)
        step(trainer, number)
    part = 1 / trainer.data.steps_per_epoch
    for name, value in hook.current(trainer).items():
        expected = bases[name] + part * (finals[name] - bases[name])
        assert abs(value - expected) <= 1e-6 * abs(expected), f"{name}: {value}, not {expected}"


def compiled_encoders_train_as_plain_ones(recipe: Recipe, folder: Path) -> None:
    # Traced, differentiated and functionalized as for real; only the C++ compiler is left out.
    real = nn.Module.compile

    def traced(module: nn.Module, **settings) -> None:
        real(module, backend="aot_eager", **settings)

    torch._dynamo.reset()
    plain = recipe.make(folder)
    if not any(isinstance(module, Encoder) for module in plain.method.modules()):
        try:
            recipe.make(folder, compile=True)
        except ConfigError as error:
            assert "no Encoder to compile" in str(error)
            return
        raise AssertionError("train.compile is taken, and there is no Encoder to compile")
    losses = []
    with mock.patch.object(nn.Module, "compile", traced):
        for trainer in (plain, recipe.make(folder, compile=True)):
            torch.manual_seed(0)
            losses.append(torch.stack([step(trainer, number)["loss"] for number in range(2)]))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)


def two_processes_equal_one_in_loss_gradient_and_state(recipe: Recipe, folder: Path) -> None:
    one = two_steps(recipe, folder)
    whole = experiment.parse(recipe.small())
    modules = sorted(set(modules_of(whole.arguments())))
    two = on_ranks(2, two_steps, recipe, folder, modules)[0]
    torch.testing.assert_close(two[0], one[0], rtol=1e-4, atol=1e-5)
    for ours, whole in zip(two[1:], one[1:], strict=True):
        assert ours.keys() == whole.keys(), f"{ours.keys() ^ whole.keys()} on one alone"
        for name, value in whole.items():
            scale = value.abs().max().item() if value.is_floating_point() and value.numel() else 0
            torch.testing.assert_close(
                ours[name],
                value,
                rtol=1e-4,
                atol=1e-5 + 1e-4 * scale,
                equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def modules_of(values: Mapping[str, Any]) -> Iterator[str]:
    """Where the classes of all parts among the values, and of their own parts, are from."""
    for value in values.values():
        if isinstance(value, Part):
            yield value.target.__module__
            yield from modules_of(value.arguments())
        elif isinstance(value, Mapping):
            yield from modules_of(value)


def two_steps(
    recipe: Recipe, folder: Path, modules: Sequence[str] = ()
) -> tuple[list[Tensor], dict, dict]:
    """Losses, the first step's gradients, and buffers, of the whole batch on one or two ranks.

    Two ranks normalize apart, as two groups on one rank do. `modules` are imported, as they
    register what the config names.
    """
    for name in modules:
        importlib.import_module(name)
    trainer = recipe.make(folder, norm=False, groups=1 if distributed.world() > 1 else 2)
    losses, kept = [], None
    for number in range(2):
        torch.manual_seed(number)  # what is drawn for the batch as a whole
        batch = batch_of(trainer, number)
        out = trainer.parallel(batch)
        out["loss"].backward()
        losses.append(distributed.mean(out["loss"].detach()))
        named = trainer.method.named_parameters()
        kept = kept or {n: p.grad.clone() for n, p in named if p.requires_grad}
        trainer.method.after_backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.method.after_step(batch, {n: v.detach() for n, v in out.items()})
    # Left out: each of two ranks keeps its own, of its own rows.
    of_batchnorm = {
        f"{name}.{buffer}"
        for name, module in trainer.method.named_modules()
        if isinstance(module, _BatchNorm)
        for buffer, _ in module.named_buffers(recurse=False)
    }
    buffers = {n: b for n, b in trainer.method.named_buffers() if n not in of_batchnorm}
    return losses, kept, buffers


CHECKS = (
    it_names_its_family_and_what_it_needs,
    the_loss_is_finite_and_every_trainable_parameter_gets_a_gradient,
    one_seed_gives_one_result_and_another_seed_another,
    one_batch_is_learned_while_its_targets_stand_still,
    a_checkpoint_brings_everything_back_to_the_bit,
    what_has_a_row_for_each_image_is_declared,
    targets_get_no_gradient_and_are_in_the_checkpoint,
    evaluation_leaves_the_method_as_it_was,
    bf16_agrees_with_fp32,
    a_batch_that_divides_nothing_trains,
    a_last_batch_of_one_is_refused_or_trains,
    every_scheduled_value_is_an_attribute_that_training_reads,
    a_schedule_moves_every_value_that_is_declared,
    compiled_encoders_train_as_plain_ones,
    two_processes_equal_one_in_loss_gradient_and_state,
)
