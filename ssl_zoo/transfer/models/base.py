"""What a model of a transfer task is: a registered part, a head over a backbone."""

from typing import Any, ClassVar, Literal

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from ssl_zoo.backbones import check_built
from ssl_zoo.config import ConfigError, Registry
from ssl_zoo.ops.modes import eval_mode
from ssl_zoo.ops.norms import freeze_batchnorm

TRANSFER_MODELS = Registry("transfer model")
# What becomes of BatchNorm. `tuned`: statistics and weights are trained. `synced`: these too, with
# statistics over all processes (GPUs only). `frozen`: those of the backbone stay as they came.
Norm = Literal["tuned", "synced", "frozen"]


class TransferModel(nn.Module):
    """A backbone and what stands on it. `classes` (and `keypoints`) are the data set's.

    The backbone becomes a part of the model, which may change it: hand over a copy.

    Attributes:
        tasks: of an `AnnotatedSet`, those that it learns.
    """

    tasks: ClassVar[tuple[str, ...]]

    @classmethod
    def needs(cls, **options: Any) -> str:
        """What is asked of a backbone, a word of backbones/base.py, given the model's options."""
        raise NotImplementedError

    def forward(self, images: list[Tensor], targets: list) -> dict[str, Tensor]:
        """In training: losses by name, and their sum, `loss`; scalars.

        Args:
            images: [C, H, W] each, of any sizes, as the backbone takes them.
            targets: of each image as `AnnotatedSet.target` has them, after `learnable`: a dict, or
                a semantic map [H, W] int64.
        """
        raise NotImplementedError

    def predict(self, images: list[Tensor]) -> list:
        """In evaluation mode, without gradients; each image alone, whatever others are beside it.

        Of each a semantic map [H, W] int64, or a dict: boxes [n, 4] in the image's pixels, labels
        [n] from 1, scores [n] from the highest; with masks, masks [n, H, W] bool; with keypoints,
        keypoints [n, K, 3] (x, y, 1) and keypoint_scores [n, K].
        """
        with eval_mode(self), torch.no_grad():
            return [self.predicted(image) for image in images]

    def predicted(self, image: Tensor) -> Any:
        """What `predict` gives of one image."""
        raise NotImplementedError


def prepared(backbone: nn.Module, needs: str, model: str, norm: Norm) -> nn.Module:
    """The backbone as the model asks for it: for its maps alone, BatchNorm frozen if need be.

    Raises:
        ConfigError: it lacks what the model needs; BatchNorm cannot be frozen or synchronized.
    """
    check_built(backbone, needs, model)
    if hasattr(backbone, "only_maps"):
        backbone.only_maps()
    if norm == "synced" and not torch.cuda.is_available():
        problem = "statistics are synchronized between GPUs, and there is none"
        raise ConfigError("norm", problem, found=norm, expected="tuned")
    if norm == "frozen":
        try:
            return freeze_batchnorm(backbone)
        except ValueError as error:
            expected = "tuned, or synced on several GPUs"
            raise ConfigError("norm", str(error), found=norm, expected=expected) from error
    return backbone


def synced(model: nn.Module, norm: Norm) -> nn.Module:
    """The model, its BatchNorm synchronized between processes if asked for; changed in place."""
    return convert_sync_batchnorm(model) if norm == "synced" else model


def in_float32(module: nn.Module) -> nn.Module:
    """Makes what it gives float32, also under autocast.

    Boxes and losses are computed from it: in bf16 a coordinate of 1000 pixels is off by up to 2.
    """
    module.register_forward_hook(_in_float32)
    return module


def _in_float32(_module: nn.Module, _inputs: tuple, outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.float()
    return type(outputs)(_in_float32(_module, _inputs, each) for each in outputs)
