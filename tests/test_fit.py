"""Views and network are brought together before any data are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssl_zoo import config, experiment
from ssl_zoo.config import ConfigError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Small ones of timm's families, with sizes of views that they take.
TAKES = {
    "resnet10t": (32, 33, 96),
    "convnext_atto": (32, 33, 96),
    "efficientnet_lite0": (32, 33),
    "mobilenetv3_small_050": (32, 96),
    "vit_tiny_patch16_224": (224,),
    "swin_tiny_patch4_window7_224": (224,),
    "maxvit_rmlp_pico_rw_256": (256,),
    "vitamin_small_224": (224,),  # a ViT whose patches come from a CNN
    "inception_v3": (75, 96),
}


def parse(recipe: str, *overrides):
    return experiment.parse(config.load(CONFIGS / f"{recipe}.yaml", overrides))


def refused(recipe: str, *overrides) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(recipe, *overrides)
    return caught.value


def sized(name: str, size: int) -> list:
    """MoCo v2 with a network, at a size."""
    of_views = [("data.views.ops.crop.size", size), ("data.clean.ops.crop.size", size)]
    return [("backbone", {"type": "Timm", "name": name}), *of_views]


@pytest.mark.parametrize(("name", "sizes"), TAKES.items(), ids=list(TAKES))
def test_sizes_that_a_model_takes_pass(name, sizes):
    for size in sizes:
        parse("imagenet/moco_v2", *sized(name, size))


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("vit_tiny_patch16_224", 32, "224 x 224; or backbone.options.img_size=32"),
        ("vit_tiny_patch16_224", 36, "224 x 224"),
        ("swin_tiny_patch4_window7_224", 32, "224 x 224; or backbone.options.img_size=32"),
        ("maxvit_rmlp_pico_rw_256", 64, "or backbone.options.img_size=64"),
        ("mixer_s32_224", 64, "224 x 224; or backbone.options.img_size=64"),
        ("inception_v3", 32, "75 x 75"),
    ],
)
def test_a_size_that_a_model_does_not_take_is_told_with_the_way_out(name, size, expected):
    error = refused("imagenet/moco_v2", *sized(name, size))
    assert error.key == "data.views.ops.crop.size" and error.found == f"{size} x {size}"
    assert f"{name} does not take views 0-1: " in error.problem
    assert error.expected.endswith(expected)
    if "; or " in error.expected:
        key, _, value = error.expected.partition("; or ")[2].partition("=")
        parse("imagenet/moco_v2", *sized(name, size), (key, int(value)))


def test_a_local_crop_that_patches_do_not_divide_is_named():
    error = refused("imagenet/dino", "data.views.ops.local.size=36")
    assert error.key == "data.views.ops.local.size" and "views 2-11" in error.problem
    assert error.expected == "32 x 32 or 48 x 48"
    parse("imagenet/dino", "data.views.ops.local.size=48")


def test_crops_of_several_sizes_need_a_vit_that_takes_them():
    error = refused("imagenet/dino", "backbone.options=null")
    assert error.key == "data.views.ops.local.size" and "views 2-11" in error.problem
    assert error.expected == "224 x 224; or backbone.options.dynamic_img_size=true"
    parse("imagenet/dino", "backbone.options=null", "backbone.options.dynamic_img_size=true")


def test_a_resnet_becomes_a_vit_by_its_name_and_no_options():
    base, vit = "imagenet/moco_v2", "backbone.name=vit_tiny_patch16_224"
    resnet = ("backbone.options", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]})
    assert refused(base, resnet, vit).key.startswith("backbone.options")
    parse(base, resnet, vit, "backbone.options=null")


def test_what_an_evaluation_sees_goes_through_as_well():
    vit = "backbone.name=vit_tiny_patch16_224"
    error = refused("imagenet/moco_v2", vit, "data.clean.ops.crop.size=225")
    assert error.key == "data.clean.ops.crop.size" and "the images of knn" in error.problem
    own = {"clean": {"ops": {"crop": {"type": "CenterCrop", "size": 64}}}}
    error = refused("imagenet/moco_v2", vit, ("evaluations.knn.data", own))
    assert error.key == "evaluations.knn.data.clean.ops.crop.size"
    error = refused("imagenet/moco_v1_linear", vit, ("evaluations.linear.views.ops.crop.size", 64))
    assert error.key == "evaluations.linear.views.ops.crop.size"


def test_masks_are_for_the_size_that_a_vit_is_made_for():
    error = refused(
        "imagenet/mae",
        ("backbone.options", {"dynamic_img_size": True}),
        "data.views.ops.crop.size=160",
    )
    assert error.key == "data.views.ops.crop.size" and "10 x 10 patches" in error.problem
    assert error.expected == "224 x 224; or backbone.options.img_size=160"


@pytest.mark.parametrize(
    ("recipe", "override", "key", "said"),
    [
        ("imagenet/jigsaw", "method.patch_size=100", "data.views.ops.crop.size", "do not fit"),
        ("imagenet/relative_location", "method.patch_size=100", "data.views", "do not fit"),
        ("imagenet/pirl", "method.patch_size=100", "data.views", "do not fit"),
        ("imagenet/cpc", "data.views.ops.crop.size=64", "data.views", "too few to predict"),
        ("imagenet/jigsaw", "backbone.name=mixer_s32_224", "method.patch_size", "of view 0"),
    ],
)
def test_what_a_method_makes_of_its_views_is_tried_out(recipe, override, key, said):
    error = refused(recipe, override)
    assert error.key.startswith(key) and said in error.problem


def test_the_two_networks_of_a_pair_are_tried_out():
    of = {"type": "Timm", "name": "vit_tiny_patch16_224"}
    error = refused("cifar10/cmc", ("backbone.of", None), ("backbone.of", of))
    assert "LabPair does not take view 0" in error.problem and error.expected == "224 x 224"


def test_images_that_no_operation_resizes_are_tried_out_once_they_are_read(tmp_path):
    overrides = [
        ("backbone", None),
        ("backbone", {"type": "Timm", "name": "vit_tiny_patch16_224", "in_chans": 1}),
        ("data.views.ops.crop", None),
        ("data.clean.ops", {"normalize": {"type": "Normalize", "mean": [0.3], "std": [0.4]}}),
    ]
    cfg = config.load(CONFIGS / "digits" / "moco_v2.yaml", overrides)
    experiment.parse(cfg)
    with pytest.raises(ConfigError, match="does not take views 0-1") as caught:
        experiment.build_trainer(cfg, torch.device("cpu"), tmp_path)
    assert caught.value.found == "8 x 8"
