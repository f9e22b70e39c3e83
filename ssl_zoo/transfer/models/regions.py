"""Anchors over maps, and regions out of them, at the strides that a body says.

torchvision infers strides from sizes of images and maps, which is off for odd and for small ones.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from ssl_zoo.ops.modes import eval_mode
from ssl_zoo.ops.norms import is_synchronized


class Anchors(AnchorGenerator):
    """Three anchors of each size at each cell: height / width 1/2, 1 and 2.

    Args:
        sizes: of each map, in pixels (the root of an anchor's area).
        strides: of each map, in pixels.
    """

    def __init__(self, sizes: list[list[float]], strides: list[float]):
        super().__init__(tuple(map(tuple, sizes)), ((0.5, 1.0, 2.0),) * len(sizes))
        self.strides = strides

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        """[A, 4] float32 for each image, the same for all."""
        self.set_cell_anchors(torch.float32, maps[0].device)
        grids = [x.shape[-2:] for x in maps]
        boxes = torch.cat(self.grid_anchors(grids, [[s, s] for s in self.strides]))
        return [boxes] * len(images.image_sizes)


class RegionAlign(nn.Module):
    """Regions out of maps, each from the level of its size (arXiv:1612.03144, equation 1).

    Bilinear, aligned to half a cell and with as many samples as a region has cells
    (arXiv:1703.06870; detectron2's ROIAlignV2). Maps are named "0", "1", ...; those without a
    stride here give no regions.

    Args:
        strides: of maps, in pixels, each twice the one before.
        size: cells of a region, height and width.
    """

    def __init__(self, strides: list[float], size: int):
        super().__init__()
        self.strides, self.size = strides, size
        finest = round(math.log2(strides[0]))
        self.level_of = LevelMapper(finest, finest + len(strides) - 1)

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], _sizes: list) -> Tensor:
        """Boxes [n, 4] in pixels, of each image -> [R, C, size, size], image by image."""
        rows = torch.cat([F.pad(b, (1, 0), value=i) for i, b in enumerate(boxes)])  # [R, 5]
        levels = self.level_of(boxes)  # [R]
        first = maps["0"]
        out = first.new_zeros(len(rows), first.shape[1], self.size, self.size)
        for i, stride in enumerate(self.strides):
            here = (levels == i).nonzero()[:, 0]
            out[here] = roi_align(
                maps[str(i)], rows[here], self.size, 1 / stride, sampling_ratio=0, aligned=True
            )
        return out


class Res5(nn.Module):
    """conv5_x on regions, then the extra BatchNorm of arXiv:1911.05722, then their mean.

    Regions [R, C, 14, 14] -> [R, M], by way of maps [R, M, 7, 7].

    Args:
        c5: a backbone's; its parameters are the backbone's.
        channels: M.
    """

    def __init__(self, c5: Callable[[Tensor], Tensor], channels: int):
        super().__init__()
        self.c5, self.norm = c5, nn.BatchNorm2d(channels)
        self.maps: Tensor | None = None
        self.keeps_maps = False

    def forward(self, x: Tensor) -> Tensor:
        maps = self.mapped(x)
        self.maps = maps if self.keeps_maps and self.training else None
        return maps.mean(dim=(2, 3))

    def mapped(self, x: Tensor) -> Tensor:
        return self.norm(self.c5(x)).float()


class Res5Heads(RoIHeads):
    """Boxes from `Res5`, and masks from the same maps (detectron2's Res5ROIHeads).

    In training conv5_x runs once, and its BatchNorm sees objects and background together.
    """

    def share_maps(self, mask_predictor: nn.Module) -> None:
        self.box_head.keeps_maps = True
        self.mask_roi_pool, self.mask_head = self._object_maps, nn.Identity()
        self.mask_predictor = mask_predictor

    def select_training_samples(self, proposals: list[Tensor], targets: list) -> tuple:
        sampled = super().select_training_samples(proposals, targets)
        self._objects = torch.cat(sampled[2]) > 0  # [R], by labels
        return sampled

    def _object_maps(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list) -> Tensor:
        if not self.training:
            return self.box_head.mapped(self.box_roi_pool(maps, boxes, sizes))
        kept, self.box_head.maps = self.box_head.maps, None
        return kept[self._objects]


class MaskHead(MaskRCNNHeads):
    """Convolutions with norms. Without any object in the batch BatchNorm has nothing to learn."""

    def forward(self, x: Tensor) -> Tensor:
        # A synchronized one sees those of other processes, and waits for this one.
        skipped = not len(x) and not is_synchronized(self)
        with eval_mode(self) if skipped else nullcontext():
            return super().forward(x)
