"""What every method must do. A method is tested by being registered: the kit finds its config.

A config of configs/fashion_mnist (or configs/cifar10, for methods that need colour) is built as it
is, with a small backbone and noise for images, and put through training's own code.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cache, reduce
from pathlib import Path
from typing import get_args

import pytest
import tiny  # noqa: F401  (registers TinyNet)
import torch
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_zoo import config, experiment
from ssl_zoo.backbones import FITS, Timm, fits
from ssl_zoo.config import METHODS, OPTIMIZERS, ConfigError, Part, bind
from ssl_zoo.config.constraints import SCHEDULED, marked
from ssl_zoo.core import Batch, Encoder, Family, MomentumEncoder
from ssl_zoo.engine.precision import autocast
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.evaluation.features import extract
from ssl_zoo.memory import Ring
from ssl_zoo.system import distributed

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CPU = torch.device("cpu")
SAMPLES = 96

# Numbers that do not go with a set of 96 images, a batch of 7 or a ViT of two blocks.
SMALLER: dict[str, list[str]] = {
    "Colorization": ["method.hidden_features=16"],
    "DeepCluster": ["method.clusters=8", "method.pca=4"],
    "DeepClusterV2": ["method.clusters=[8, 9, 10]"],
    "ODC": ["method.clusters=8", "method.min_cluster=4", "method.centroid_interval=2"],
    "SwAV": ["method.queue_size=8", "method.queue_from_step=0", "method.frozen_steps=0"],
    "WMSE": ["method.part=4", "method.head.out_features=2"],
}
# Arguments without which a scheduled number would have nothing to do.
IN_USE: dict[str, list[str]] = {"DINOv2": ["method.centering=mean"]}


@cache
def recipes() -> dict[str, dict]:
    """Resolved configs by 'folder/name'; of cifar10 those of methods that fashion_mnist lacks."""
    found, types = {}, set()
    for folder in ("fashion_mnist", "cifar10"):
        here = {p: config.load(p).data for p in sorted((CONFIGS / folder).glob("*.yaml"))}
        new = {p: data for p, data in here.items() if data["method"]["type"] not in types}
        types |= {data["method"]["type"] for data in new.values()}
        found |= {f"{folder}/{p.stem}": data for p, data in new.items()}
    return found


def small(backbone: dict, norm: bool, groups: int) -> dict:
    """The same kind of backbone, as small as it gets; without BatchNorm unless `norm`."""
    if "of" in backbone:
        return backbone | {"of": small(backbone["of"], norm, groups)}
    if fits(Part(Timm, name=backbone["name"]), "tokens"):
        options = backbone.get("options", {}) | {"embed_dim": 32, "depth": 2, "num_heads": 2}
        return backbone | {"options": options, "bn_groups": groups}
    channels = backbone.get("in_chans", 3)
    return {"type": "TinyNet", "in_chans": channels, "norm": norm, "bn_groups": groups}


def make(
    recipe: str,
    folder: Path,
    batch_size: int = 12,
    norm: bool = True,
    groups: int = 1,
    seed: int = 0,
    compile: bool = False,
    changed: list[str] = (),
) -> Trainer:
    data = recipes()[recipe]
    gray = recipe.startswith("fashion_mnist")
    dataset = {"type": "Synthetic", "num_samples": SAMPLES}
    dataset |= {"size": 28, "channels": 1} if gray else {"size": 32, "channels": 3}
    overrides = [
        ("seed", seed),
        ("data.dataset", dataset),
        ("data.batch_size", batch_size),
        ("backbone", small(data["backbone"], norm, groups)),
        ("evaluations.knn", None),
        ("train.precision", "fp32"),
        ("train.epochs", 400),  # more than what begins a run takes
        ("train.compile", compile),
        *SMALLER.get(data["method"]["type"], []),
        *changed,
    ]
    folder.mkdir(exist_ok=True)
    cfg = config.load(CONFIGS / f"{recipe}.yaml", overrides)
    trainer = experiment.build_trainer(cfg, CPU, folder)
    trainer.method.train()
    trainer.method.before_epoch(trainer.data.clean_share(CPU))
    return trainer


def batch_of(trainer: Trainer, step: int = 0) -> Batch:
    return next(trainer.data.batches(step, step + 1, CPU))


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


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    changed = [n for n in a if not torch.equal(a[n].nan_to_num(), b[n].nan_to_num())]
    assert not changed


@pytest.mark.parametrize("name", sorted(METHODS.module_dict))
def test_a_method_cites_its_paper_names_its_family_and_has_a_config(name):
    kind = METHODS.module_dict[name]
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", kind.__doc__)
    assert kind.family in get_args(Family)
    assert kind.needs in FITS
    configured = {data["method"]["type"] for data in recipes().values()}
    assert name in configured, f"no config in configs/fashion_mnist or cifar10 has type: {name}"


every_recipe = pytest.mark.parametrize("recipe", recipes())


@every_recipe
def test_the_loss_is_finite_and_every_trainable_parameter_gets_a_gradient(recipe, tmp_path):
    trainer = make(recipe, tmp_path)
    loss, grads = gradients(trainer, batch_of(trainer))
    assert loss.dim() == 0 and loss.isfinite()
    assert not [n for n, g in grads.items() if g is None or not g.isfinite().all()]
    of_backbone = [g for n, g in grads.items() if n.startswith("encoder.backbone.")]
    assert any(g.any() for g in of_backbone)
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in trainer.method.parameters() if p.requires_grad}


@every_recipe
def test_one_seed_gives_one_result_and_another_seed_another(recipe, tmp_path):
    first, again, other = (make(recipe, tmp_path, seed=s) for s in (3, 3, 4))
    for trainer in (first, again, other):
        torch.manual_seed(0)
        for number in range(2):
            out = step(trainer, number)
        assert out["loss"].isfinite()
    assert_same(state(first.method), state(again.method))
    assert first.method.steps == 2, "after_step begins with super().after_step(batch, out)"
    backbones = [state(t.method.encoder.backbone) for t in (first, other)]
    assert any(not torch.equal(a, b) for a, b in zip(*map(dict.values, backbones), strict=True))


@every_recipe
def test_one_batch_is_learned_while_its_targets_stand_still(recipe, tmp_path):
    trainer = make(recipe, tmp_path)
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
    assert last < first - (0.005 if queued else 0.05) * abs(first)


@every_recipe
def test_a_checkpoint_brings_everything_back_to_the_bit(recipe, tmp_path):
    trainer = make(recipe, tmp_path)
    for number in range(2):
        step(trainer, number)
    trainer.hooks["checkpoints"].save(trainer)
    resumed = make(recipe, tmp_path, seed=0)
    assert resumed.resume()
    assert_same(state(trainer.method), state(resumed.method))
    rng = torch.get_rng_state()
    step(trainer, 2)
    torch.set_rng_state(rng)
    step(resumed, 2)
    assert_same(state(trainer.method), state(resumed.method))


@every_recipe
def test_what_has_a_row_for_each_image_is_declared(recipe, tmp_path):
    fewer, more = (
        make(recipe, tmp_path, changed=[f"data.dataset.num_samples={n}"]).method
        for n in (SAMPLES, SAMPLES + 7)
    )
    pairs = zip(fewer.state_dict().items(), more.state_dict().values(), strict=True)
    differing = {
        name: [d for d in range(a.dim()) if a.shape[d] != b.shape[d]] for (name, a), b in pairs
    }
    declared = {
        f"{prefix}.{name}".removeprefix("."): [dim]
        for prefix, module in fewer.named_modules()
        for name, dim in getattr(module, "per_sample", {}).items()
    }
    assert {name: dims for name, dims in differing.items() if dims} == declared


@every_recipe
def test_targets_get_no_gradient_and_are_in_the_checkpoint(recipe, tmp_path):
    method = make(recipe, tmp_path).method
    modules = dict(method.named_modules())
    for name, module in modules.items():
        if isinstance(module, MomentumEncoder):
            assert not any(p.requires_grad for p in module.parameters())
            assert {f"{name}.{key}" for key in module.state_dict()} <= set(method.state_dict())
    # What a method keeps beside its modules is not in the checkpoint.
    loose = [n for m in method.modules() for n, v in vars(m).items() if isinstance(v, nn.Parameter)]
    assert not loose


@every_recipe
def test_evaluation_leaves_the_method_as_it_was(recipe, tmp_path):
    trainer = make(recipe, tmp_path)
    out = step(trainer)
    method, before, rng = trainer.method, state(trainer.method), torch.get_rng_state()
    modes = {name: module.training for name, module in method.named_modules()}
    networks, backbone = method.networks(), method.encoder.backbone
    assert networks["backbone"] is backbone and next(iter(networks)) == method.evaluated
    for name, network in networks.items():
        assert method.get_submodule(trainer.networks[name]) is network
        found = extract(network, trainer.data.splits.clean_batches("test", CPU, 32), CPU)
        assert found.features.shape[1] == backbone.num_features
    for observer in trainer.hooks["metrics"].observers.values():
        observer.after_step(method, batch_of(trainer), out)
        scalars = observer.scalars(method, trainer.data.labels)
        assert all(isinstance(value, float) for value in scalars.values())
    assert_same(before, state(method))
    assert torch.equal(rng, torch.get_rng_state())
    assert modes == {name: module.training for name, module in method.named_modules()}


@every_recipe
def test_bf16_agrees_with_fp32(recipe, tmp_path):
    trainer = make(recipe, tmp_path)
    method, losses = trainer.method, []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        with autocast(CPU, precision):
            losses.append(copy.deepcopy(method)(batch_of(trainer))["loss"])
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.02)


@every_recipe
def test_a_batch_that_divides_nothing_trains(recipe, tmp_path):
    trainer = make(recipe, tmp_path, batch_size=7)
    for number in range(3):
        assert step(trainer, number)["loss"].isfinite()


@every_recipe
def test_a_last_batch_of_one_is_refused_or_trains(recipe, tmp_path):
    changed = ["data.drop_last=false"]
    try:
        trainer = make(recipe, tmp_path, batch_size=SAMPLES - 1, norm=False, changed=changed)
    except ConfigError as error:
        assert error.key == "data.batch_size" and "data.drop_last=true" in error.expected
        return
    batch = batch_of(trainer, 1)
    loss, grads = gradients(trainer, batch)
    assert len(batch.index) == 1 and loss.isfinite(), "see `least_images`"
    assert any(g is not None and g.any() for g in grads.values()), "see `least_images`"


def scheduled(part: Part, key: str = "method") -> Iterator[tuple[str, float]]:
    """Dotted names and values of all numbers that schedules may move in a method and its parts."""
    for name, value in part.arguments().items():
        if isinstance(value, Part):
            yield from scheduled(value, f"{key}.{name}")
        elif name in marked(part.target, SCHEDULED) and value is not None:
            yield f"{key}.{name}", value


@every_recipe
def test_every_scheduled_value_is_an_attribute_that_training_reads(recipe, tmp_path):
    block = recipes()[recipe]["method"]

    def after_a_step(name: str = "", changed_to: float = 0.0) -> dict[str, Tensor]:
        trainer = make(recipe, tmp_path, changed=IN_USE.get(block["type"], []))
        if name:
            *path, attribute = name.split(".")
            vars(reduce(getattr, path, trainer))[attribute] = changed_to
        torch.manual_seed(0)
        loss = step(trainer)["loss"]
        return state(trainer.method) | {"loss": loss}

    method, plain = make(recipe, tmp_path).method, after_a_step()
    for name, value in scheduled(bind(METHODS, block)):
        *path, attribute = name.split(".")
        kept = vars(reduce(getattr, path[1:], method)).get(attribute)
        assert type(kept) is float and kept == value, f"{name} is no attribute of that name"
        other = after_a_step(name, value / 2 or 0.5)
        assert any(not torch.equal(other[n].nan_to_num(), plain[n].nan_to_num()) for n in plain), (
            f"{name} is not read in a step"
        )


@every_recipe
def test_a_schedule_moves_every_value_that_is_declared(recipe, tmp_path):
    data = recipes()[recipe]
    values = dict(scheduled(bind(METHODS, data["method"])))
    values |= dict(scheduled(bind(OPTIMIZERS, data["optimizer"]), "optimizer"))
    finals = {name: value / 2 or 0.5 for name, value in values.items()}
    schedules = {
        name: {"type": "Linear", "final": final, "over_epochs": 1} for name, final in finals.items()
    }
    trainer = make(recipe, tmp_path, changed=[("schedules", None), ("schedules", schedules)])
    hook, bases = trainer.hooks["schedules"], trainer.hooks["schedules"].current(trainer)
    for number in range(2):
        hook.before_step(trainer)
        step(trainer, number)
    part = 1 / trainer.data.steps_per_epoch
    for name, value in hook.current(trainer).items():
        assert value == pytest.approx(bases[name] + part * (finals[name] - bases[name])), name


@every_recipe
def test_compiled_encoders_train_as_plain_ones(recipe, tmp_path, monkeypatch):
    # Traced, differentiated and functionalised as for real; only the C++ compiler is left out.
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda m, **k: real(m, backend="aot_eager", **k))
    torch._dynamo.reset()
    plain = make(recipe, tmp_path)
    if not any(isinstance(module, Encoder) for module in plain.method.modules()):
        with pytest.raises(ConfigError, match="no Encoder to compile"):
            make(recipe, tmp_path, compile=True)
        return
    losses = []
    for trainer in (plain, make(recipe, tmp_path, compile=True)):
        torch.manual_seed(0)
        losses.append(torch.stack([step(trainer, number)["loss"] for number in range(2)]))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)


def two_steps(recipe: str, folder: Path) -> tuple[list[Tensor], dict, dict]:
    """Losses, the first step's gradients, and buffers, of the whole batch on one or two ranks.

    Two ranks normalise apart, as two groups on one rank do.
    """
    torch.set_num_threads(1)
    distributed_groups = 1 if distributed.world() > 1 else 2
    trainer = make(recipe, folder, norm=False, groups=distributed_groups)
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


@every_recipe
def test_two_processes_equal_one_in_loss_gradient_and_state(recipe, tmp_path):
    one = two_steps(recipe, tmp_path)
    two = on_ranks(2, two_steps, recipe, tmp_path)[0]
    torch.testing.assert_close(two[0], one[0], rtol=1e-4, atol=1e-5)
    for ours, whole in zip(two[1:], one[1:], strict=True):
        assert ours.keys() == whole.keys()
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
