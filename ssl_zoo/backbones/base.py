"""What a backbone owes: images to features, and in words what else it can do."""

from torch import nn

from ssl_zoo.config import Part

# What a method may ask for (`Method.needs`), and which backbones fit, for error messages.
FITS = {
    "features": "any backbone",
    "map": "a timm CNN (resnet50, convnext_tiny, ...) or ViT (vit_small_patch16_224, ...)",
    "tokens": "a timm VisionTransformer (vit_small_patch16_224, deit3_small_patch16_224, ...)",
    "lab": "two networks, {type: LabPair, of: {type: Timm, name: resnet18}}",
}


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

    @staticmethod
    def provides(**arguments) -> set[str]:
        """Words of FITS, given the YAML arguments; builds no weights."""
        return {"features"}

    @staticmethod
    def on_meta(**arguments) -> nn.Module | None:
        """One that takes the same images, without weights on the meta device, to be looked at only.

        It says how many channels they have, `in_chans`, and `made_for`, the (height, width) that is
        usual for it. Raises the constructor's ConfigErrors, given the YAML arguments; None where
        nothing is to be tried out before data are read.
        """
        return None


def without_initial_weights(backbone: Part) -> Part:
    """The same network for a checkpoint, which brings all weights: no file `weights` is read."""
    parts = {name: part for name, part in backbone.kwargs.items() if isinstance(part, Part)}
    changed = {name: without_initial_weights(part) for name, part in parts.items()}
    if "weights" in backbone.kwargs:
        changed["weights"] = None
    return backbone.replaced(backbone.target, **changed)
