"""What a timm model gives beside its pooled features: maps, tokens, masking."""

from __future__ import annotations

import pytest
import torch

from ssl_zoo import config
from ssl_zoo.backbones import Timm
from ssl_zoo.config import BACKBONES, METHODS, ConfigError, bind
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


def build(kind: dict, **kwargs) -> Timm:
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


def test_features_that_are_on_no_grid_are_refused():
    with pytest.raises(ConfigError, match="not on a grid"):
        build({"name": "mixer_s32_224"}).feature_map(images(1, 224))


# What a model provides.


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (RESNET, {"features", "map"}),
        ({"name": "swin_tiny_patch4_window7_224"}, {"features", "map"}),
        (VIT, {"features", "map", "tokens"}),
        ({"name": "mixer_s32_224"}, {"features"}),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_model_says_what_it_provides(kind, expected):
    assert Timm.provides(**kind) == expected


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


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "coat_tiny"])
def test_a_model_that_gives_several_maps_provides_features_alone(name):
    assert Timm.provides(name=name) == {"features"}


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
    [(RESNET, "forward"), (RESNET, "feature_map")]
    + [(VIT, part) for part in ("forward", "feature_map", "tokens")],
    ids=lambda value: value["name"] if isinstance(value, dict) else value,
)
def test_gradient_checkpointing_gives_the_same_numbers(kind, part):
    plain, saving = Timm(**kind), Timm(**kind, grad_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x, found = images(), []
    for backbone in (plain, saving):
        out = getattr(backbone, part)(x)
        out.square().mean().backward()
        grads = [p.grad for p in backbone.parameters() if p.grad is not None]
        # How often a BatchNorm ran is counted twice; nothing reads it.
        state = {k: v for k, v in backbone.state_dict().items() if "num_batches" not in k}
        found.append((out, grads, state))
    assert len(found[0][1]) == len(found[1][1]) > 0
    torch.testing.assert_close(*found)


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
