"""What a backbone owes: images to features, and in words what else it can do."""

import copy

from torch import nn

from ssl_zoo.config import ConfigError, Part
from ssl_zoo.config.part import Ready

# What a method may ask for (`Method.needs`), and which backbones fit, for error messages.
FITS = {
    "features": "any backbone",
    "map": "a timm CNN (resnet50, convnext_tiny, ...) or ViT (vit_small_patch16_224, ...)",
    "tokens": "a timm VisionTransformer (vit_small_patch16_224, deit3_small_patch16_224, ...)",
    "lab": "two networks, {type: LabPair, of: {type: Timm, name: resnet18}}",
}
# The methods that a word stands for.
METHODS = {"map": ("feature_map", "pool"), "tokens": ("tokens", "pool"), "lab": ("views",)}


class Backbone(nn.Module):
    """The network that is kept and evaluated; what the words of `provides` stand for:

        features   forward(images) -> [N, F]; every backbone has it
        map        feature_map(images) -> [N, M, h, w], before it is pooled; pool(map) -> [N, F]
        tokens     a ViT's tokens(images, masked, mask_token, kept) -> [N, P + L, F], its first P
                   no patches; pool(tokens) -> [N, F]; and its sizes, see `Timm`
        lab        views(images) -> [N, 1, H, W], [N, 2, H, W]: lightness and color

    The file that a network starts from is an argument `weights`, null for none.

    Attributes:
        num_features: F.
        map_features: M, where there is a map.
        bn_groups: groups of the batch that its BatchNorms normalize apart, as a head's then do.
    """

    num_features: int
    map_features: int
    bn_groups: int = 1


def words(network: nn.Module | type) -> set[str]:
    """Words of FITS that a network, or each of a class, has the methods for."""
    having = {word for word, names in METHODS.items() if all(hasattr(network, n) for n in names)}
    return {"features"} | having


def provided(backbone: Part) -> set[str] | None:
    """Words of FITS that it will stand for, before it is built; None where only that will tell."""
    if isinstance(backbone, Ready):
        return words(backbone.made)
    if hasattr(backbone.target, "provides"):
        return backbone.target.provides(**backbone.kwargs)
    return words(backbone.target) if isinstance(backbone.target, type) else None


def on_meta(backbone: Part) -> nn.Module | None:
    """One that takes the same images, without numbers on the meta device, to be looked at only.

    It says how many channels they have, `in_chans`, and `made_for`, the (height, width) that is
    usual for it. None where nothing is to be tried out before data are read: a network promises
    that it runs there by having `made_for`, a class by its static method `on_meta`, which is given
    the YAML arguments and raises the constructor's ConfigErrors.
    """
    if isinstance(backbone, Ready):
        made = backbone.made
        return copy.deepcopy(made).to("meta").eval() if hasattr(made, "made_for") else None
    tried = getattr(backbone.target, "on_meta", None)
    return backbone.replaced(tried)() if tried else None


def check_built(network: nn.Module, needs: str, method: str) -> None:
    """Raises ConfigError for one without a width, or without what the method needs."""
    kind = type(network).__name__
    if not hasattr(network, "num_features"):
        problem, expected = "of unknown width", "a module whose attribute num_features is F"
        raise ConfigError("backbone", problem, found=kind, expected=expected)
    if needs in FITS and needs not in words(network):
        problem = f"{method} needs {needs} of its backbone"
        raise ConfigError("backbone", problem, found=kind, expected=FITS[needs])


def without_initial_weights(backbone: Part) -> Part:
    """The same network for a checkpoint, which brings all weights: no file `weights` is read."""
    parts = {name: part for name, part in backbone.kwargs.items() if isinstance(part, Part)}
    if isinstance(backbone, Ready):
        return backbone
    changed = {name: without_initial_weights(part) for name, part in parts.items()}
    if "weights" in backbone.kwargs:
        changed["weights"] = None
    return backbone.replaced(backbone.target, **changed)
