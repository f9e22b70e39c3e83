"""Segmenters: a class for each pixel, from a backbone's last map."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.ops import Conv2dNormActivation

from ssl_zoo.config import PositiveInt
from ssl_zoo.ops.norms import is_synchronized
from ssl_zoo.transfer.models.base import (
    TRANSFER_MODELS,
    Norm,
    TransferModel,
    prepared,
    synced,
)
from ssl_zoo.transfer.source import IGNORED


class Segmenter(TransferModel):
    """Logits at each cell of the backbone's last map, enlarged to pixels (bilinear).

    A ResNet's conv5_x has stride 1 and dilation 2 here, so its map has stride 16
    (arXiv:1911.05722). Of other backbones the map is as it is: stride 32 of most CNNs, 16 of a ViT.

    A subclass has a `head`: [N, map_features, h, w] -> [N, classes, h, w].
    """

    tasks: ClassVar[tuple[str, ...]] = ("semantic",)
    backbone: nn.Module
    head: nn.Module

    def __init__(self, backbone: nn.Module, norm: Norm):
        super().__init__()
        self.backbone = prepared(backbone, self.needs(), type(self).__name__, norm)
        if hasattr(backbone, "dilate_c5"):
            backbone.dilate_c5()

    @classmethod
    def needs(cls, **_: Any) -> str:
        return "maps"

    def logits(self, images: Tensor) -> Tensor:
        """[N, C, H, W], sides multiples of the map's stride -> [N, classes, H, W] float32."""
        x = self.head(self.backbone.feature_map(images)).float()
        return F.interpolate(x, size=images.shape[2:], mode="bilinear", align_corners=False)

    def forward(self, images: list[Tensor], targets: list[Tensor]) -> dict[str, Tensor]:
        size = [max(image.shape[side] for image in images) for side in (1, 2)]
        logits = self.logits(torch.stack([self._padded(image, size, 0.0) for image in images]))
        labels = torch.stack([self._padded(target, size, IGNORED) for target in targets])
        counted = labels != IGNORED
        # Pixels that are all ignored have no mean.
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        hits = (logits.argmax(dim=1) == labels) & counted
        count = counted.sum().clamp(min=1)
        return {"loss": loss / count, "pixel_accuracy": 100 * hits.sum() / count}

    def predicted(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        logits = self.logits(self._padded(image, (height, width), 0.0)[None])
        return logits[0, :, :height, :width].argmax(dim=0)

    def _padded(self, x: Tensor, size: tuple[int, int], value: float) -> Tensor:
        """[..., h, w] at least as large as size, filled on the right and below."""
        stride = self.backbone.levels[-1].stride
        down, across = (
            -(-full // stride) * stride - own for full, own in zip(size, x.shape[-2:], strict=True)
        )
        return F.pad(x, (0, across, 0, down), value=value)


@TRANSFER_MODELS.register_module()
class FCN(Segmenter):
    """The FCN of arXiv:1911.05722, appendix (after arXiv:1411.4038): two 3x3 convolutions of
    dilation 6 with BatchNorm and ReLU, and a 1x1.

    Args:
        classes: of the data set.
        norm: of BatchNorm, see `Norm`; that of new layers is always trained.
        width: channels of the two convolutions.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        *,
        norm: Norm = "tuned",
        width: PositiveInt = 256,
    ):
        super().__init__(backbone, norm)
        channels = backbone.map_features
        self.head = nn.Sequential(
            Conv2dNormActivation(channels, width, 3, dilation=6),
            Conv2dNormActivation(width, width, 3, dilation=6),
            nn.Conv2d(width, classes, 1),
        )
        synced(self, norm)


@TRANSFER_MODELS.register_module()
class DeepLabV3(Segmenter):
    """DeepLab v3 (arXiv:1706.05587): convolutions of several dilations and the image's mean side by
    side, 256 channels each; torchvision's head.

    BatchNorm of the mean sees one number an image, so a process needs two images a step.

    Args:
        classes: of the data set.
        norm: of BatchNorm, see `Norm`; that of new layers is always trained.
        dilations: in cells of the map; the paper's are for stride 16.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        *,
        norm: Norm = "tuned",
        dilations: tuple[PositiveInt, ...] = (6, 12, 18),
    ):
        super().__init__(backbone, norm)
        self.head = DeepLabHead(backbone.map_features, classes, dilations)
        synced(self, norm)

    def forward(self, images: list[Tensor], targets: list[Tensor]) -> dict[str, Tensor]:
        if len(images) < 2 and self.training and not is_synchronized(self):
            found = "BatchNorm of an image's mean got one image"
            raise ValueError(f"DeepLabV3: {found}, expected two or more in a process's batch")
        return super().forward(images, targets)
