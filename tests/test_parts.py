"""Backbones, heads, split BatchNorm, the momentum encoder, random numbers, listing."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import timm
import torch
from tiny import TinyNet
from torch import nn
from torch.nn import functional as F

from ssl_zoo import (
    config,
    experiment,  # noqa: F401
    heads,
)
from ssl_zoo.backbones import Timm
from ssl_zoo.cli.list_command import KINDS
from ssl_zoo.config import HEADS, METHODS, ConfigError, Part, Registry, bind
from ssl_zoo.core import Encoder, MomentumEncoder
from ssl_zoo.heads import MLP, Linear
from ssl_zoo.memory import MoCoQueue
from ssl_zoo.methods.byol import BYOL
from ssl_zoo.methods.moco_v3 import MoCoV3
from ssl_zoo.methods.nnclr import NNCLR
from ssl_zoo.methods.simsiam import SimSiam
from ssl_zoo.ops.batchnorm import split_batchnorm
from ssl_zoo.ops.modes import eval_mode
from ssl_zoo.system import rng

# Backbones.


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        ("resnet26d", 64),
        ("mobilenetv3_small_050", 64),
        ("vit_tiny_patch16_224", 224),
        ("convnext_atto", 64),
        ("efficientnet_b0", 64),
    ],
)
def test_timm_models_give_pooled_features_of_the_width_they_state(name, size):
    backbone = Timm(name=name, in_chans=1).eval()
    assert backbone(torch.randn(2, 1, size, size)).shape == (2, backbone.num_features)


@pytest.mark.parametrize("name", ["resnet18", "resnet26d"])
def test_small_images_keep_their_resolution_through_the_stem(name):
    backbone = Timm(name=name, in_chans=3, small_images=True)
    shapes = []
    backbone.model.layer1.register_forward_pre_hook(
        lambda _, inputs: shapes.append(inputs[0].shape[2:])
    )
    backbone(torch.randn(2, 3, 32, 32))
    assert shapes == [(32, 32)]


def test_a_resnet10_of_half_width_comes_from_options():
    options = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}
    backbone = Timm(name="resnet18", options=options)
    assert backbone.num_features == 256
    assert (
        sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in backbone.modules()) == 8
    )


def test_what_timm_does_not_take_is_said():
    with pytest.raises(ConfigError, match="small_images: vit_tiny_patch16_224 has no stem"):
        Timm(name="vit_tiny_patch16_224", small_images=True)
    with pytest.raises(ConfigError, match=r"options\.widthh: timm's resnet18 does not take it"):
        Timm(name="resnet18", options={"widthh": 3})


def test_weights_come_from_a_local_file(tmp_path):
    other = timm.create_model("resnet18", num_classes=0)
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    backbone = Timm(name="resnet18", weights=str(tmp_path / "weights.pth"))
    torch.testing.assert_close(dict(backbone.model.state_dict()), dict(other.state_dict()))
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "classifier.pth")
    Timm(name="resnet18", weights=str(tmp_path / "classifier.pth"))  # its fc is left out
    with pytest.raises(ConfigError, match="not this model's weights"):
        Timm(name="resnet34", weights=str(tmp_path / "weights.pth"))
    torch.save(timm.create_model("resnet18", in_chans=1).state_dict(), tmp_path / "gray.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
    for name in ("gray.pth", "text.pth", "text.safetensors"):
        with pytest.raises(ConfigError, match="not this model's weights") as caught:
            Timm(name="resnet18", weights=str(tmp_path / name))
        assert caught.value.key == "weights" and caught.value.found == str(tmp_path / name)
    with pytest.raises(ConfigError, match="no such file") as caught:
        Timm(name="resnet18", weights=str(tmp_path / "weight.pth"))
    assert caught.value.nearest == str(tmp_path / "weights.pth")


# Heads.


def test_mlp_is_mocos_head_by_default():
    head = MLP(32, out_features=8)
    fc1, fc2 = head.layers[0], head.layers[2]
    x = torch.randn(4, 32)
    torch.testing.assert_close(head(x), fc2(F.relu(fc1(x))))
    assert (fc1.out_features, fc2.out_features, head.out_features) == (32, 8, 8)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_mlp_options_say_what_is_built(depth, batch_norm):
    head = MLP(
        6, out_features=4, hidden_features=5, depth=depth, bias=False, batch_norm=batch_norm,
        last_batch_norm=True, l2=True,
    )  # fmt: skip
    linear = [m for m in head.layers if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [5] * (depth - 1) + [4]
    assert linear[-1].bias is None
    assert all((m.bias is None) == batch_norm for m in linear[:-1])
    norms = [m for m in head.layers if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 1 + batch_norm * (depth - 1) and not norms[-1].affine
    torch.testing.assert_close(head(torch.randn(7, 6)).norm(dim=1), torch.ones(7))


def test_linear_is_one_layer():
    head = Linear(6, out_features=4, bias=False)
    x = torch.randn(3, 6)
    torch.testing.assert_close(head(x), x @ head.layers[0].weight.T)


# BatchNorm in groups.


@pytest.mark.parametrize("n", [8, 9])
def test_split_batchnorm_normalises_each_group_alone(n):
    plain = nn.BatchNorm2d(3)
    split = split_batchnorm(copy.deepcopy(plain), 2)
    x = torch.randn(n, 3, 4, 4)
    expected = torch.cat([plain(part) for part in x.tensor_split(2)])
    torch.testing.assert_close(split(x), expected)
    torch.testing.assert_close(dict(split.state_dict()), dict(plain.state_dict()))
    torch.testing.assert_close(split.eval()(x), plain.eval()(x))


def test_split_batchnorm_reaches_timms_own_kind_and_keeps_names():
    backbone = Timm(name="efficientnet_b0", bn_groups=2)
    assert backbone.state_dict().keys() == Timm(name="efficientnet_b0").state_dict().keys()
    kinds = {type(m).__name__ for m in backbone.modules()}
    assert "SplitBatchNormAct2d" in kinds and "BatchNormAct2d" not in kinds


def test_the_heads_batchnorm_is_split_with_the_backbones():
    backbone = Timm(name="resnet18", options={"layers": [1, 1, 1, 1]}, bn_groups=4)
    encoder = Encoder(backbone, MLP(backbone.num_features, batch_norm=True))
    groups = {m.groups for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert groups == {4}


def test_trap_2_syncbn_beside_split_batchnorm_is_refused():
    with pytest.raises(ValueError, match="choose one"):
        split_batchnorm(nn.SyncBatchNorm(3), 2)


# Encoders.


PREDICTING = {"BYOL": BYOL, "SimSiam": SimSiam, "MoCoV3": MoCoV3, "NNCLR": NNCLR}


@pytest.mark.parametrize("name", PREDICTING)
def test_a_predictor_of_another_width_than_the_head_is_refused(name):
    def made(width: int):
        return Part(
            PREDICTING[name],
            head=Part(MLP, out_features=6),
            predictor=Part(MLP, out_features=width),
            **({"queue_size": 8} if name == "NNCLR" else {}),
        )(backbone=TinyNet())

    assert made(6).predictor.out_features == 6
    with pytest.raises(ConfigError, match=r"method\.predictor\.out_features") as caught:
        made(5)
    assert caught.value.found == "5" and caught.value.expected.startswith("6")


def test_momentum_encoder_follows_equation_2_and_takes_no_gradient():
    online = nn.Linear(3, 2)
    slow = MomentumEncoder(online)
    old = [p.clone() for p in slow.parameters()]
    with torch.no_grad():
        for p in online.parameters():
            p.add_(torch.randn_like(p))
    slow.follow(online, 0.9)
    for p, before, q in zip(slow.parameters(), old, online.parameters(), strict=True):
        torch.testing.assert_close(p, 0.9 * before + 0.1 * q)
    assert not slow(torch.randn(1, 3)).requires_grad
    slow.follow(online, 0.0)
    for p, q in zip(slow.parameters(), online.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "vit_tiny_patch16_224",
            {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "drop_path_rate": 0.9}
            | {"pos_drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5},
        ),
        ("resnet18", {"drop_rate": 0.5}),
    ],
)
def test_momentum_encoder_drops_nothing(name, options):
    online = Timm(name=name, options=options).train()
    slow, x = MomentumEncoder(online), torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(slow(x), slow(x))
    assert not torch.allclose(online(x), online(x))


def test_eval_mode_gives_every_submodule_its_own_mode_back():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    net[0].eval()
    with eval_mode(net):
        assert not any(m.training for m in net.modules())
    assert [m.training for m in net] == [False, True]


# Random numbers.


def test_uniform_is_uniform_and_a_function_of_its_keys():
    index = torch.arange(100_000)
    u = rng.uniform(0, 3, index, "crop")
    assert ((u >= 0) & (u < 1)).all()
    counts = torch.histc(u, 10, 0, 1) / len(u)
    assert (counts - 0.1).abs().max() < 0.005
    assert torch.equal(u[index[5:9]], rng.uniform(0, 3, index[5:9], "crop"))
    for other in (rng.uniform(1, 3, index, "crop"), rng.uniform(0, 3, index, "flip"), u.roll(1)):
        assert torch.corrcoef(torch.stack([u, other]))[0, 1].abs() < 0.02


def test_permutation_is_one_and_integers_stay_in_range():
    order = rng.permutation(1000, 7, "epoch", 3)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert not torch.equal(order, rng.permutation(1000, 7, "epoch", 4))
    drawn = rng.integers(6, 0, torch.arange(60_000))
    assert (torch.bincount(drawn) / 10_000 - 1).abs().max() < 0.05


@pytest.mark.gpu
def test_random_numbers_agree_between_devices():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    index = torch.arange(10_000)
    assert torch.equal(rng.uniform(1, index, "a"), rng.uniform(1, index.cuda(), "a").cpu())


# The registry.


def test_everything_registered_has_a_line_and_what_has_a_paper_cites_it():
    for kind in KINDS:
        for name, line, paper in getattr(config, kind.upper()).summary():
            assert line and line.endswith((".", ")", ".")), (kind, name)
            if kind in ("methods", "memory", "losses"):
                assert paper, f"{kind}: {name} cites no paper"


def test_a_users_part_is_registered_and_built_like_ours():
    registry = Registry("thing")

    @registry.register_module()
    class Thing:
        """A thing."""

        def __init__(self, given, *, size: int = 1):
            self.given, self.size = given, size

    built = bind(registry, {"type": "Thing", "size": 3})(given="x", not_asked_for="y")
    assert (built.given, built.size) == ("x", 3)
    with pytest.raises(ConfigError, match="nearest:  Thing"):
        bind(registry, {"type": "thing"})(given="x")


@pytest.mark.parametrize(
    "block",
    [
        {"type": "MLP", "hidden_features": 0},
        {"type": "Linear", "out_features": 0},
        {"type": "DINOHead", "bottleneck_features": 0},
        {"type": "DiscreteVAE", "vocabulary": 1},
        {"type": "ViTDecoder", "depth": 0},
    ],
    ids=lambda block: block["type"],
)
def test_heads_refuse_widths_and_depths_of_nothing(block):
    with pytest.raises(ConfigError, match="too small") as caught:
        bind(HEADS, block, "method.head")
    assert caught.value.key == f"method.head.{list(block)[1]}"


def test_every_file_of_heads_is_imported():
    files = Path(heads.__file__).parent.glob("[!_]*.py")
    assert {f"ssl_zoo.heads.{path.stem}" for path in files} <= sys.modules.keys()


def test_heads_build_from_yaml_blocks():
    head = bind(HEADS, {"type": "MLP", "out_features": 3})(in_features=5)
    assert head(torch.randn(2, 5)).shape == (2, 3)


def test_nothing_is_shuffled_for_an_encoder_without_batchnorm(monkeypatch):
    encoder = Encoder(Timm(name="vit_tiny_patch16_224", options={"depth": 1}), Linear(192))
    monkeypatch.setattr("ssl_zoo.memory.base.shuffled", lambda *_: pytest.fail("shuffled"))
    MoCoQueue(encoder, size=4).encode(encoder, torch.randn(2, 3, 224, 224), torch.arange(2))


def test_every_method_has_a_file_of_its_own():
    modules = [target.__module__ for target in METHODS.module_dict.values()]
    assert len(set(modules)) == len(modules)
