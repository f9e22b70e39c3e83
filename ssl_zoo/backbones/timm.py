"""Any timm model as a backbone."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import torch
from timm.models import VisionTransformer, checkpoint_seq
from torch import Tensor

from ssl_zoo.backbones import timm_models as models
from ssl_zoo.backbones.base import FITS, Backbone
from ssl_zoo.config import BACKBONES, ConfigError, PositiveInt
from ssl_zoo.ops.batchnorm import hold_statistics, split_batchnorm
from ssl_zoo.ops.masking import take


@BACKBONES.register_module()
class Timm(Backbone):
    """A timm model without its classifier: images [N, C, H, W] -> pooled features [N, F].

    Args:
        name: timm's name, `resnet50`, `vit_small_patch16_224`, ...
        small_images: for ResNets, a 3x3 stride-1 stem without max-pool, for 28 to 64 pixels.
        bn_groups: normalize this many groups of the batch apart (virtual devices).
        grad_checkpointing: keep few activations and compute the others again in the backward pass
            (arXiv:1604.06174): less memory, about a third more time, the same numbers.
        weights: a local file with a state_dict, .pth or .safetensors.
        options: of the model's constructor: `{layers: [1, 1, 1, 1], channels: [32, 64, 128, 256]}`
            makes resnet18 a ResNet-10 of half the width.

    Attributes:
        num_prefix_tokens: P, class and register tokens; this and the others of a ViT alone.
        patch_size, patch_values: height and width in pixels; C * height * width.
        grid_size: patches down and across an image of the size that the ViT is made for.
        made_for: that size in pixels, of other models the one that is usual.
    """

    def __init__(
        self,
        *,
        name: str,
        in_chans: PositiveInt = 3,
        small_images: bool = False,
        bn_groups: PositiveInt = 1,
        grad_checkpointing: bool = False,
        weights: str | None = None,
        options: dict | None = None,
    ):
        super().__init__()
        model = models.create_model(name, in_chans, options or {})
        if small_images:
            models.replace_stem(model, name)
        if weights is not None:
            models.load_weights(model, weights)
        if grad_checkpointing:
            models.checkpoint_gradients(model, name)
        self.grad_checkpointing = grad_checkpointing
        self.model = split_batchnorm(model, bn_groups)
        self.bn_groups, self.in_chans = bn_groups, in_chans
        # Some models put a layer between pooling and classifier, and timm counts its width apart.
        self.num_features: int = getattr(model, "head_hidden_size", None) or model.num_features
        self.map_features: int = model.num_features
        if isinstance(model, VisionTransformer):
            self.num_prefix_tokens, embed = model.num_prefix_tokens, model.patch_embed
            self.patch_size, self.grid_size = embed.patch_size, embed.grid_size
            self.patch_values = embed.proj.weight[0].numel()
        size = (options or {}).get("img_size")
        size = size or getattr(getattr(model, "patch_embed", None), "img_size", None)
        size = size or model.pretrained_cfg.get("input_size", (3, 224, 224))[1:]
        self.made_for = (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, images: Tensor) -> Tensor:
        return self._once(self.model, images)

    def feature_map(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, M, h, w], of a ViT its patches; ConfigError if there is no grid."""
        x = self._once(self.model.forward_features, images)
        if isinstance(self.model, VisionTransformer):
            size = self.model.patch_embed.dynamic_feat_size(images.shape[2:])
            return x[:, self.model.num_prefix_tokens :].mT.unflatten(2, size)
        if x.ndim == 4 and x.shape[1] == self.model.num_features:
            return x
        if x.ndim == 4 and x.shape[3] == self.model.num_features:  # as Swin's
            return x.permute(0, 3, 1, 2)
        raise ConfigError("backbone.name", "its features are not on a grid", expected=FITS["map"])

    def tokens(
        self,
        images: Tensor,
        masked: Tensor | None = None,
        mask_token: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """A ViT's outputs after its last norm, prefix tokens first: [N, P + L, F].

        Args:
            images: [N, C, H, W], in L patches.
            masked: [N, L] bool; `mask_token` [F] replaces these patches' embeddings, before
                positions are added (BEiT, SimMIM, iBOT).
            kept: [N, K] int64, the only patches to look at, in this order (MAE, I-JEPA, MSN):
                [N, P + K, F].
        """
        self._check(images)
        vit = self.model
        x = vit.patch_embed(images)  # [N, L, F], or [N, h, w, F] where sizes may vary
        if masked is not None:
            masked = masked.view(*x.shape[:-1], 1)
            x = torch.where(masked, mask_token.to(x.dtype), x)
        x = vit._pos_embed(x)  # [N, P + L, F]
        if kept is not None:
            prefix, patches = x.tensor_split([vit.num_prefix_tokens], dim=1)
            x = torch.cat([prefix, take(patches, kept)], dim=1)  # [N, P + K, F]
        x = vit.norm_pre(vit.patch_drop(x))
        x = checkpoint_seq(vit.blocks, x) if vit.grad_checkpointing else vit.blocks(x)
        return vit.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        """A map [N, M, h, w] (a ViT's by attention or mean) or tokens [N, P + L, F] -> [N, F]."""
        if x.ndim == 4 and isinstance(self.model, VisionTransformer):
            x = x.flatten(2).mT  # [N, L, F]
            attend = self.model.attn_pool
            return self.model.fc_norm(x.mean(dim=1) if attend is None else attend(x))
        if x.ndim == 4 and getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            x = x.permute(0, 2, 3, 1)  # as Swin's
        return self.model.forward_head(x, pre_logits=True)

    def require_token_norm(self) -> None:
        """Raises ConfigError where a loss on `tokens` would leave what pools them untrained."""
        by_attention = self.model.attn_pool is not None
        if by_attention or list(self.model.fc_norm.parameters()):
            pools = "pools by attention" if by_attention else "has its last norm after pooling"
            problem = f"it {pools}, which a loss on tokens does not reach"
            found, expected = self.model.global_pool, "global_pool: avg, and fc_norm: false"
            raise ConfigError("backbone.options", problem, found=found, expected=expected)

    def require_own_size(self, images: Tensor) -> None:
        """For methods whose masks are for `grid_size`: ValueError for images of another grid."""
        grid = self.model.patch_embed.dynamic_feat_size(images.shape[2:])
        if grid != self.grid_size:
            found = "images of {} x {} pixels make {} x {} patches".format(*images.shape[2:], *grid)
            sides = [n * p for n, p in zip(self.grid_size, self.patch_size, strict=True)]
            expected = "{} x {} pixels (backbone.options.img_size)".format(*sides)
            raise ValueError(f"{found}, where masks have others: expected {expected}")

    @staticmethod
    def provides(*, name: str, **_) -> set[str]:
        """Looks at no options: a CNN that got a ViT's is told first that it is the wrong kind."""
        model = models.without_weights(name)
        if isinstance(model, VisionTransformer):
            return {"features", "map", "tokens"}
        size = model.pretrained_cfg.get("input_size", (3, 224, 224))[1:]
        images = torch.empty(2, 3, *size, device="meta")
        on_grid = getattr(model.forward_features(images), "ndim", 0) == 4  # some give lists
        return {"features", "map"} if on_grid else {"features"}

    @staticmethod
    def on_meta(**arguments) -> Timm:
        """Has taken an image of the size it is made for; `weights` are looked for and not read."""
        if arguments.get("weights") is not None:
            models.check_weights(arguments["weights"])
        return _on_meta(json.dumps(arguments | {"weights": None}, sort_keys=True))

    @staticmethod
    def validate(*, name: str, options: dict | None, **_) -> None:
        models.check_model(name, options or {})

    def _check(self, images: Tensor) -> None:
        """Raises ConfigError for images of other channels or, where it is fixed, another size."""
        channels, *size = images.shape[1:]
        if channels != self.in_chans:
            found, expected = str(self.in_chans), str(channels)
            problem = f"images have {channels} channels"
            raise ConfigError("backbone.in_chans", problem, found=found, expected=expected)
        embed = getattr(self.model, "patch_embed", None)
        if getattr(embed, "strict_img_size", False) and tuple(size) != embed.img_size:
            problem = "images are of {} x {} pixels".format(*size)
            found, expected = "{} x {}".format(*embed.img_size), f"{size}, or other images"
            raise ConfigError("backbone.options.img_size", problem, found=found, expected=expected)

    def _once(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        self._check(images)
        if not self.grad_checkpointing:
            return function(images)
        # The backward pass runs parts of the network again, outside of this call. BatchNorm would
        # then take the same batch into its running statistics twice.
        hold_statistics(self.model, False, "recomputation")
        features = function(images)
        hold_statistics(self.model, True, "recomputation")
        return features


@cache  # many configs share a backbone
def _on_meta(arguments: str) -> Timm:
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
