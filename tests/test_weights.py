"""Weights of other projects come in, and this one's go out, with the same features."""

from __future__ import annotations

import argparse
import importlib.util
import json
import pickle
import sys
import types
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import ssl_zoo as sz
from ssl_zoo import config
from ssl_zoo.cli.command_line import main
from ssl_zoo.config import ConfigError
from ssl_zoo.runs import RunFolder
from ssl_zoo.weights.exporting import export
from ssl_zoo.weights.file import Header, build, read_header, write
from ssl_zoo.weights.importing import import_file
from ssl_zoo.weights.layouts import LAYOUTS, NAMINGS

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
RESNET = {"name": "resnet18", "options": {"layers": [1, 1, 1, 1]}}
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
VIT = {"name": "vit_small_patch16_224", "options": {**SIZES, "mlp_ratio": 2}}


@torch.no_grad()
def moved(model):
    """Statistics of BatchNorm and scales that are not what they start as; in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for name, x in model.state_dict().items():
        if x.ndim == 1:
            x.copy_(torch.rand(x.shape, generator=generator) + 0.5)
        elif "pos" in name or "token" in name:
            x.copy_(torch.randn(x.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def resnet():
    """A torchvision ResNet without its classifier."""
    model = moved(ResNet(BasicBlock, [1, 1, 1, 1]))
    model.fc = nn.Identity()
    return model


@pytest.fixture(scope="module")
def vit():
    return moved(build({"type": "Timm", **VIT}).model)


def below(prefix, model, **others):
    beside = {name: torch.ones(3) for name in others.get("beside", ())}
    return {f"{prefix}{name}": x for name, x in model.state_dict().items()} | beside


def imported(tmp_path, contents, block, **how):
    path = tmp_path / "checkpoint.pth"
    torch.save(contents, path)
    return import_file(path, block=block, **how)


def features(backbone, images=IMAGES):
    with torch.no_grad():
        return backbone.eval()(images)


def check_features(found, expected):
    torch.testing.assert_close(features(found.backbone), expected, rtol=1e-5, atol=1e-5)
    assert any(f"{n} of {n} tensors loaded" in line for line in found.lines for n in range(9, 200))


# What each project saves besides: the keys of its own code, see `Layout.source`.
OF_RESNETS = {
    "moco": lambda r: {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": below("module.encoder_q.", r, beside=["module.encoder_q.fc.0.weight"])
        | below("module.encoder_k.", r, beside=["module.queue", "module.queue_ptr"]),
    },
    "moco-v3": lambda r: {
        "state_dict": below("module.base_encoder.", r, beside=["module.base_encoder.fc.0.weight"])
        | below("module.momentum_encoder.", r, beside=["module.predictor.0.weight"])
    },
    "simsiam": lambda r: {
        "state_dict": below(
            "module.encoder.", r, beside=["module.encoder.fc.6.weight", "module.predictor.0.weight"]
        )
    },
    "dino": lambda r: {
        "student": below("module.backbone.", r, beside=["module.head.mlp.0.weight"]),
        "teacher": below("backbone.", r, beside=["head.mlp.0.weight", "head.last_layer.weight_g"]),
        "args": argparse.Namespace(arch="resnet50"),
    },
    "swav": lambda r: below(
        "module.", r, beside=["module.projection_head.0.weight", "module.prototypes.weight"]
    ),
    "barlowtwins": lambda r: {
        "model": below(
            "module.backbone.", r, beside=["module.projector.0.weight", "module.bn.running_mean"]
        )
    },
    "vicreg": lambda r: {
        "model": below("module.backbone.", r, beside=["module.projector.0.weight"])
    },
    "vissl": lambda r: {
        "classy_state_dict": {
            "base_model": {"model": {"trunk": below("base_model._feature_blocks.", r), "heads": {}}}
        }
    },
    "solo-learn": lambda r: {
        "state_dict": below("backbone.", r, beside=["classifier.weight", "projector.0.weight"])
        | below("momentum_backbone.", r)
    },
    "mmpretrain": lambda r: {
        "meta": {"epoch": 1},
        "state_dict": below("backbone.", r, beside=["neck.mlp.0.weight", "data_preprocessor.mean"]),
    },
    "lightly": lambda r: {
        "pytorch-lightning_version": "2.1",
        "state_dict": below("student_backbone.", timm_like(r))
        | below("teacher_backbone.", r, beside=["teacher_head.layers.0.weight"]),
    },
    "torchvision": lambda r: below("_orig_mod.module.", r, beside=["fc.weight", "fc.bias"]),
}


def timm_like(resnet):
    """One of the same shapes and other numbers: the network that is not to be taken."""
    return ResNet(BasicBlock, [1, 1, 1, 1]).eval()


@pytest.mark.parametrize("layout", OF_RESNETS)
def test_a_resnet_is_found_in_the_layout_of_each_project(layout, resnet, tmp_path):
    found = imported(tmp_path, OF_RESNETS[layout](resnet), RESNET)
    assert found.header.source["layout"] == layout
    check_features(found, features(resnet))


OF_VITS = {
    "moco-v3": lambda v: {
        "state_dict": below("module.base_encoder.", v, beside=["module.base_encoder.head.0.weight"])
    },
    "dino": lambda v: {"teacher": below("backbone.", v, beside=["head.mlp.0.weight"])},
    "mae": lambda v: {
        "model": below("", v, beside=["decoder_embed.weight", "mask_token", "decoder_pos_embed"]),
        "args": argparse.Namespace(model="mae_vit_base_patch16"),
    },
    "lightly": lambda v: below("backbone.vit.", v, beside=["projection_head.layers.0.weight"]),
    "mmpretrain": lambda v: {
        "state_dict": below("backbone.", Renamed(v, MMPRETRAIN), beside=["neck.mask_token"])
    },
    "timm": lambda v: below("", v, beside=["head.weight"]),
}
MMPRETRAIN = [("patch_embed.proj", "patch_embed.projection"), ("blocks", "layers")]
MMPRETRAIN += [(".norm1", ".ln1"), (".norm2", ".ln2"), ("norm.", "ln1.")]
MMPRETRAIN += [("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1")]


class Renamed:
    """A model whose tensors are called otherwise."""

    def __init__(self, model, rules):
        self.model, self.rules = model, rules

    def state_dict(self):
        return {self.named(key): x for key, x in self.model.state_dict().items()}

    def named(self, key):
        for old, new in self.rules:
            key = key.replace(old, new)
        return key


@pytest.mark.parametrize("layout", OF_VITS)
def test_a_vit_is_found_in_the_layout_of_each_project(layout, vit, tmp_path):
    found = imported(tmp_path, OF_VITS[layout](vit), VIT)
    assert found.header.source["layout"] == layout
    check_features(found, features(vit))


OF_TWELVE_HEADS = {
    "mmpretrain": lambda v: below(
        "backbone.",
        Renamed(v, MMPRETRAIN),
        beside=["momentum_encoder.module.0.cls_token", "momentum_encoder.steps"],
    ),
    "solo-learn": lambda v: below("backbone.", v, beside=["classifier.weight", "decoder.a.weight"]),
    "moco-v3": lambda v: {"arch": "vit_small", "state_dict": below("module.", v)},
    "mmpretrain's classifier": lambda v: {
        "meta": {"cfg": "model = dict(backbone=dict(arch='mocov3-small'))"},
        "state_dict": below(
            "backbone.", Renamed(v, MMPRETRAIN), beside=["head.layers.head.weight"]
        ),
    },
}


@pytest.mark.parametrize("layout", OF_TWELVE_HEADS)
def test_a_vit_of_twelve_heads_which_no_shape_tells(layout, tmp_path):
    small = {"img_size": 32, "depth": 1}
    vit = moved(timm.create_model("vit_small_patch16_224", num_classes=0, num_heads=12, **small))
    contents = OF_TWELVE_HEADS[layout](vit)
    if layout == "moco-v3":
        contents["state_dict"]["module.head.weight"] = torch.ones(3)
    found = imported(tmp_path, contents, {"options": small})
    assert found.header.backbone["options"]["num_heads"] == 12
    check_features(found, features(vit))


@pytest.mark.parametrize("name", ["vit_small_patch16_224.augreg_in21k", "deit_small_patch16_224"])
def test_a_name_with_a_tag_is_the_layouts_and_another_is_told_what_that_has(name, tmp_path):
    vit = timm.create_model("vit_small_patch16_224", num_classes=0, img_size=32, depth=1)
    contents = {"state_dict": below("module.base_encoder.", vit)}
    found = imported(tmp_path, contents, {"name": name, "options": {"depth": 1}})
    tagged = "." in name
    assert (found.header.backbone["options"].get("num_heads") == 12) == tagged
    said = "as told deit_small_patch16_224 is timm's own; moco-v3 has others: vit_small"
    assert any(line.startswith(said) for line in found.lines) != tagged


def test_heads_that_nothing_tells_are_said(tmp_path):
    vit = timm.create_model("vit_small_patch16_224", num_classes=0, img_size=32, depth=1)
    contents = below("backbone.", vit, beside=["classifier.weight", "momentum_classifier.weight"])
    found = imported(tmp_path, contents, {"options": {"depth": 1}})
    assert any("options.num_heads=12" in line for line in found.lines)


@pytest.mark.parametrize("other", ["teacher_backbone.", "student_backbone.", "query_backbone."])
def test_of_lightlys_networks_the_plain_one_is_taken(other, resnet, tmp_path):
    """As its benchmarks evaluate it."""
    contents = below(other, timm_like(resnet)) | below("backbone.", resnet)
    check_features(imported(tmp_path, contents, RESNET), features(resnet))


def test_ijepa_takes_the_target_encoder_which_has_no_class_token(tmp_path):
    options = {**VIT["options"], "class_token": False, "global_pool": "avg", "fc_norm": False}
    block = {"name": VIT["name"], "options": options}
    vit = moved(build({"type": "Timm", **block}).model)
    contents = {"encoder": {}, "predictor": {}, "target_encoder": below("module.", vit), "lr": 0.1}
    found = imported(tmp_path, contents, block)
    assert found.header.source["layout"] == "ijepa"
    check_features(found, features(vit))


@pytest.mark.parametrize("registers", [0, 2])
def test_dinov2_in_chunks_and_with_registers(registers, tmp_path):
    """Positions of its file are the class token's too; timm adds them to that token."""
    block = {"name": "vit_small_patch14_dinov2", "options": {**SIZES, "patch_size": 8}}
    if registers:
        block["name"] = "vit_small_patch14_reg4_dinov2"
        block["options"] |= {"reg_tokens": registers}
    vit = moved(build({"type": "Timm", **block}).model)
    state = {k.replace("blocks.", "blocks.0."): x for k, x in vit.state_dict().items()}
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        first = torch.zeros(1, 1, 16)
        state["pos_embed"] = torch.cat([first, state["pos_embed"]], dim=1)
    state["mask_token"] = torch.zeros(1, 16)
    teacher = {f"backbone.{k}": x for k, x in state.items()}
    found = imported(tmp_path, {"teacher": teacher | {"dino_head.mlp.0.weight": IMAGES}}, block)
    assert found.header.source["layout"] == "dinov2"
    check_features(found, features(vit))


def test_dinov3s_storage_tokens_and_layer_scales(tmp_path):
    block = {"name": "vit_small_patch16_dinov3", "options": {**SIZES, "patch_size": 16}}
    block["options"]["global_pool"] = "token"
    vit = moved(build({"type": "Timm", **block}).model)
    state = {k.replace("reg_token", "storage_tokens"): x for k, x in vit.state_dict().items()}
    state = {k.replace("gamma_1", "ls1.gamma"): x for k, x in state.items()}
    state = {k.replace("gamma_2", "ls2.gamma"): x for k, x in state.items()}
    state |= {"mask_token": torch.zeros(1, 16), "rope_embed.periods": torch.ones(4)}
    state |= {f"blocks.{n}.attn.qkv.bias": torch.zeros(48) for n in range(2)}
    del block["options"]["global_pool"]
    found = imported(tmp_path, state, block)
    assert found.header.source["layout"] == "dinov3"
    check_features(found, features(vit))


def test_biases_that_timms_dinov3_has_no_place_for_are_not_dropped(tmp_path):
    block = {"name": "vit_small_patch16_dinov3", "options": {**SIZES, "patch_size": 16}}
    state = build({"type": "Timm", **block}).model.state_dict()
    state["storage_tokens"] = state.pop("reg_token")
    state["blocks.1.attn.qkv.bias"] = torch.ones(48)
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.bias"):
        imported(tmp_path, state, block)


def test_simclr_converted_by_either_project(resnet, tmp_path):
    """Its networks were trained on images from 0 to 1."""
    model = moved(ResNet(Bottleneck, [1, 1, 1, 1]))
    model.fc = nn.Identity()
    block = {"name": "resnet50", "options": RESNET["options"]}
    found = imported(tmp_path, {"state_dict": model.state_dict()}, block, layout="simclr")
    check_features(found, features(model))
    assert list(found.header.clean["ops"]) == ["resize", "crop"]
    rules = [("conv1", "net.0"), ("bn1", "net.1.0"), ("conv2", "net.2")]
    rules += [("bn2", "net.3.0"), ("conv3", "net.4"), ("bn3", "net.5.0")]
    state = {}
    for key, x in model.state_dict().items():
        if key.startswith("layer"):
            for old, new in rules:
                key = key.replace(old, new)
            key = f"net.{key[5]}.blocks.{key[7:]}"
            key = key.replace("downsample.0", "projection.shortcut")
            key = key.replace("downsample.1", "projection.bn.0")
        key = key.replace("conv1.", "net.0.0.").replace("bn1.", "net.0.1.0.")
        state[key] = x
    found = imported(tmp_path, {"resnet": state, "head": {}}, block)
    assert found.header.source["layout"] == "simclr-v2"
    check_features(found, features(model))


def test_every_layout_is_imported_by_some_test():
    tested = {*OF_RESNETS, *OF_VITS, "ijepa", "dinov2", "dinov3", "simclr", "simclr-v2"}
    assert tested | {"transformers"} == set(LAYOUTS)


def test_lightlys_own_modules_after_a_step(tmp_path):
    """MoCo as its examples build it: the children of a torchvision ResNet, and heads."""
    from lightly.models.modules import DINOProjectionHead, MoCoProjectionHead

    net = ResNet(BasicBlock, [1, 1, 1, 1])
    own = nn.Module()
    own.backbone = nn.Sequential(*list(net.children())[:-1])
    own.projection_head = MoCoProjectionHead(512, 16, 8)
    own.student_head = DINOProjectionHead(512, 16, 8, 8)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    own.projection_head(own.backbone(IMAGES).flatten(1)).square().mean().backward()
    optimizer.step()
    own.eval()
    contents = {"epoch": 0, "state_dict": own.state_dict(), "optimizer_states": []}
    found = imported(tmp_path, contents, RESNET)
    assert found.header.source["layout"] == "lightly"
    check_features(found, features(own.backbone).flatten(1))


def test_lightlys_resnet_for_small_images(tmp_path):
    from lightly.models import ResNetGenerator

    net = moved(ResNetGenerator("resnet-9"))
    own = nn.Module()
    own.backbone = nn.Sequential(*list(net.children())[:-1], nn.AdaptiveAvgPool2d(1))
    found = imported(tmp_path, own.state_dict(), RESNET)
    assert found.header.backbone["small_images"] is True
    check_features(found, features(Cifar(net)))


def test_solo_learns_own_code_after_two_steps(tmp_path, monkeypatch):
    """Its MoCo v2+, without the rest of the package, which pins an old torch and asks for more."""
    pytest.importorskip("pytorch_lightning")
    if (found := importlib.util.find_spec("solo")) is None:
        pytest.skip("pip install --no-deps solo-learn==1.0.2")
    names = "solo solo.methods solo.losses solo.utils solo.utils.backbones"  # no __init__ is run
    names += " pl_bolts pl_bolts.optimizers pl_bolts.optimizers.lr_scheduler"
    empty = {name: types.ModuleType(name) for name in names.split()}
    for name in ("solo", "solo.methods", "solo.losses", "solo.utils"):
        (root,) = found.submodule_search_locations
        empty[name].__path__ = [str(Path(root, *name.split(".")[1:]))]
    empty["solo.utils.backbones"].__getattr__ = lambda name: None  # ViTs, under names in timm
    empty["pl_bolts.optimizers.lr_scheduler"].LinearWarmupCosineAnnealingLR = None
    for name, module in empty.items():
        monkeypatch.setitem(sys.modules, name, module)
    kind = importlib.import_module("solo.methods.mocov2plus").MoCoV2Plus
    rates = "lr weight_decay classifier_lr min_lr warmup_start_lr warmup_epochs"
    made = kind(
        encoder="resnet18",
        num_classes=10,
        backbone_args={"cifar": False, "zero_init_residual": False},
        optimizer="sgd",
        scheduler="none",
        extra_optimizer_args={},
        **dict.fromkeys(rates.split(), 0.1),
        **dict.fromkeys(("lars", "exclude_bias_n_norm", "momentum_classifier"), False),
        **{"max_epochs": 1, "batch_size": 4, "accumulate_grad_batches": 1},
        **{"num_large_crops": 2, "num_small_crops": 0},
        **{"base_tau_momentum": 0.9, "final_tau_momentum": 1.0, "temperature": 0.2},
        **{"proj_output_dim": 8, "proj_hidden_dim": 16, "queue_size": 8},
    )
    made.log = made.log_dict = lambda *_, **__: None  # there is no trainer
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        made.training_step(
            [None, [IMAGES, IMAGES.flip(3)], torch.arange(len(IMAGES))], 0
        ).backward()
        optimizer.step()
    made.eval()
    contents = {"epoch": 0, "state_dict": made.state_dict(), "hyper_parameters": {"lr": 0.1}}
    found = imported(tmp_path, contents, {})
    assert found.header.source["layout"] == "solo-learn"
    check_features(found, features(made.encoder))


class Cifar(nn.Module):
    """lightly's network, whose ReLU after the stem is no child of it, up to its last pooling."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        x = self.net.bn1(self.net.conv1(images)).relu()
        for layer in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            x = layer(x)
        return x.mean(dim=(2, 3))


@pytest.mark.parametrize("form", ["vit", "convnext"])
def test_torchvisions_own(form, tmp_path):
    if form == "vit":
        net, block = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32), VIT
        net.heads = nn.Identity()
    else:
        from torchvision.models.convnext import CNBlockConfig

        widths = [4, 4, 8, 8, None]
        settings = [CNBlockConfig(a, b, 1) for a, b in pairwise(widths)]
        net = torchvision.models.ConvNeXt(settings)
        net.classifier[2] = nn.Identity()
        block = {"name": "convnext_tiny", "options": {"depths": [1] * 4, "dims": [4, 4, 8, 8]}}
    moved(net)
    check_features(imported(tmp_path, net.state_dict(), block), features(net))


@pytest.mark.parametrize(
    "form", ["vit", "mae", "dinov2", "dinov3", "gated dinov3", "resnet", "convnext"]
)
def test_transformers_own(form, tmp_path):
    """As save_pretrained writes them; and a state_dict, whose names differ from version 5 on."""
    t = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    sizes |= {"patch_size": 8, "intermediate_size": 32, "layer_norm_eps": 1e-6}
    block = VIT
    if form == "vit":
        net = t.ViTModel(t.ViTConfig(**sizes))
    elif form == "mae":
        net = t.ViTMAEForPreTraining(t.ViTMAEConfig(**sizes, decoder_num_hidden_layers=1))
    elif form == "dinov2":
        net = t.Dinov2Model(t.Dinov2Config(**sizes, mlp_ratio=2))
        block = {"name": "vit_small_patch14_dinov2", "options": VIT["options"]}
    elif form.endswith("dinov3"):
        sizes |= {"layer_norm_eps": 1e-5, "patch_size": 16, "num_register_tokens": 4}
        gated = form.startswith("gated")
        sizes |= {"use_gated_mlp": True, "hidden_act": "silu"} if gated else {}
        net = t.DINOv3ViTModel(t.DINOv3ViTConfig(**sizes))
        options = {**VIT["options"], "patch_size": 16}
        block = {"name": f"vit_small{'_plus' * gated}_patch16_dinov3_qkvb", "options": options}
    elif form == "resnet":
        config = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
        net, block = t.ResNetModel(t.ResNetConfig(**config, depths=[1] * 4)), RESNET
    else:
        sizes = {"depths": [1] * 4, "hidden_sizes": [4, 4, 8, 8], "num_stages": 4}
        net = t.ConvNextModel(t.ConvNextConfig(**sizes, layer_norm_eps=1e-6))
        block = {"name": "convnext_tiny", "options": {"depths": [1] * 4, "dims": [4, 4, 8, 8]}}
    moved(net).save_pretrained(tmp_path)
    found = import_file(tmp_path, block=block)
    assert found.header.source["layout"] == "transformers"
    if form == "mae":  # which looks at patches drawn at random
        inside = t.ViTModel(t.ViTConfig(**sizes), add_pooling_layer=False).eval()
        inside.load_state_dict(net.vit.state_dict(), strict=False)
        net = inside
    with torch.no_grad():
        out = net(IMAGES)
    pooled = form in ("resnet", "convnext")
    check_features(found, out.pooler_output.flatten(1) if pooled else out.last_hidden_state[:, 0])
    again = imported(tmp_path, net.state_dict(), block)
    torch.testing.assert_close(features(again.backbone), features(found.backbone))


def test_timms_own_folder_names_its_architecture(tmp_path):
    model = moved(timm.create_model("resnet18", num_classes=0, layers=[1, 1, 1, 1], in_chans=1))
    timm.models.save_for_hf(
        model, tmp_path, model_args={"layers": [1, 1, 1, 1], "in_chans": 1}, safe_serialization=True
    )
    found = import_file(tmp_path)
    assert found.header.backbone["name"] == "resnet18"
    with torch.no_grad():
        expected = model(IMAGES[:, :1])
    torch.testing.assert_close(features(found.backbone, IMAGES[:, :1]), expected)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_config_json_is_named(text, vit, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: (no JSON|expected a mapping)"):
        import_file(tmp_path)


def test_shapes_tell_the_architecture_and_the_layout_its_heads(tmp_path):
    net = torchvision.models.resnet18()
    found = imported(tmp_path, {"state_dict": below("module.encoder_q.", net)}, {})
    assert found.header.backbone == {"type": "Timm", "name": "resnet18"}
    vit = timm.create_model("vit_small_patch16_224", num_classes=0, img_size=32, depth=1)
    contents = {"state_dict": below("module.base_encoder.", vit)}
    found = imported(tmp_path, contents, {"options": {"depth": 1}})
    assert found.header.backbone["name"] == "vit_small_patch16_224"
    assert found.header.backbone["options"] == {"num_heads": 12, "depth": 1, "img_size": 32}


def test_positions_and_channels_are_fitted_and_said(vit, tmp_path):
    block = {"name": VIT["name"], "options": {**VIT["options"], "img_size": 48}, "in_chans": 1}
    found = imported(tmp_path, below("", vit), block)
    said = "\n".join(found.lines)
    assert "positions interpolated from 17 to 37 tokens" in said
    assert "first layer of 3 channels summed for 1" in said
    normalize = found.header.clean["ops"]["normalize"]
    assert normalize["mean"] == pytest.approx([0.449], abs=1e-3) and len(normalize["std"]) == 1
    gray = IMAGES[:, :1]
    same = imported(tmp_path, below("", vit), {**VIT, "in_chans": 1}).backbone
    torch.testing.assert_close(features(same, gray), features(vit, gray.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("name", ["volo_d1_224", "hrnet_w18_small", "tresnet_m"])
def test_channels_and_stems_are_those_of_the_named_models_first_layer(name, tmp_path):
    """Not of a layer of the usual name further in, or after pixels were put into channels."""
    model = timm.create_model(name, num_classes=0)
    found = imported(tmp_path, below("", model), {"name": name})
    assert {"in_chans", "small_images"}.isdisjoint(found.header.backbone)
    assert not any("first layer" in line for line in found.lines)


@pytest.mark.parametrize("layout", [None, "solo-learn"])
def test_what_no_naming_knows_is_timms_below_a_layouts_prefix(layout, tmp_path):
    model = moved(timm.create_model("convnext_atto", num_classes=0))
    contents = {"state_dict": below("backbone.", model, beside=["classifier.weight"])}
    found = imported(tmp_path, contents, {"name": "convnext_atto"}, layout=layout)
    assert found.header.source["layout"] == "solo-learn"
    check_features(found, features(model))
    with pytest.raises(ConfigError, match="its shapes do not tell which model"):
        imported(tmp_path, contents, {}, layout=layout)


def test_tensors_that_timms_converter_does_not_take_are_named(tmp_path, monkeypatch):
    def convert(state, model):
        return {"head.fc.weight": state["classifier.weight"]}

    monkeypatch.setattr(timm.models.convnext, "checkpoint_filter_fn", convert)
    contents = {"head.fc.weight": torch.ones(3, 3), "other.weight": torch.ones(3)}
    with pytest.raises(ValueError, match=r"no tensors of a ConvNeXt: head.fc.weight, other.weight"):
        imported(tmp_path, contents, {"name": "convnext_atto"})


def test_an_import_of_ours_for_another_size_or_for_gray_has_a_view_that_fits(vit, tmp_path):
    first = imported(tmp_path, below("", vit), VIT)
    first.write(tmp_path / "own.safetensors")
    other = {"in_chans": 1, "options": {**VIT["options"], "img_size": 48}}
    found = import_file(tmp_path / "own.safetensors", block=other)
    found.write(tmp_path / "gray.safetensors")
    picture = torch.zeros(1, 70, 90, dtype=torch.uint8)
    assert sz.load(tmp_path / "gray.safetensors").transform(picture).shape == (1, 48, 48)
    before, now = (x.header.clean["ops"]["normalize"] for x in (first, found))
    assert now["mean"] == pytest.approx([sum(before["mean"]) / 3])


def test_the_files_own_grid_is_kept(vit, tmp_path):
    options = {k: v for k, v in VIT["options"].items() if k != "img_size"}
    found = imported(tmp_path, below("", vit), {"name": VIT["name"], "options": options})
    assert found.header.backbone["options"]["img_size"] == 32
    check_features(found, features(vit))


def test_a_file_that_lacks_something_or_has_too_much_is_refused(resnet, tmp_path):
    state = resnet.state_dict()
    state["layer4.9.conv1.weight"] = state.pop("layer4.0.conv1.weight")
    with pytest.raises(ValueError, match="59 of 60 tensors loaded") as caught:
        imported(tmp_path, state, RESNET)
    row = str(caught.value).splitlines()[-1]
    assert "layer4.9.conv1.weight" in row
    assert "layer4.0.conv1.weight" in row
    with pytest.raises(ValueError, match="1 of the file's have no place"):
        imported(tmp_path, {**resnet.state_dict(), "layer4.9.conv1.weight": IMAGES}, RESNET)
    found = imported(tmp_path, state, RESNET, partial=True)
    assert "59 of 60 tensors loaded; the other 1 are as they start" in found.lines


class Hostile:
    def __reduce__(self):
        return (open, ("hostile-was-here", "w"))


def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Hostile()))
    torch.save({"state_dict": Hostile()}, tmp_path / "worse.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for name in ("bad.pth", "worse.pth", "bad.safetensors"):
        with pytest.raises(ValueError, match=name):
            import_file(tmp_path / name)
    with pytest.raises(ValueError, match=r"run code of \w+\.open"):
        import_file(tmp_path / "worse.pth")
    assert not (tmp_path / "hostile-was-here").exists()


def test_numbers_of_numpy_and_arguments_of_a_command_are_no_code(resnet, tmp_path):
    beside = {"loss": np.float64(0.5), "args": argparse.Namespace(arch="resnet50")}
    imported(tmp_path, {"state_dict": resnet.state_dict(), **beside}, RESNET)


def test_keys_without_weights_are_missing_and_not_zero(tmp_path):
    t = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    net = t.ViTModel(t.ViTConfig(**sizes, patch_size=8, intermediate_size=32))
    state = {k: x for k, x in net.state_dict().items() if "layers.1.attention.k_proj" not in k}
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.weight"):
        imported(tmp_path, state, VIT)


def test_what_cannot_be_told_is_asked_for(resnet, tmp_path, monkeypatch):
    few = NAMINGS["ResNet"]._replace(names=("resnet18",))  # each takes a while to try
    monkeypatch.setitem(NAMINGS, "ResNet", few)
    with pytest.raises(ConfigError, match="its shapes do not tell"):
        imported(tmp_path, resnet.state_dict(), {})
    with pytest.raises(ConfigError, match="no such layout"):
        imported(tmp_path, resnet.state_dict(), RESNET, layout="mocco")
    with pytest.raises(ValueError, match="no backbone of any known layout"):
        imported(tmp_path, {"epoch": 3}, RESNET)


# What goes out.


def weights(tmp_path, block, model=None):
    """A file of weights, as an import or an export writes it."""
    backbone = build({"type": "Timm", **block})
    moved(backbone.model)
    path = tmp_path / "weights.safetensors"
    ops = {"crop": {"type": "CenterCrop", "size": 32}}
    normalize = {"type": "Normalize", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    header = Header({"type": "Timm", **block}, {"ops": {**ops, "normalize": normalize}}, {"a": "b"})
    write(path, backbone.model.state_dict(), header)
    return path, features(backbone)


CONVNEXT = {"name": "convnext_tiny", "options": {"depths": [1] * 4, "dims": [4, 4, 8, 8]}}
BOTTLENECK = {"name": "resnet50", "options": {"layers": [1, 1, 1, 1]}}


def run_lines(folder):
    """The lines of a card that load what lies beside it."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    lines = text.split("```python\n")[1].split("```")[0].splitlines()
    names = {"images": IMAGES, "torch": torch}
    with torch.no_grad():
        for line in lines:
            exec(line, names)
            if "model" in names and isinstance(names["model"], nn.Module):
                names["model"].eval()
        return names


CONVOLUTIONS = {**CONVNEXT, "options": {**CONVNEXT["options"], "conv_mlp": True}}


@pytest.mark.parametrize("block", [RESNET, VIT, CONVNEXT], ids=["resnet", "vit", "convnext"])
def test_timm_gives_the_same_features(block, tmp_path):
    path, expected = weights(tmp_path, block)
    export(path, "timm", tmp_path / "out")
    model = run_lines(tmp_path / "out")["model"]
    torch.testing.assert_close(features(model), expected, rtol=1e-5, atol=1e-5)
    assert list(model.pretrained_cfg["mean"]) == [0.5, 0.4, 0.3]


@pytest.mark.parametrize("block", [BOTTLENECK, VIT], ids=["resnet", "vit"])
def test_torchvision_gives_the_same_features(block, tmp_path):
    path, expected = weights(tmp_path, block)
    export(path, "torchvision", tmp_path / "out")
    model = run_lines(tmp_path / "out")["model"]
    torch.testing.assert_close(features(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "block",
    [RESNET, BOTTLENECK, VIT, CONVNEXT, CONVOLUTIONS],
    ids=["resnet", "bottleneck", "vit", "convnext", "convolutions"],
)
def test_transformers_gives_the_same_features(block, tmp_path):
    pytest.importorskip("transformers")
    path, expected = weights(tmp_path, block)
    export(path, "transformers", tmp_path / "out")
    found = run_lines(tmp_path / "out")["features"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    back = import_file(tmp_path / "out", block=block)
    check_features(back, expected)


def test_onnxruntime_gives_the_same_features_for_any_number_of_images(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path, expected = weights(tmp_path, VIT)
    export(path, "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for images, wanted in (IMAGES, expected), (IMAGES[[0, 1, 0]], expected[[0, 1, 0]]):
        [found] = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)


def test_a_resnet_in_onnx_takes_images_of_any_size(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    narrow = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    path, _ = weights(tmp_path, {"name": "resnet18", "options": narrow})
    export(path, "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for images in IMAGES, torch.rand(3, 3, 28, 45):
        [found] = session.run(None, {"images": images.numpy()})
        wanted = features(sz.load(path).backbone, images)
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)


def test_detectron2s_names_and_shapes(tmp_path):
    """Those of its modeling/backbone/resnet.py: a stem, res2 to res5, norms inside of convs."""
    path, _ = weights(tmp_path, BOTTLENECK)
    export(path, "detectron2", tmp_path / "out")
    whole = pickle.loads((tmp_path / "out" / "model.pkl").read_bytes())
    assert whole["matching_heuristics"] is True
    shapes = {name: x.shape for name, x in whole["model"].items()}
    assert shapes["stem.conv1.weight"] == (64, 3, 7, 7)
    assert shapes["stem.conv1.norm.running_var"] == (64,)
    assert shapes["res2.0.shortcut.weight"] == (256, 64, 1, 1)
    assert shapes["res2.0.shortcut.norm.bias"] == (256,)
    assert shapes["res5.0.conv3.weight"] == (2048, 512, 1, 1)
    assert shapes["res5.0.conv2.norm.weight"] == (512,)
    assert not [name for name in shapes if "bn" in name or "layer" in name or "down" in name]


def test_what_a_library_does_not_have_is_refused_in_a_sentence(tmp_path):
    small, _ = weights(tmp_path, {**RESNET, "small_images": True})
    for to in ("timm", "torchvision", "detectron2", "transformers"):
        with pytest.raises(ValueError, match=f"small_images cannot go to {to}"):
            export(small, to, tmp_path / to)
    path, _ = weights(tmp_path, CONVNEXT)
    for to in ("torchvision", "detectron2"):
        with pytest.raises(ValueError, match=f"convnext_tiny cannot go to {to}"):
            export(path, to, tmp_path / to)
    narrow = {"name": "resnet18", "options": {"layers": [1] * 4, "channels": [16, 24, 32, 48]}}
    path, _ = weights(tmp_path, narrow)
    with pytest.raises(ValueError, match="resnet18 with these options cannot go to torchvision"):
        export(path, "torchvision", tmp_path / "out")
    for block, more, to, said in (
        ({"name": "resnext50_32x4d"}, {}, "transformers", "grouped convolutions"),
        ({"name": "wide_resnet50_2"}, {}, "transformers", "wide blocks"),
        (RESNET, {"act_layer": "silu"}, "torchvision", "activations SiLU"),
        (RESNET, {"output_stride": 8}, "detectron2", "dilation"),
        (VIT, {"act_layer": "quick_gelu"}, "transformers", "activations Quick"),
        (VIT, {"act_layer": "gelu_tanh"}, "torchvision", "activations GELU"),
        (CONVNEXT, {"act_layer": "relu"}, "transformers", "it takes ConvNeXts"),
    ):
        path, _ = weights(tmp_path, {**block, "options": {**block.get("options", {}), **more}})
        with pytest.raises(ValueError, match=said):
            export(path, to, tmp_path / "out")
    with pytest.raises(ConfigError, match="no such format"):
        export(path, "tensorflow", tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="cannot go to torchvision"):
        export(path, "torchvision", tmp_path / "there" / "deep" / "out")
    folders = [x.name for x in tmp_path.rglob("*") if x.is_dir()]
    assert folders == ["there"]  # no refusal leaves one behind


# A run, from its import to its export.

OWN = {"mine": {"type": "KNN", "k": 7}}


def test_a_run_goes_on_from_an_import_and_is_exported_with_a_card(tmp_path, capsys):
    narrow = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    model = moved(timm.create_model("resnet18", num_classes=0, **narrow))
    torch.save(below("module.encoder_q.", model), tmp_path / "moco.pth")
    words = ["name=resnet18", f"options={json.dumps(narrow)}", "in_chans=1"]
    file = tmp_path / "start.safetensors"
    assert main(["import", str(tmp_path / "moco.pth"), *words, "--out", str(file)]) == 0
    assert "65 of 65 tensors loaded" in capsys.readouterr().out
    assert read_header(file).source["layout"] == "moco"
    start = {"name": "resnet18", "options": narrow, "in_chans": 1, "weights": str(file)}
    start["small_images"] = False  # which the recipe has
    quick = {"train.epochs": 1, "data.batch_size": 32, "data.workers": 0, "optimizer.lr": 0.0}
    quick |= {"backbone": {"type": "Timm", **start}, "data.dataset.limit": 64}
    quick["evaluations.knn.k"] = 20
    words = [f"{key}={json.dumps(value)}" for key, value in quick.items()]
    run = tmp_path / "run"
    assert main(["train", "digits/moco_v2", *words, "--no-baselines", "--out", str(run)]) == 0, (
        capsys.readouterr().err
    )
    started, went_on = sz.load(file), sz.load(run)
    gray = IMAGES[:, :1]
    assert started.num_features == 16
    weight = "model.conv1.weight"
    assert torch.equal(*(x.backbone.state_dict()[weight] for x in (started, went_on)))
    out = tmp_path / "out"
    assert main(["evaluate", "knn", str(run), "k=5"]) == 0
    (old := json.loads((run / "evaluations" / "knn" / "result.json").read_text()))["step"] = 1
    RunFolder(run).write_evaluation("of_another_step", old, "")
    assert main(["export", str(run), "--to", "safetensors", "--out", str(out)]) == 0
    again = sz.load(out / "model.safetensors")
    torch.testing.assert_close(features(again, gray), features(went_on, gray))
    text = (out / "README.md").read_text(encoding="utf-8")
    for said in ("Contrastive", "Digits", "knn", "protocol", "sz.load", "license", "MoCoQueue"):
        assert said in text
    rows = [line for line in text.splitlines() if line.startswith("| knn |")]
    assert len(rows) == 6 and "of_another_step" not in text  # in training, and by hand with k=5
    key = ["export", str(run), "--to", "timm", "network=key_encoder", "--out", str(tmp_path / "k")]
    assert main([*key[:-1], str(tmp_path / "key")]) == 0
    assert "key_encoder" in (tmp_path / "key" / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main([*key[:4], "network=teacher", *key[5:]]) == 2
    assert "no such network" in capsys.readouterr().err
    checkpoint = next((run / "checkpoints").glob("step_*.pt"))
    for path in (run, checkpoint):
        assert main(["import", str(path), "--out", str(tmp_path / "own.safetensors")]) == 0
        assert "65 of 65 tensors loaded" in capsys.readouterr().out
        own = sz.load(tmp_path / "own.safetensors")
        torch.testing.assert_close(features(own, gray), features(went_on, gray))
    judge = ["evaluate", "knn", str(file), "k=5", "--data", str(run / "config.yaml")]
    assert main(judge) == 0
    said = capsys.readouterr().out
    assert f"backbone of {file}" in said
    assert "normalized as" in said and "says: mean [0.305], std [0.376]; otherwise" in said
    config.dump({**RunFolder(run).config(), "evaluations": OWN}, tmp_path / "judge.yaml")
    assert main(["evaluate", "mine", str(file), "--data", str(tmp_path / "judge.yaml")]) == 0
    assert "k 7, temperature" in capsys.readouterr().out
    assert main(judge[:-2]) == 2
    assert "no images to be judged by" in capsys.readouterr().err
