"""What a backbone owes, as protocols, and which of it a network has.

No protocol is inherited from: a network fits where it has the methods and attributes, whoever
wrote it. Methods and evaluations use nothing of a backbone but what stands here.
"""

import copy
import inspect
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ssl_zoo.config import ConfigError, Part
from ssl_zoo.config.part import Ready


class Features(Protocol):
    """Every backbone: any `nn.Module` with a width.

    Attributes:
        num_features: F.
        bn_groups: groups of the batch that its BatchNorms normalize apart, as a head's then do;
            1 for a network that does not say.
    """

    num_features: int

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, F]."""


class Map(Protocol):
    """One map, before it is pooled."""

    map_features: int  # M

    def feature_map(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, M, h, w]."""

    def pool(self, x: Tensor) -> Tensor:
        """[N, M, h, w] -> [N, F]: an image's features, unless they are a ViT's class token."""


class Level(NamedTuple):
    """A map: one cell for `stride` x `stride` pixels."""

    stride: int
    channels: int


class Maps(Protocol):
    """Maps at several strides; a plain ViT has one."""

    levels: list[Level]  # from the finest to the coarsest

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """[N, C, H, W] -> [N, channels, h, w] of each level; the last is `feature_map`'s."""


class Adaptable(Protocol):
    """What a network may offer to who trains it for its maps alone; each changes it in place."""

    def only_maps(self) -> None:
        """Images may be of any size that the last stride divides; what pools is trained no more."""

    def dilate_c5(self) -> None:
        """conv5_x keeps the size of conv4_x's map (arXiv:1911.05722, appendix); so say `levels`.

        Raises ConfigError where its stride is in layers that cannot be dilated.
        """


class SplitAtC4(Protocol):
    """A ResNet in two: up to conv4_x, and conv5_x, for a head on regions (arXiv:1506.01497)."""

    c4_level: Level

    def c4(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, channels, h, w]."""

    def c5(self, x: Tensor) -> Tensor:
        """[R, channels, h, w], regions of `c4`'s map -> [R, M, h / 2, w / 2]; `pool` takes it."""


class Tokens(Protocol):
    """A ViT: P prefix tokens (class, registers), which are no patches, and L patches.

    Attributes:
        num_prefix_tokens: P.
        patch_size, patch_values: height and width in pixels; C * height * width.
        grid_size: patches down and across an image of the size that the ViT is made for.
        depth: blocks.
        patch_embed: the module that embeds patches.
    """

    num_prefix_tokens: int
    patch_size: tuple[int, int]
    patch_values: int
    grid_size: tuple[int, int]
    depth: int
    patch_embed: nn.Module

    def tokens(
        self,
        images: Tensor,
        masked: Tensor | None = None,
        mask_token: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """[N, C, H, W] -> [N, P + L, F], after the last norm.

        Args:
            masked: [N, L] bool; `mask_token` [F] replaces these patches' embeddings, before
                positions are added (BEiT, SimMIM, iBOT).
            kept: [N, K] int64, the only patches to look at, in this order (MAE, I-JEPA, MSN):
                [N, P + K, F].
        """

    def last_blocks(self, images: Tensor, count: int) -> list[Tensor]:
        """[N, C, H, W] -> [N, P + L, F] from each of the last `count` blocks, before any norm."""

    def pool(self, x: Tensor) -> Tensor:
        """[N, P + L, F] -> [N, F]: of an image's tokens its features."""

    def require_token_norm(self) -> None:
        """Raises ConfigError where a loss on `tokens` would leave what pools them untrained."""

    def require_own_size(self, images: Tensor) -> None:
        """For methods whose masks are for `grid_size`: ValueError for images of another grid."""


class Layers(Protocol):
    """Parameters by depth, for learning rates that fall layer by layer (arXiv:2106.08254).

    Fine-tuning also asks, where a backbone has them, for `head_joins_last`, whether a classifier
    belongs to the last of these layers, and for `undecayed()`, parameters that are left out of
    weight decay as biases are.
    """

    def layers(self) -> list[list[nn.Parameter]]:
        """From the stem to what pools; each parameter is in one of them."""


class Lab(Protocol):
    """Two networks, one for each view, whose features stand side by side."""

    def views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W] -> lightness [N, 1, H, W] and color [N, 2, H, W]."""


# What may be asked for (`Method.needs`). A word that is not here is a method of the backbone.
OWED = {
    "features": Features,
    "map": Map,
    "maps": Maps,
    "c4": SplitAtC4,
    "tokens": Tokens,
    "layers": Layers,
    "lab": Lab,
}
# Which backbones fit, for error messages.
FITS = {
    "features": "any backbone",
    "map": "a timm CNN (resnet50, convnext_tiny, ...) or ViT (vit_small_patch16_224, ...)",
    "maps": "a timm CNN (resnet50, convnext_tiny, ...), Swin, or ViT, which has one",
    "c4": "a timm ResNet (resnet50, resnext50_32x4d, ...)",
    "tokens": "a timm ViT on pixels (vit_small_patch16_224, deit3_small_patch16_224, ...)",
    "layers": "any timm model",
    "lab": "two networks, {type: LabPair, of: {type: Timm, name: resnet18}}",
}


class Backbone(nn.Module):
    """A base for networks of one's own, of use to type checkers; any `nn.Module` will do."""

    num_features: int
    bn_groups: int = 1


def lacking(network: nn.Module | type, word: str) -> list[str]:
    """What it does not have of what a word stands for; of a class, methods alone are known."""
    protocol = OWED.get(word)
    if protocol is None:
        owed = [word]
    else:
        owed = [name for name in vars(protocol) if not name.startswith("_")]
        owed += [] if inspect.isclass(network) else protocol.__annotations__
    return [name for name in owed if not hasattr(network, name)]


def fits(backbone: nn.Module | type | Part, word: str) -> bool:
    """Whether it has what a word stands for; a Part: as far as that is known before it is built.

    A function may say by `class_for(**arguments)` what it will make of its arguments.
    """
    if not isinstance(backbone, Part):
        network = backbone
    elif isinstance(backbone, Ready):
        network = backbone.made
    elif hasattr(backbone.target, "class_for"):
        network = backbone.replaced(backbone.target.class_for)()
    elif inspect.isclass(backbone.target):
        network = backbone.target
    else:
        return True
    return not lacking(network, word)


def check_built(network: nn.Module, needs: str, method: str) -> None:
    """Raises ConfigError for a network without a width, or without what the method needs."""
    found = type(network).__name__
    if missing := lacking(network, "features"):
        problem, expected = f"without {', '.join(missing)}", "a module whose num_features is F"
        raise ConfigError("backbone", problem, found=found, expected=expected)
    if missing := lacking(network, needs):
        problem = f"{method} needs {needs} of its backbone"
        found = f"{found}, without {', '.join(missing)}"
        raise ConfigError("backbone", problem, found=found, expected=FITS.get(needs, needs))


def on_meta(backbone: Part) -> nn.Module | None:
    """One that takes the same images, without numbers on the meta device, to be looked at only.

    It says how many channels they have, `in_chans`, and `made_for`, the (height, width) that is
    usual for it. None where nothing is to be tried out before data are read: a network promises
    that it runs there by having both, a constructor by its `on_meta`, which is given the YAML
    arguments and raises the constructor's ConfigErrors.
    """
    if isinstance(backbone, Ready):
        made, says = backbone.made, ("in_chans", "made_for")
        known = all(hasattr(made, name) for name in says)
        return copy.deepcopy(made).to("meta").eval() if known else None
    tried = getattr(backbone.target, "on_meta", None)
    return backbone.replaced(tried)() if tried else None


def without_initial_weights(backbone: Part) -> Part:
    """The same network for a checkpoint, which brings all weights: no file `weights` is read."""
    if isinstance(backbone, Ready):
        return backbone
    parts = {name: part for name, part in backbone.kwargs.items() if isinstance(part, Part)}
    changed = {name: without_initial_weights(part) for name, part in parts.items()}
    if "weights" in backbone.kwargs:
        changed["weights"] = None
    return backbone.replaced(backbone.target, **changed)
