"""Any timm model as a backbone."""

import json
from functools import cache

import torch
from timm.layers import PatchEmbed
from timm.models import ResNet, VisionTransformer
from torch import nn

from ssl_zoo.backbones.timm_model import (
    TimmMaps,
    TimmModel,
    TimmResNet,
    checkpoint_gradients,
    replace_stem,
)
from ssl_zoo.backbones.timm_options import create_model, without_weights
from ssl_zoo.backbones.timm_vit import TimmViT, TimmViTMaps
from ssl_zoo.backbones.weights import check_weights, load_weights
from ssl_zoo.config import BACKBONES, ConfigError, PositiveInt


@BACKBONES.register_module()
def Timm(
    *,
    name: str,
    in_chans: PositiveInt = 3,
    small_images: bool = False,
    bn_groups: PositiveInt = 1,
    grad_checkpointing: bool = False,
    weights: str | None = None,
    options: dict | None = None,
) -> TimmModel:
    """A timm model without its classifier, with all that a model of its kind can give.

    Args:
        name: timm's name, `resnet50`, `vit_small_patch16_224`, ...
        small_images: for ResNets, a 3x3 stride-1 stem without max-pool, for 28 to 64 pixels.
        bn_groups: normalize this many groups of the batch apart (virtual devices).
        grad_checkpointing: keep few activations and compute the others again in the backward pass
            (arXiv:1604.06174): less memory, about a third more time, the same numbers.
        weights: a local file with a state_dict, .pth or .safetensors.
        options: of the model's constructor: `{layers: [1, 1, 1, 1], channels: [32, 64, 128, 256]}`
            makes resnet18 a ResNet-10 of half the width.
    """
    model = create_model(name, in_chans, options or {})
    if small_images:
        replace_stem(model, name)
    if weights is not None:
        load_weights(model, weights)
    if grad_checkpointing:
        checkpoint_gradients(model, name)
    size = (options or {}).get("img_size")
    size = size or getattr(getattr(model, "patch_embed", None), "img_size", None)
    size = size or _usual_size(model)
    made_for = (size, size) if isinstance(size, int) else tuple(size)
    return _class_of(model, name)(model, in_chans, bn_groups, grad_checkpointing, made_for)


def _class_of(model: nn.Module, name: str) -> type[TimmModel]:
    if isinstance(model, VisionTransformer):
        # A hybrid's patches are of a CNN's map: they see one another's pixels, and say their size
        # in that map's cells.
        return TimmViT if isinstance(model.patch_embed, PatchEmbed) else TimmViTMaps
    if isinstance(model, ResNet):
        return TimmResNet
    return TimmMaps if _is_on_grid(name) else TimmModel


@cache
def _is_on_grid(name: str) -> bool:
    model = without_weights(name)
    images = torch.empty(2, 3, *_usual_size(model), device="meta")
    return getattr(model.forward_features(images), "ndim", 0) == 4  # some give lists


def _usual_size(model: nn.Module) -> tuple[int, int]:
    return model.pretrained_cfg.get("input_size", (3, 224, 224))[1:]


def _class_for(*, name: str, **_) -> type[TimmModel]:
    """Looks at no options: a CNN that got a ViT's is told first that it is the wrong kind."""
    return _class_of(without_weights(name), name)


def _tried(**arguments) -> TimmModel:
    """Has taken an image of the size it is made for; `weights` are looked for and not read."""
    if arguments.get("weights") is not None:
        check_weights(arguments["weights"])
    return _tried_without_weights(json.dumps(arguments | {"weights": None}, sort_keys=True))


@cache  # many configs share a backbone
def _tried_without_weights(arguments: str) -> TimmModel:
    block = json.loads(arguments)
    with torch.device("meta"):
        backbone = Timm(**block).eval()
    try:
        with torch.no_grad():
            backbone(torch.empty(2, backbone.in_chans, *backbone.made_for, device="meta"))
    except Exception as error:  # timm builds a ResNet of two stages, and expects four in it
        problem = f"timm's {block['name']} does not run with them: {type(error).__name__}: {error}"
        raise ConfigError("options", problem, found=repr(block.get("options"))) from error
    return backbone


# What is known before there are weights, see `fits` and `on_meta`.
Timm.class_for, Timm.on_meta = _class_for, _tried
