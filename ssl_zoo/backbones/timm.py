"""Any timm model as a backbone."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path

import timm
import torch
from timm.models import (
    ResNet,
    VisionTransformer,
    checkpoint_seq,
    get_pretrained_cfg,
    is_model,
    list_pretrained,
    load_checkpoint,
)
from timm.models import list_models as timm_models
from torch import Tensor, nn

from ssl_zoo.backbones.cpu.layers import speed_up
from ssl_zoo.config import BACKBONES, ConfigError, at_least, closest
from ssl_zoo.ops.batchnorm import hold_statistics, split_batchnorm

# What timm's constructors would take, and what to say instead.
_NOT_OPTIONS = {
    "pretrained": "weights come from `weights`",
    "checkpoint_path": "weights come from `weights`",
    "in_chans": "channels come from `in_chans`",
    "num_classes": "a backbone has no classifier",
    "features_only": "a backbone gives pooled features",
}

# Which backbones fit what a method needs, for error messages.
FITS = {
    "features": "any backbone",
    "map": "a timm CNN (resnet50, convnext_tiny, ...) or ViT (vit_small_patch16_224, ...)",
    "tokens": "a timm VisionTransformer (vit_small_patch16_224, deit3_small_patch16_224, ...)",
}


@BACKBONES.register_module()
class Timm(nn.Module):
    """A timm model without its classifier: images [N, C, H, W] -> pooled features [N, F].

    Args:
        name: timm's name, `resnet50`, `vit_small_patch16_224`, ...
        in_chans: channels of the images.
        small_images: for ResNets, a 3x3 stride-1 stem without max-pool, the usual change for
            images of 28 to 64 pixels.
        bn_groups: normalise this many groups of the batch apart (virtual devices).
        grad_checkpointing: keep the activations between the network's parts only, and compute the
            others a second time in the backward pass (arXiv:1604.06174): less memory, about a
            third more time, the same numbers.
        weights: a local file with a state_dict, .pth or .safetensors.
        options: further arguments of the model's constructor. Smaller networks come from here:
            `{layers: [1, 1, 1, 1], channels: [32, 64, 128, 256]}` makes resnet18 a ResNet-10 of
            half the width.
    """

    def __init__(
        self,
        *,
        name: str,
        in_chans: int = 3,
        small_images: bool = False,
        bn_groups: int = 1,
        grad_checkpointing: bool = False,
        weights: str | None = None,
        options: dict = {},  # noqa: B006
    ):
        super().__init__()
        model = _create(name, in_chans, options)
        if small_images:
            _small_stem(model, name)
        if weights is not None:
            _load(model, weights)
        if grad_checkpointing:
            _checkpoint_gradients(model, name)
        self.grad_checkpointing = grad_checkpointing
        self.model = speed_up(split_batchnorm(model, bn_groups))
        self.bn_groups, self.in_chans = bn_groups, in_chans
        # Some models put a layer between pooling and classifier, and timm counts its width apart.
        self.num_features: int = getattr(model, "head_hidden_size", None) or model.num_features
        self.map_features: int = model.num_features

    def forward(self, images: Tensor) -> Tensor:
        return self._once(self.model, images)

    def feature_map(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, F, h, w], what `pool` makes features of; of a ViT its patches.

        Raises:
            ConfigError: a model whose features are not on a grid.
        """
        x = self._once(self.model.forward_features, images)
        if isinstance(self.model, VisionTransformer):
            size = self.model.patch_embed.dynamic_feat_size(images.shape[2:])
            return x[:, self.model.num_prefix_tokens :].mT.unflatten(2, size)
        if x.ndim == 4 and x.shape[1] == self.model.num_features:
            return x
        if x.ndim == 4 and x.shape[3] == self.model.num_features:  # Swin and its like
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
            masked: [N, L] bool; these patches' embeddings are replaced by `mask_token` [F], before
                positions are added (BEiT, SimMIM, iBOT).
            kept: [N, K] int64, patches to look at; the others are left out (MAE, I-JEPA, MSN):
                [N, P + K, F], in the order of `kept`.

        Raises:
            ConfigError: images that the ViT does not take.
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
            patches = patches.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
            x = torch.cat([prefix, patches], dim=1)  # [N, P + K, F]
        x = vit.norm_pre(vit.patch_drop(x))
        x = checkpoint_seq(vit.blocks, x) if vit.grad_checkpointing else vit.blocks(x)
        return vit.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        """A map [N, F, h, w] or a ViT's tokens [N, P + L, F] -> features [N, F].

        A ViT's map is pooled by the ViT's attention where it has one (`global_pool: map`), else to
        the patches' mean, whatever its tokens are pooled by.
        """
        if x.ndim == 4 and isinstance(self.model, VisionTransformer):
            x = x.flatten(2).mT  # [N, L, F]
            attend = self.model.attn_pool
            return self.model.fc_norm(x.mean(dim=1) if attend is None else attend(x))
        if x.ndim == 4 and getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            x = x.permute(0, 2, 3, 1)  # Swin and its like
        return self.model.forward_head(x, pre_logits=True)

    @property
    def num_prefix_tokens(self) -> int:
        """Of a ViT: class and register tokens, P."""
        return self.model.num_prefix_tokens

    @property
    def patch_size(self) -> tuple[int, int]:
        """Of a ViT: height and width of a patch in pixels."""
        return self.model.patch_embed.patch_size

    @property
    def patch_values(self) -> int:
        """Of a ViT: numbers in a patch, C * height * width."""
        return self.model.patch_embed.proj.weight[0].numel()

    @property
    def grid_size(self) -> tuple[int, int]:
        """Of a ViT: patches down and across an image of its own size."""
        return self.model.patch_embed.grid_size

    def require_token_norm(self) -> None:
        """For methods that train `tokens` alone: what pooling alone uses would never be trained.

        Raises:
            ConfigError: its last norm comes after pooling, timm's way with `global_pool: avg`, or
                it pools by attention, `global_pool: map`.
        """
        found = f"global_pool: {self.model.global_pool}"
        if self.model.attn_pool is not None:
            raise ConfigError(
                "backbone.options",
                "it pools by attention, which a loss on tokens does not reach",
                found=found,
                expected="global_pool: avg, and fc_norm: false",
            )
        if any(True for _ in self.model.fc_norm.parameters()):
            raise ConfigError(
                "backbone.options",
                "the last norm comes after pooling, where a loss on tokens does not reach it",
                found=found,
                expected="also fc_norm: false",
            )

    def require_own_size(self, images: Tensor) -> None:
        """For methods whose masks are for `grid_size`; `dynamic_img_size` lets others in.

        Raises:
            ValueError: images that make another grid of patches.
        """
        found = self.model.patch_embed.dynamic_feat_size(images.shape[2:])
        if found != self.grid_size:
            own = [n * p for n, p in zip(self.grid_size, self.patch_size, strict=True)]
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels make {found[0]} x "
                f"{found[1]} patches, and masks are for {self.grid_size[0]} x {self.grid_size[1]}: "
                f"expected {own[0]} x {own[1]} pixels (backbone.options.img_size)"
            )

    @staticmethod
    def provides(*, name: str, **_) -> set[str]:
        """What methods may ask of this model, see `Method.needs`; builds no weights.

        Without its options: a CNN that got a ViT's is told first that it is the wrong kind.
        """
        model = _without_weights(name)
        if isinstance(model, VisionTransformer):
            return {"features", "map", "tokens"}
        size = model.pretrained_cfg.get("input_size", (3, 224, 224))[1:]
        images = torch.empty(2, 3, *size, device="meta")
        on_grid = getattr(model.forward_features(images), "ndim", 0) == 4  # some give lists
        return {"features", "map"} if on_grid else {"features"}

    @staticmethod
    def dry_run(**arguments) -> None:
        """Meets what the constructor objects to, before any data is read; builds no weights.

        Not a part of `validate`, so that a model of the wrong kind can be told first that it is.

        Raises:
            ConfigError: as the constructor's.
        """
        if arguments.keys() & {"options", "small_images", "grad_checkpointing", "bn_groups"}:
            _dry_run(json.dumps(arguments | {"weights": None}, sort_keys=True))

    def _check(self, images: Tensor) -> None:
        """Raises ConfigError for images of other channels or, where it is fixed, another size."""
        if images.shape[1] != self.in_chans:
            raise ConfigError(
                "backbone.in_chans",
                f"images have {images.shape[1]} channels",
                found=str(self.in_chans),
                expected=str(images.shape[1]),
            )
        embed = getattr(self.model, "patch_embed", None)
        if getattr(embed, "strict_img_size", False) and images.shape[2:] != embed.img_size:
            height, width = images.shape[2:]
            raise ConfigError(
                "backbone.options.img_size",
                f"images are of {height} x {width} pixels",
                found="{} x {}".format(*embed.img_size),
                expected=f"[{height}, {width}], or other views and clean images",
            )

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

    @staticmethod
    def validate(
        name: str,
        in_chans: int = 3,
        weights: str | None = None,
        options: dict = {},  # noqa: B006
        **_,
    ) -> None:
        at_least("in_chans", in_chans, 1)
        for key in sorted(_NOT_OPTIONS.keys() & options.keys()):
            raise ConfigError(f"options.{key}", _NOT_OPTIONS[key], found=repr(options[key]))
        if options.get("global_pool") == "":
            raise ConfigError(
                "options.global_pool", "features are pooled", found="''", expected="avg"
            )
        if not is_model(name.split(".")[0]):
            raise ConfigError(
                "name",
                "timm knows no such model",
                found=repr(name),
                nearest=closest(name, timm_models()),
            )
        try:
            get_pretrained_cfg(name)
        except RuntimeError as error:
            raise ConfigError(
                "name", str(error), found=repr(name), nearest=closest(name, list_pretrained())
            ) from error
        if weights is not None and not Path(weights).is_file():
            folder = Path(weights).parent
            files = [p.name for p in folder.iterdir()] if folder.is_dir() else []
            close = closest(Path(weights).name, files)
            raise ConfigError(
                "weights",
                "no such file",
                found=weights,
                nearest=str(folder / close) if close else "",
            )


def _create(name: str, in_chans: int, options: dict) -> nn.Module:
    """timm's model without its classifier.

    Raises:
        ConfigError: whatever timm's constructor raises; the option without which it raises nothing
            is named.
    """
    try:
        return timm.create_model(name, num_classes=0, in_chans=in_chans, **options)
    except Exception as error:  # timm checks few values: a wrong one fails anywhere, as anything
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        named = [unknown[1]] if unknown and unknown[1] in options else []
        others = (key for key in options if _takes(name, in_chans, options, without=key))
        wrong = next(chain(named, others), "")
        known = inspect.signature(type(_without_weights(name)).__init__).parameters if wrong else ()
        raise ConfigError(
            f"options.{wrong}" if wrong else "options",
            f"timm's {name} does not take it: {type(error).__name__}: {error}",
            found=repr(options[wrong] if wrong else options),
            nearest=closest(wrong, known) if wrong not in known else "",
        ) from error


def _takes(name: str, in_chans: int, options: dict, without: str) -> bool:
    rest = {key: value for key, value in options.items() if key != without}
    try:
        with torch.device("meta"):
            timm.create_model(name, num_classes=0, in_chans=in_chans, **rest)
    except Exception:
        return False
    return True


@cache
def _without_weights(name: str) -> nn.Module:
    """A model on the meta device; to be looked at, since it is everybody's."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, in_chans=3)


@cache  # many configs share a backbone
def _dry_run(arguments: str) -> None:
    block = json.loads(arguments)
    name, options = block["name"], block.get("options", {})
    with torch.device("meta"):
        backbone = Timm(**block).eval()
    embed = getattr(backbone.model, "patch_embed", None)
    size = options.get("img_size") or getattr(embed, "img_size", None)
    size = size or backbone.model.pretrained_cfg["input_size"][1:]
    size = (size, size) if isinstance(size, int) else size
    try:
        backbone(torch.empty(2, backbone.in_chans, *size, device="meta"))
    except Exception as error:  # timm builds a ResNet of two stages, and expects four in it
        raise ConfigError(
            "options",
            f"timm's {name} does not run with them: {type(error).__name__}: {error}",
            found=repr(options),
        ) from error


def _checkpoint_gradients(model: nn.Module, name: str) -> None:
    try:
        model.set_grad_checkpointing()
    except (AttributeError, AssertionError) as error:
        raise ConfigError(
            "grad_checkpointing", f"timm has none for {name}", found="true", expected="false"
        ) from error


def _load(model: nn.Module, path: str) -> None:
    """A state_dict with or without a classifier; every weight of the backbone must be in it."""
    try:
        found = load_checkpoint(model, path, strict=False, weights_only=True)
    except Exception as error:  # of another model, or no weights at all: each reader has its own
        said = str(error).splitlines()[:2]
        raise ConfigError(
            "weights",
            "not this model's weights",
            found=path,
            expected=f"a whole state_dict of it; {' '.join(map(str.strip, said))}",
        ) from error
    if found.missing_keys:
        raise ConfigError(
            "weights",
            "not this model's weights",
            found=path,
            expected=f"also {', '.join(found.missing_keys[:3])}, ...",
        )


def _small_stem(model: nn.Module, name: str) -> None:
    if not isinstance(model, ResNet):
        raise ConfigError(
            "small_images",
            f"{name} has no stem to replace",
            expected="a timm ResNet (resnet18, resnet50, resnext50_32x4d, ...)",
        )
    stem = model.conv1[0] if isinstance(model.conv1, nn.Sequential) else model.conv1
    width = (
        model.conv1[-1].out_channels
        if isinstance(model.conv1, nn.Sequential)
        else stem.out_channels
    )
    model.conv1 = nn.Conv2d(stem.in_channels, width, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
