"""What a timm model gives beside its pooled features: maps, tokens, masking."""

from __future__ import annotations

import pytest
import torch

from ssl_zoo import config
from ssl_zoo.backbones import FITS, OWED, Backbone, Timm, fits, on_meta
from ssl_zoo.config import BACKBONES, METHODS, ConfigError, Part, bind
from ssl_zoo.core import Method
from ssl_zoo.experiment import parse
from ssl_zoo.ops.masking import mask_of, random_order

RESNET = {"name": "resnet18", "options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}
SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 2}
VIT = {"name": "vit_tiny_patch16_224", "options": {"img_size": 32, "patch_size": 8, **SIZES}}
AVERAGED = VIT | {"options": VIT["options"] | {"class_token": False, "global_pool": "avg"}}
REGISTERS = VIT | {"options": VIT["options"] | {"reg_tokens": 2}}
VITS = {"class token": VIT, "average": AVERAGED, "registers": REGISTERS}

every_vit = pytest.mark.parametrize("kind", VITS.values(), ids=list(VITS))


def build(kind: dict, **kwargs) -> Backbone:
    backbone = Timm(**kind, **kwargs).eval()
    if hasattr(backbone.model, "pos_embed"):
        # As large as patches' embeddings, or an error in them would go unseen.
        torch.nn.init.normal_(backbone.model.pos_embed)
    return backbone


def images(n: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, size, size)


# Tokens.


@every_vit
def test_tokens_of_all_patches_are_the_models(kind):
    backbone, x = build(kind), images()
    tokens = backbone.tokens(x)
    assert tokens.shape == (3, backbone.num_prefix_tokens + 16, 24)
    torch.testing.assert_close(tokens, backbone.model.forward_features(x))
    torch.testing.assert_close(backbone.pool(tokens), backbone(x))


@every_vit
def test_patches_kept_in_another_order_give_the_same_outputs_in_that_order(kind):
    backbone, x = build(kind), images()
    order = random_order(torch.arange(3), 16)
    prefix = backbone.num_prefix_tokens
    whole, permuted = backbone.tokens(x), backbone.tokens(x, kept=order)
    torch.testing.assert_close(permuted[:, :prefix], whole[:, :prefix])
    for n in range(3):
        torch.testing.assert_close(permuted[n, prefix:], whole[n, prefix:][order[n]])


@every_vit
def test_patches_left_out_are_not_looked_at(kind):
    backbone, x = build(kind), images()
    kept = torch.tensor([[0, 5, 6]] * 3)
    other = x.clone()
    other[:, :, 24:] = 9.0  # patches 12 to 15
    tokens = backbone.tokens(x, kept=kept)
    assert tokens.shape == (3, backbone.num_prefix_tokens + 3, 24)
    torch.testing.assert_close(backbone.tokens(other, kept=kept), tokens)
    assert not torch.allclose(backbone.tokens(other), backbone.tokens(x))


@every_vit
def test_masked_patches_are_replaced_before_positions_are_added(kind):
    backbone, x = build(kind), images()
    masked, token = mask_of(random_order(torch.arange(3), 16)[:, :7], 16), torch.randn(24)
    embeddings = []
    handle = backbone.model.patch_embed.register_forward_hook(
        lambda _module, _input, out: embeddings.append(out)
    )
    backbone.tokens(x)
    handle.remove()
    (embedded,) = embeddings
    for n in range(3):
        for patch in range(16):
            if masked[n, patch]:
                embedded[n, patch] = token
    handle = backbone.model.patch_embed.register_forward_hook(lambda *_: embedded)
    expected = backbone.model.forward_features(x)
    handle.remove()
    found = backbone.tokens(x, masked=masked, mask_token=token)
    torch.testing.assert_close(found, expected)
    # Where everything is masked only positions tell patches apart.
    blank = backbone.tokens(x, masked=torch.ones_like(masked), mask_token=token)
    torch.testing.assert_close(blank[0], blank[1])
    assert not torch.allclose(blank[0, -1], blank[0, -2])


def test_a_mask_token_learns():
    backbone, token = build(VIT), torch.zeros(24, requires_grad=True)
    masked = torch.zeros(3, 16, dtype=torch.bool)
    masked[0, 3] = True
    backbone.tokens(images(), masked=masked, mask_token=token).square().sum().backward()
    assert token.grad.any()


def test_numbers_of_a_vit():
    backbone = build(REGISTERS)
    assert backbone.num_prefix_tokens == 3
    assert tuple(backbone.patch_size) == (8, 8)
    assert tuple(backbone.grid_size) == (4, 4)
    assert backbone.num_features == backbone.map_features == 24


# Maps.


@every_vit
def test_a_vits_map_is_its_patches_row_by_row(kind):
    backbone, x = build(kind), images()
    tokens, found = backbone.tokens(x), backbone.feature_map(x)
    assert found.shape == (3, 24, 4, 4)
    for row in range(4):
        for column in range(4):
            patch = tokens[:, backbone.num_prefix_tokens + 4 * row + column]
            torch.testing.assert_close(found[:, :, row, column], patch)


def test_attention_pools_a_vits_map():
    backbone, x = build(VIT | {"options": AVERAGED["options"] | {"global_pool": "map"}}), images()
    torch.testing.assert_close(backbone.pool(backbone.feature_map(x)), backbone(x))


def test_a_vits_map_follows_the_size_of_the_image():
    kind = VIT | {"options": VIT["options"] | {"dynamic_img_size": True}}
    backbone, x = build(kind), torch.randn(2, 3, 16, 40)
    found = backbone.feature_map(x)
    assert found.shape == (2, 24, 2, 5)
    torch.testing.assert_close(found.flatten(2).mT, backbone.tokens(x)[:, 1:])


@pytest.mark.parametrize(
    ("name", "features"),
    [("resnet18", 512), ("convnext_atto", 320), ("mobilenetv3_small_050", 288)],
)
def test_a_cnns_pooled_map_is_its_features(name, features):
    backbone, x = build({"name": name}), images(2, 64)
    found = backbone.feature_map(x)
    assert found.shape == (2, features, 2, 2) and backbone.map_features == features
    torch.testing.assert_close(backbone.pool(found), backbone(x))


def test_a_map_with_channels_last_comes_with_channels_first():
    name = "swin_tiny_patch4_window7_224"
    options = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": [1, 1, 1, 1]}
    backbone, x = build({"name": name, "options": options}), images(2, 64)
    found = backbone.feature_map(x)
    assert found.shape == (2, backbone.map_features, 2, 2)
    torch.testing.assert_close(found.mean(dim=(2, 3)), backbone(x))


# Several maps, and the two parts of a ResNet.

SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": [1, 1, 1, 1]}
SEVERAL = {
    "resnet": RESNET,
    "small images": RESNET | {"small_images": True},
    "dilated": RESNET | {"options": RESNET["options"] | {"output_stride": 8}},
    "convnext": {"name": "convnext_atto"},
    "layers behind the last stage": {"name": "mobilenetv2_050"},
    "channels last": {"name": "swin_tiny_patch4_window7_224", "options": SWIN},
    "vit": AVERAGED | {"options": AVERAGED["options"] | {"img_size": 64}},
}


@pytest.mark.parametrize("kind", SEVERAL.values(), ids=list(SEVERAL))
def test_the_last_of_several_maps_is_the_one_that_is_pooled(kind):
    backbone, x = build(kind), images(2, 64)
    maps = backbone.feature_maps(x)
    shapes = [(2, channels, 64 // stride, 64 // stride) for stride, channels in backbone.levels]
    assert [m.shape for m in maps] == shapes
    torch.testing.assert_close(maps[-1], backbone.feature_map(x))
    torch.testing.assert_close(backbone.pool(maps[-1]), backbone(x))


def test_a_map_is_that_of_its_stage():
    backbone, x, seen = build(RESNET), images(2, 64), []
    stages = [backbone.model.get_submodule(f"layer{i}") for i in range(1, 5)]
    for stage in stages:
        stage.register_forward_hook(lambda _module, _input, out: seen.append(out))
    maps = backbone.feature_maps(x)
    torch.testing.assert_close(maps[1:], seen)
    assert backbone.levels == [(2, 64), (4, 8), (8, 8), (16, 16), (32, 16)]


@pytest.mark.parametrize("kind", [RESNET, SEVERAL["small images"], SEVERAL["dilated"]])
def test_both_parts_of_a_resnet_make_the_whole(kind):
    backbone, x = build(kind), images(2, 64)
    c4 = backbone.c4(x)
    stride, channels = backbone.c4_level
    assert c4.shape == (2, channels, 64 // stride, 64 // stride)
    torch.testing.assert_close(backbone.c5(c4), backbone.feature_map(x))
    region = backbone.c5(c4[:1, :, :2, :2])
    assert backbone.pool(region).shape == (1, backbone.num_features)


# The layers of a ViT.


@every_vit
def test_the_last_blocks_outputs_are_tokens_before_the_norm(kind):
    backbone, x, seen = build(kind), images(), []
    for block in backbone.model.blocks:
        block.register_forward_hook(lambda _module, _input, out: seen.append(out))
    found = backbone.last_blocks(x, 2)
    assert backbone.depth == len(seen) == 2
    torch.testing.assert_close(found, seen)
    torch.testing.assert_close(backbone.model.norm(found[-1]), backbone.tokens(x))


# What a model can do.


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (RESNET, {"features", "layers", "map", "maps", "c4"}),
        ({"name": "swin_tiny_patch4_window7_224"}, {"features", "layers", "map", "maps"}),
        (VIT, {"features", "layers", "map", "maps", "tokens"}),
        ({"name": "vit_tiny_r_s16_p8_224"}, {"features", "layers", "map", "maps"}),  # a hybrid
        ({"name": "mixer_s32_224"}, {"features", "layers"}),
        ({"name": "crossvit_tiny_240"}, {"features", "layers"}),  # several maps, of as many sizes
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_model_fits_what_it_has_the_methods_for(kind, expected):
    assert FITS.keys() == OWED.keys()
    part = Part(Timm, **kind)
    assert {word for word in OWED if fits(part, word)} == expected
    assert {word for word in OWED if fits(on_meta(part), word)} == expected


class NeedsTokens(Method):
    """Masks patches (arXiv:2111.06377); for tests."""

    needs = "tokens"

    def __init__(self, backbone):
        super().__init__()


class NeedsMap(NeedsTokens):
    """Reads a map (arXiv:2011.09157); for tests."""

    needs = "map"


def check(method: type[Method], name: str, root, monkeypatch):
    monkeypatch.setitem(METHODS.module_dict, method.__name__, method)
    overrides = [
        ("method", {"type": method.__name__}),
        ("backbone", {"type": "Timm", "name": name}),
    ]
    return parse(config.load(root / "configs/imagenet/moco_v2.yaml", overrides))


def test_a_backbone_without_what_its_method_needs_is_refused(root, monkeypatch):
    with pytest.raises(ConfigError, match="NeedsTokens needs tokens of its backbone") as caught:
        check(NeedsTokens, "resnet18", root, monkeypatch)
    assert caught.value.key == "backbone.name"
    assert caught.value.found == "resnet18" and "vit_small" in caught.value.expected
    with pytest.raises(ConfigError, match="NeedsMap needs map of its backbone"):
        check(NeedsMap, "mixer_s32_224", root, monkeypatch)
    check(NeedsTokens, "vit_tiny_patch16_224", root, monkeypatch)
    check(NeedsMap, "resnet18", root, monkeypatch)


def test_a_hybrid_vit_whose_patches_are_of_a_cnns_map_has_a_map_and_no_tokens(root, monkeypatch):
    with pytest.raises(ConfigError, match="NeedsTokens needs tokens of its backbone"):
        check(NeedsTokens, "vit_tiny_r_s16_p8_224", root, monkeypatch)
    options = {"img_size": 64, "depth": 1, "embed_dim": 24, "num_heads": 2}
    hybrid, x = build({"name": "vit_tiny_r_s16_p8_224", "options": options}), images(size=64)
    assert hybrid.feature_map(x).shape == (3, 24, 2, 2)
    assert [level.stride for level in hybrid.levels] == [32]


# timm's families.

FAMILIES = [
    *("resnet26d", "resnext26ts", "seresnet18", "resnetv2_18", "res2net50_14w_8s", "vgg11_bn"),
    *("convnext_atto", "convnextv2_atto", "efficientnet_b0", "mobilenetv3_small_050"),
    *("regnety_002", "dla34", "repvgg_a0", "darknet17", "mambaout_femto", "poolformer_s12"),
    *("swin_tiny_patch4_window7_224", "pvt_v2_b0", "deit3_small_patch16_224", "mixer_s32_224"),
    *("vit_tiny_patch16_224", "beit_base_patch16_224"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_says_of_what_size_its_maps_are_and_orders_its_layers(name):
    backbone = on_meta(Part(Timm, name=name))
    ordered = [parameter for layer in backbone.layers() for parameter in layer]
    assert sorted(map(id, ordered)) == sorted(map(id, backbone.parameters()))
    first, *_, last = backbone.layers()
    every = list(backbone.parameters())
    assert any(p is every[0] for p in first) and any(p is every[-1] for p in last)
    if not fits(backbone, "maps"):
        return
    x = torch.empty(2, 3, *backbone.made_for, device="meta")
    with torch.no_grad():
        maps = backbone.feature_maps(x)
        assert backbone.pool(maps[-1]).shape == (2, backbone.num_features)
    strides = [level.stride for level in backbone.levels]
    assert strides == sorted(set(strides))
    shapes = [(level.channels, x.shape[2] // level.stride) for level in backbone.levels]
    assert [found.shape[1:3] for found in maps] == shapes


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("resnet50", {}, 1 + 3 + 4 + 6 + 3),
        ("resnet18", {}, 1 + 2 + 2 + 2 + 2),
        ("vit_tiny_patch16_224", {}, 1 + 12),
        # A downsampling goes with the block behind it; pooling has a norm of its own.
        ("convnext_tiny", {}, 1 + 3 + 3 + 9 + 3 + 1),
    ],
)
def test_a_layer_is_a_block(name, options, layers):
    assert len(on_meta(Part(Timm, name=name, options=options)).layers()) == layers


# What is refused.


@pytest.mark.parametrize(
    ("name", "options", "key", "said", "nearest"),
    [
        ("resnet18", {"layer": [1, 1, 1, 1]}, "layer", "unexpected keyword", "layers"),
        ("resnet18", {"layers": 3, "channels": [8] * 4}, "layers", "not iterable", ""),
        (VIT["name"], {"num_heads": 5, "embed_dim": 24}, "num_heads", "divisible", ""),
        (VIT["name"], {"act_layer": "gel"}, "act_layer", "KeyError: 'gel'", ""),
        ("resnet18", {"num_classes": 10}, "num_classes", "has no classifier", ""),
        ("resnet18", {"global_pool": ""}, "global_pool", "features are pooled", ""),
    ],
)
def test_the_option_that_timm_refuses_is_named(name, options, key, said, nearest):
    with pytest.raises(ConfigError, match=said) as caught:
        bind(BACKBONES, {"type": "Timm", "name": name, "options": options}, "backbone")()
    assert caught.value.key == f"backbone.options.{key}" and caught.value.nearest == nearest
    assert caught.value.found == repr(options[key])


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"name": "resnet18", "options": {"layer": [1]}}, "options.layer"),
        ({"name": "resnet18", "options": {"layers": [1, 1]}}, "options"),
        ({"name": "resnett18"}, "name"),
        ({"name": VIT["name"], "small_images": True}, "small_images"),
        ({"name": "vgg11", "grad_checkpointing": True}, "grad_checkpointing"),
    ],
)
def test_a_dry_run_objects_to_what_would_not_be_built_or_not_run(arguments, key):
    with pytest.raises(ConfigError) as caught:
        Timm.on_meta(**arguments)
    assert caught.value.key == key


def test_a_dry_run_reads_no_weights_and_draws_no_random_numbers(tmp_path):
    state = torch.get_rng_state()
    (tmp_path / "weights.pth").write_text("not weights")
    Timm.on_meta(**RESNET, bn_groups=4, weights=str(tmp_path / "weights.pth"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("fashion_mnist/moco_v2", "backbone.options.layer"),
        ("cifar10/cmc", "backbone.of.options.layer"),
    ],
)
def test_an_option_that_timm_refuses_is_told_with_the_rest_of_the_config(name, key, root):
    cfg = config.load(root / f"configs/{name}.yaml", [f"{key}=1"])
    with pytest.raises(ConfigError, match="does not take it") as caught:
        parse(cfg)
    assert caught.value.key == key and "override" in caught.value.where


@pytest.mark.parametrize("name", ["mixer_s16_224", "levit_128s", "coatnet_nano_rw_224"])
def test_the_dry_run_of_a_model_of_another_size_is_at_that_size(name):
    Timm.on_meta(name=name, options={"img_size": 64})


@pytest.mark.parametrize("part", ["forward", "feature_map", "tokens"])
@pytest.mark.parametrize(
    ("shape", "key", "found"),
    [((3, 16, 64), "options.img_size", "32 x 32"), ((1, 32, 32), "in_chans", "3")],
)
def test_images_that_a_vit_does_not_take_are_refused(part, shape, key, found):
    backbone = build(VIT)
    with pytest.raises(ConfigError) as caught:
        getattr(backbone, part)(torch.randn(2, *shape))
    assert caught.value.key == f"backbone.{key}" and caught.value.found == found


def test_images_of_other_channels_than_a_cnns_are_refused():
    with pytest.raises(ConfigError, match=r"backbone\.in_chans: images have 1 channels"):
        build(RESNET)(torch.randn(2, 1, 32, 32))


# Gradient checkpointing.


@pytest.mark.parametrize(
    ("kind", "part"),
    [(RESNET, part) for part in ("forward", "feature_map", "feature_maps", "both parts")]
    + [(VIT, part) for part in ("forward", "feature_map", "tokens")],
    ids=lambda value: value["name"] if isinstance(value, dict) else value,
)
def test_gradient_checkpointing_gives_the_same_numbers(kind, part):
    plain, saving = Timm(**kind), Timm(**kind, grad_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x, found = images(), []
    for backbone in (plain, saving):
        whole = part != "both parts"
        out = getattr(backbone, part)(x) if whole else backbone.c5(backbone.c4(x))
        out = torch.cat([o.flatten() for o in out])
        out.square().mean().backward()
        grads = [p.grad for p in backbone.parameters() if p.grad is not None]
        # How often a BatchNorm ran is counted twice; nothing reads it.
        state = {k: v for k, v in backbone.state_dict().items() if "num_batches" not in k}
        found.append((out, grads, state))
    assert len(found[0][1]) == len(found[1][1]) > 0
    torch.testing.assert_close(*found)


def test_batchnorm_behind_the_pooling_learns_its_statistics_under_gradient_checkpointing():
    kind = {"name": "mobilenetv4_conv_small_035"}
    plain, saving = Timm(**kind), Timm(**kind, grad_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x = images()
    for backbone in (plain, saving):
        for _ in range(2):
            backbone.pool(backbone.feature_map(x)).square().mean().backward()
    expected, found = plain.model.norm_head, saving.model.norm_head
    assert expected.running_mean.any()
    torch.testing.assert_close(found.running_mean, expected.running_mean)
    torch.testing.assert_close(found.running_var, expected.running_var)


# The arguments.


def test_options_may_be_null():
    part = bind(BACKBONES, {"type": "Timm", "name": "resnet18", "options": None, "bn_groups": 1})
    part.replaced(Timm.on_meta)()
    assert part.spelled_out()["options"] is None
    with torch.device("meta"):
        assert part().num_features == 512


@pytest.mark.parametrize("key", ["in_chans", "bn_groups"])
def test_counts_below_one_are_refused_in_yaml_and_in_python(key):
    with pytest.raises(ConfigError, match="too small"):
        bind(BACKBONES, {"type": "Timm", "name": "resnet18", key: 0})
    with pytest.raises(ConfigError, match="too small") as caught:
        Timm(name="resnet18", **{key: 0})
    assert caught.value.key == key


def test_weights_may_lie_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved = build(RESNET)
    torch.save(saved.model.state_dict(), tmp_path / "resnet.pth")
    part = bind(BACKBONES, {"type": "Timm", "weights": "~/resnet.pth", **RESNET})
    torch.testing.assert_close(part().state_dict(), saved.state_dict())
    with pytest.raises(ConfigError, match="no such file") as caught:
        Timm(weights="~/resnett.pth", **RESNET)
    assert caught.value.nearest == str(tmp_path / "resnet.pth")


def test_a_cnn_given_a_vits_options_is_told_that_it_is_the_wrong_kind(root):
    override = "backbone.name=resnet18"  # img_size and patch_size stay from the config
    with pytest.raises(ConfigError, match="MAE needs tokens of its backbone"):
        parse(config.load(root / "configs/fashion_mnist/mae.yaml", [override]))
