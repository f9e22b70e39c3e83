"""Anchors over maps, regions out of them, at the strides that a body says, and masks in regions.

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


class Heads(RoIHeads):
    """Boxes, keypoints, and masks that lie where their objects do, as in detectron2.

    Learned are the cells of a region that are at least half inside of the annotated mask.
    torchvision's are cut out half a pixel off, of masks that were scaled by another half at most,
    and it pastes masks into boxes with whole sides, up to a pixel larger on each.
    """

    def has_mask(self) -> bool:
        """Of torchvision, which then leaves masks out."""
        return False

    def select_training_samples(self, proposals: list[Tensor], targets: list) -> tuple:
        sampled = super().select_training_samples(proposals, targets)
        if self.mask_predictor is not None:
            self._on_objects = [
                [x[labels > 0] for x in (boxes, of, labels)]
                for boxes, of, labels in zip(*sampled[:3], strict=True)
            ]
        return sampled

    def forward(
        self, maps: dict[str, Tensor], proposals: list[Tensor], sizes: list, targets: list | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's. Of masks, targets have `shapes` [n, H, W], as annotated; outputs have
        `cells` [n, M, M], probabilities."""
        found, losses = super().forward(maps, proposals, sizes, targets)
        if self.mask_predictor is None:
            return found, losses
        if self.training:
            losses["loss_mask"] = self._mask_loss(maps, sizes, [of["shapes"] for of in targets])
            return found, losses
        logits = self._mask_logits(maps, [of["boxes"] for of in found], sizes)
        cells = _of_labels(logits, torch.cat([of["labels"] for of in found])).sigmoid()
        for of, part in zip(found, cells.split([len(of["boxes"]) for of in found]), strict=True):
            of["cells"] = part
        return found, losses

    def _mask_logits(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(maps, boxes, sizes)))

    def _mask_loss(self, maps: dict[str, Tensor], sizes: list, shapes: list[Tensor]) -> Tensor:
        boxes, of, labels = zip(*self._on_objects, strict=True)
        logits = self._mask_logits(maps, boxes, sizes)
        chosen = _of_labels(logits, torch.cat(labels))
        each = zip(shapes, of, boxes, sizes, strict=True)
        truth = torch.cat([shape_cells(*image, logits.shape[-1]) for image in each])
        count = max(truth.numel(), 1)  # without objects the loss is 0
        return F.binary_cross_entropy_with_logits(chosen, truth, reduction="sum") / count


def _of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, C, M, M] -> [n, M, M]."""
    return logits[torch.arange(len(labels), device=labels.device), labels]


def shape_cells(
    shapes: Tensor, of: Tensor, boxes: Tensor, size: tuple[int, int], cells: int
) -> Tensor:
    """Which cells of regions are at least half inside of objects, [R, cells, cells] float32.

    Args:
        shapes: masks of an image as annotated, [n, H, W].
        of: whose a region is, [R], 0 to n - 1.
        boxes: [R, 4], in pixels of the scaled image.
        size: height and width of that.
    """
    height, width = (own / scaled for own, scaled in zip(shapes.shape[1:], size, strict=True))
    own = boxes * boxes.new_tensor([width, height, width, height])
    rows = torch.cat([of[:, None].to(own), own], dim=1)  # [R, 5]
    inside = roi_align(shapes[:, None].to(own), rows, cells, sampling_ratio=0, aligned=True)
    return (inside[:, 0] >= 0.5).to(own)


def pasted(cells: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks of an image of size H, W, [n, H, W] bool: where cells [n, M, M] that fill boxes [n, 4]
    are at least 0.5 at the middle of a pixel (bilinear)."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool, device=cells.device)
    for mask, of, box in zip(masks, cells, boxes.tolist(), strict=True):
        places, parts = [], []
        for low, high, side in zip(box[:2], box[2:], reversed(size), strict=True):
            first, last = max(0, math.floor(low)), min(side, math.ceil(high))
            middles = torch.arange(first, last, device=cells.device) + 0.5
            places.append((middles - low) / (high - low) * 2 - 1)
            parts.append(slice(first, last))
        across, down = torch.meshgrid(*places, indexing="xy")
        grid = torch.stack([across, down], dim=2)[None]  # [1, h, w, 2]
        values = F.grid_sample(of[None, None], grid, align_corners=False)[0, 0]
        mask[parts[1], parts[0]] = values >= 0.5
    return masks


class Res5Heads(Heads):
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
