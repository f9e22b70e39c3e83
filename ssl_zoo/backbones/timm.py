"""Any timm model as a backbone."""

from __future__ import annotations

from pathlib import Path

import timm
from timm.models import ResNet, is_model, load_checkpoint
from timm.models import list_models as timm_models
from torch import Tensor, nn

from ssl_zoo.batchnorm import hold_statistics, split_batchnorm
from ssl_zoo.convolution import speed_up_convolutions
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
        if grad_checkpointing:
            _checkpoint_gradients(model, name)
        self.grad_checkpointing = grad_checkpointing
        self.model = speed_up_convolutions(split_batchnorm(model, bn_groups))
        self.bn_groups = bn_groups
        # Some models put a layer between pooling and classifier, and timm counts its width apart.
        self.num_features: int = getattr(model, "head_hidden_size", None) or model.num_features

    def forward(self, images: Tensor) -> Tensor:
        if not self.grad_checkpointing:
            return self.model(images)
        # The backward pass runs parts of the network again, outside of this call. BatchNorm would
        # then take the same batch into its running statistics twice.
        hold_statistics(self.model, False)
        features = self.model(images)
        hold_statistics(self.model, True)
        return features

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


def _checkpoint_gradients(model: nn.Module, name: str) -> None:
    try:
        model.set_grad_checkpointing()
    except (AttributeError, AssertionError) as error:
        raise ConfigError(
            "grad_checkpointing", f"timm has none for {name}", found="true", expected="false"
        ) from error


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
