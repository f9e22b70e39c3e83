"""timm's models as backbones: any, those whose features are on a grid, and ResNets."""

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
from timm.layers import AvgPool2dSame
from timm.models import ResNet, group_parameters
from timm.optim import auto_group_layers
from torch import Tensor, nn

from ssl_zoo.backbones.base import Backbone, Level
from ssl_zoo.config import ConfigError
from ssl_zoo.ops.batchnorm import hold_statistics, split_batchnorm

_HEAD = "head.fc.weight"  # as no pattern of timm's for layers has it


class TimmModel(Backbone):
    """Any of timm's models without its classifier: images [N, C, H, W] -> features [N, F].

    Args:
        made_for: height and width in pixels that it is made for, or that are usual.
    """

    def __init__(
        self,
        model: nn.Module,
        in_chans: int,
        bn_groups: int,
        grad_checkpointing: bool,
        made_for: tuple[int, int],
    ):
        super().__init__()
        self.model = split_batchnorm(model, bn_groups)
        self.in_chans, self.bn_groups, self.made_for = in_chans, bn_groups, made_for
        self.grad_checkpointing = grad_checkpointing
        # Some models put a layer between pooling and classifier, and timm counts its width apart.
        self.num_features: int = getattr(model, "head_hidden_size", None) or model.num_features

    def forward(self, images: Tensor) -> Tensor:
        return self._once(self.model, self._checked(images))

    def layers(self) -> list[list[nn.Parameter]]:
        """As timm's own layer decay orders them."""
        number = self._layer_of
        last = max(number[name] for name, _ in self.model.named_parameters())
        layers: list[list[nn.Parameter]] = [[] for _ in range(last + 1)]
        for name, parameter in self.model.named_parameters():
            layers[number[name]].append(parameter)
        return layers

    @property
    def head_joins_last(self) -> bool:
        """Whether there is a norm behind pooling, which timm counts to the classifier's layer."""
        number = self._layer_of
        return number[_HEAD] in {number[name] for name, _ in self.model.named_parameters()}

    def undecayed(self) -> list[nn.Parameter]:
        """Class token, positions and the like, as timm's optimizers leave them out."""
        names = getattr(self.model, "no_weight_decay", set)()
        return [p for name, p in self.model.named_parameters() if name in names]

    @property
    def _layer_of(self) -> dict[str, int]:
        """By a parameter's name, and by _HEAD: a classifier's, which this model has not."""
        if hasattr(self.model, "group_matcher"):
            named = [*self.model.named_parameters(), (_HEAD, None)]
            whole = SimpleNamespace(named_parameters=lambda: named)
            return group_parameters(whole, self.model.group_matcher(coarse=False), reverse=True)
        number = auto_group_layers(self.model)
        return {**number, _HEAD: max(number.values()) + 1}

    def _checked(self, images: Tensor) -> Tensor:
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
        return images

    def _once(self, function: Callable, x: Tensor) -> Tensor:
        if not self.grad_checkpointing:
            return function(x)
        # The backward pass runs parts of the network again, outside of this call. BatchNorm would
        # then take the same batch into its running statistics twice.
        hold_statistics(self.model, False, "recomputation")
        out = function(x)
        hold_statistics(self.model, True, "recomputation")
        return out


class TimmMaps(TimmModel):
    """One whose features are on a grid until they are pooled.

    Of several levels with one stride the last counts, as in FPN (arXiv:1612.03144).
    """

    def __init__(self, model: nn.Module, *args):
        super().__init__(model, *args)
        self.map_features: int = model.num_features
        deepest = {level["reduction"]: i for i, level in enumerate(model.feature_info)}
        self._levels = list(deepest.values())
        # The last level is what is pooled, with the layers that timm has between the two.
        channels = [model.feature_info[i]["num_chs"] for i in self._levels[:-1]]
        channels += [self.map_features]
        self.levels = [Level(*level) for level in zip(deepest, channels, strict=True)]

    def feature_map(self, images: Tensor) -> Tensor:
        x = self._once(self.model.forward_features, self._checked(images))
        return self._on_grid(x, images)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        run = partial(self.model.forward_intermediates, indices=self._levels)
        last, maps = self._once(run, self._checked(images))
        return [*maps[:-1], self._on_grid(last, images)]

    def pool(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1) if self._channels_last else x
        return self._once(partial(self.model.forward_head, pre_logits=True), x)

    @torch.enable_grad()
    def only_maps(self) -> None:
        """See `Adaptable`. Who waits for gradients, as DDP does, waits for none in vain.

        ConfigError for a model whose size of images is fixed.
        """
        if getattr(getattr(self.model, "patch_embed", None), "strict_img_size", False):
            key, problem = "backbone.options.strict_img_size", "images have many sizes"
            raise ConfigError(key, problem, found="true", expected="false")
        tried = copy.deepcopy(self).to("meta").requires_grad_(True)
        if tried.grad_checkpointing:
            tried.model.set_grad_checkpointing(False)
        images = torch.empty(2, self.in_chans, *self.made_for, device="meta")
        parameters = [*tried.parameters()]
        reached = torch.autograd.grad(
            tried.feature_map(images).sum(), parameters, allow_unused=True
        )
        for parameter, gradient in zip(self.parameters(), reached, strict=True):
            parameter.requires_grad_(parameter.requires_grad and gradient is not None)

    def _on_grid(self, x: Tensor, images: Tensor) -> Tensor:
        """What timm calls features, as [N, M, h, w]."""
        return x.permute(0, 3, 1, 2) if self._channels_last else x

    @property
    def _channels_last(self) -> bool:  # as Swin's
        return getattr(self.model, "output_fmt", "NCHW") == "NHWC"


class TimmResNet(TimmMaps):
    """A ResNet, in one or in two parts."""

    def __init__(self, model: ResNet, *args):
        super().__init__(model, *args)
        level = model.feature_info[-2]
        self.c4_level = Level(level["reduction"], level["num_chs"])

    def c4(self, images: Tensor) -> Tensor:
        run = partial(self.model.forward_intermediates, indices=[3], stop_early=True)
        return self._once(partial(run, intermediates_only=True), self._checked(images))[0]

    def c5(self, x: Tensor) -> Tensor:
        return self._once(self.model.layer4, x)

    def dilate_c5(self) -> None:
        """See `Adaptable`: stride 1, and every 3x3 convolution with dilation 2."""
        conv5 = self.model.layer4
        layers = {name: layer for name, layer in conv5.named_modules() if not [*layer.children()]}
        for name, layer in layers.items():
            strided = getattr(layer, "stride", 1) not in (1, (1, 1))
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
                if layer.kernel_size == (3, 3):
                    layer.dilation = layer.padding = (2, 2)
            elif strided and isinstance(layer, nn.AvgPool2d):  # of a ResNet-D's shortcut
                pool = AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False)
                conv5.set_submodule(name, pool)
            elif strided:
                problem, found = "conv5_x cannot be dilated", type(layer).__name__
                raise ConfigError("backbone", problem, found=found, expected="strides of convs")
        self.levels = [*self.levels[:-1], Level(self.c4_level.stride, self.map_features)]


def replace_stem(model: nn.Module, name: str) -> None:
    """A ResNet's by one 3 x 3 convolution without pooling; ConfigError for another model."""
    if not isinstance(model, ResNet):
        expected = "a timm ResNet (resnet18, resnet50, resnext50_32x4d, ...)"
        raise ConfigError("small_images", f"{name} has no stem to replace", expected=expected)
    layers = list(model.conv1) if isinstance(model.conv1, nn.Sequential) else [model.conv1]
    channels = layers[0].in_channels, layers[-1].out_channels
    model.conv1 = nn.Conv2d(*channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    for level in model.feature_info:  # before the pooling 2, behind it 4 and more
        level["reduction"] = max(level["reduction"] // 4, 1)


def checkpoint_gradients(model: nn.Module, name: str) -> None:
    """Raises ConfigError where timm does not offer it."""
    try:
        model.set_grad_checkpointing()
    except (AttributeError, AssertionError) as error:
        problem = f"timm has none for {name}"
        raise ConfigError("grad_checkpointing", problem, expected="false") from error
