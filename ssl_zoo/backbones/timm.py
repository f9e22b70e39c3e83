"""Any timm model as a backbone."""

from __future__ import annotations

from pathlib import Path

import timm
from timm.models import ResNet, is_model, load_checkpoint
from timm.models import list_models as timm_models
from torch import Tensor, nn

from ssl_zoo.batchnorm import split_batchnorm
from ssl_zoo.registry import BACKBONES, ConfigError, nearest


@BACKBONES.register_module()
class Timm(nn.Module):
    """A timm model without its classifier: images [N, C, H, W] -> pooled features [N, F].

    Args:
        name: timm's name, `resnet50`, `vit_small_patch16_224`, ...
        in_chans: channels of the images.
        small_images: for ResNets, a 3x3 stride-1 stem without max-pool, the usual change for
            images of 28 to 64 pixels.
        bn_groups: normalise this many groups of the batch apart (virtual devices).
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
        weights: str | None = None,
        options: dict = {},  # noqa: B006
    ):
        super().__init__()
        try:
            model = timm.create_model(name, num_classes=0, in_chans=in_chans, **options)
        except TypeError as error:
            raise ConfigError(
                "options", f"timm's {name} does not take them: {error}", found=str(options)
            ) from error
        if small_images:
            _small_stem(model, name)
        if weights is not None:
            _load(model, weights)
        self.model = split_batchnorm(model, bn_groups)
        self.bn_groups = bn_groups
        # Some models put a layer between pooling and classifier, and timm counts its width apart.
        self.num_features: int = getattr(model, "head_hidden_size", None) or model.num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    @staticmethod
    def validate(name: str, weights: str | None = None, options: dict = {}, **_) -> None:  # noqa: B006
        for key in {"pretrained", "checkpoint_path"} & set(options):
            raise ConfigError(f"options.{key}", "weights come from `weights`", found=key)
        if not is_model(name.split(".")[0]):
            raise ConfigError(
                "name",
                "timm knows no such model",
                found=repr(name),
                nearest=nearest(name, timm_models()),
            )
        if weights is not None and not Path(weights).is_file():
            folder = Path(weights).parent
            files = [p.name for p in folder.iterdir()] if folder.is_dir() else []
            close = nearest(Path(weights).name, files)
            raise ConfigError(
                "weights",
                "no such file",
                found=weights,
                nearest=str(folder / close) if close else "",
            )


def _load(model: nn.Module, path: str) -> None:
    """A state_dict with or without a classifier; every weight of the backbone must be in it."""
    found = load_checkpoint(model, path, strict=False, weights_only=True)
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
