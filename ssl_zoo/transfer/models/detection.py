"""Detectors: Faster R-CNN, and what finds masks or keypoints in its boxes; torchvision's parts.

Numbers are detectron2's, by which arXiv:1911.05722 was made: proposals learn from 256 anchors an
image, up to half of them on objects (IoU of 0.7, the others below 0.3); regions are on an object
from an IoU of 0.5, up to a quarter of them; non-maximum suppression at 0.7 and 0.5. Losses are
torchvision's: an error of a box counts squared below 1/9, where detectron2 has L1 throughout.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ssl_zoo.config import ConfigError, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from ssl_zoo.transfer.models.base import (
    TRANSFER_MODELS,
    Norm,
    TransferModel,
    in_float32,
    prepared,
    synced,
)
from ssl_zoo.transfer.models.bodies import BODIES, Body, BodyName
from ssl_zoo.transfer.models.regions import (
    Anchors,
    Heads,
    MaskHead,
    RegionAlign,
    Res5,
    Res5Heads,
    pasted,
)

BOX_CONVS, BOX_WIDTH = 4, 1024
_LOSSES = {
    "loss_objectness": "objectness_loss",
    "loss_rpn_box_reg": "proposal_loss",
    "loss_classifier": "class_loss",
    "loss_box_reg": "box_loss",
    "loss_mask": "mask_loss",
    "loss_keypoint": "keypoint_loss",
}


class Scaled(GeneralizedRCNNTransform):
    """torchvision's, with the size of a training image drawn by its target, in [0, 1).

    torchvision draws it from torch's generator, of which proposals take more or fewer numbers.
    """

    drawn: list[float | None]

    def torch_choice(self, k: list[int]) -> int:
        drawn = self.drawn.pop(0)
        return k[0] if len(k) == 1 else k[int(drawn * len(k))]

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple:
        height, width = image.shape[-2:]
        if min(height, width) * self.max_size < max(height, width):
            raise ValueError(
                f"a picture of {width} x {height} pixels: with a longer side of "
                f"{self.max_size} (max_size) it would be less than one pixel thin"
            )
        return super().resize(image, target)


@TRANSFER_MODELS.register_module()
class FasterRCNN(TransferModel):
    """Boxes: proposals, then a class and a better box for each (arXiv:1506.01497).

    Args:
        classes: of the data set, without background.
        body: what is looked at. `c4`: a ResNet's conv4_x; conv5_x runs on 14 x 14 cells of each
            region, and behind it the extra BatchNorm of arXiv:1911.05722. `fpn`: a pyramid with
            BatchNorm over a backbone's maps (arXiv:1612.03144). `pyramid`: one with LayerNorm out
            of a plain ViT's single map (arXiv:2203.16527).
        norm: of BatchNorm, see `Norm`; that of new layers is always trained.
        min_size: pixels of the shorter side, to which images are scaled: drawn from these for each
            training image; the last one in evaluation.
        max_size: pixels that the longer side then has at most.
        anchors: roots of their areas in pixels, from small to large: one for each map, for `c4` all
            on its one. null: 8 times a map's stride; 2, 4, 8, 16 and 32 times for `c4`.
        width: channels of a pyramid's maps, and of convolutions on regions.
        box_convs: convolutions with norm on a region, before one hidden layer; 0: none, and two
            hidden layers. Of no use to `c4`, as is `box_width`.
        box_width: of hidden layers.
        regions: of an image, from which boxes and classes are learned.
        proposals: of an image, in training and evaluation; before suppression in proportion. null:
            1000; in training 2000 for `c4`, and 1500 for keypoints.
        score_threshold, detections: what a detection's score has to exceed; how many of the best of
            an image are kept.
    """

    tasks: ClassVar[tuple[str, ...]] = ("boxes",)
    # Of targets -> as the heads know them. What is called otherwise torchvision does not scale.
    learned: ClassVar[dict[str, str]] = {"boxes": "boxes", "labels": "labels"}
    trained_on: ClassVar[dict[str, int]] = {"c4": 2000, "fpn": 1000, "pyramid": 1000}

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        keypoints: int = 0,
        *,
        body: BodyName = "fpn",
        norm: Norm = "tuned",
        min_size: tuple[PositiveInt, ...] = (800,),
        max_size: PositiveInt = 1333,
        anchors: tuple[PositiveFloat, ...] | None = None,
        width: PositiveInt = 256,
        box_convs: NonNegativeInt = BOX_CONVS,
        box_width: PositiveInt = BOX_WIDTH,
        regions: PositiveInt = 512,
        proposals: PositiveInt | None = None,
        score_threshold: UnitInterval = 0.05,
        detections: PositiveInt = 100,
    ):
        super().__init__()
        kind = BODIES[body]
        seen = kind(prepared(backbone, kind.needs, type(self).__name__, norm), width)
        usual = (self.trained_on[body], 1000)
        kept = (proposals or usual[0], proposals or usual[1])
        # Suppression takes time with their square.
        before = [round(n * k / u) for n, k, u in zip(seen.before_nms, kept, usual, strict=True)]
        numbers = {
            "fg_iou_thresh": 0.5,
            "bg_iou_thresh": 0.5,
            "batch_size_per_image": regions,
            "positive_fraction": 0.25,
            "bbox_reg_weights": None,  # 10, 10, 5, 5
            "score_thresh": score_threshold,
            "nms_thresh": 0.5,
            "detections_per_img": detections,
        }
        pool = RegionAlign(seen.region_strides, seen.cells)
        if body == "c4":
            channels = backbone.map_features
            predictor = in_float32(FastRCNNPredictor(channels, classes + 1))
            heads = Res5Heads(pool, Res5(backbone.c5, channels), predictor, **numbers)
        else:
            hidden = [box_width] * (1 if box_convs else 2)
            size = (width, seen.cells, seen.cells)
            head = FastRCNNConvFCHead(size, [width] * box_convs, hidden, seen.kind_of_norm)
            predictor = in_float32(FastRCNNPredictor(box_width, classes + 1))
            heads = Heads(pool, head, predictor, **numbers)
        self.add_to(heads, seen, classes, keypoints, width)
        scaled = Scaled(min_size, max_size, [0.0], [1.0], size_divisible=seen.multiple)
        self.net = GeneralizedRCNN(seen, _proposing(seen, anchors, before, kept), heads, scaled)
        synced(self, norm)

    @staticmethod
    def validate(*, body: str, min_size: tuple, box_convs: int, box_width: int, **_: Any) -> None:
        if not min_size:
            raise ConfigError("min_size", "no size", found="[]", expected="at least one")
        if body == "c4" and (box_convs, box_width) != (BOX_CONVS, BOX_WIDTH):
            problem = "conv5_x is the box head of body c4"
            raise ConfigError("box_convs", problem, expected="neither box_convs nor box_width")

    @classmethod
    def needs(cls, *, body: str, **_: Any) -> str:
        return BODIES[body].needs

    def add_to(self, heads: Heads, seen: Body, classes: int, keypoints: int, width: int) -> None:
        """What else is found in boxes."""

    def forward(self, images: list[Tensor], targets: list[dict]) -> dict[str, Tensor]:
        known = [{self.learned[name]: target[name] for name in self.learned} for target in targets]
        self.net.transform.drawn = [target.get("drawn") for target in targets]
        losses = self.net(images, known)
        return {"loss": sum(losses.values())} | {_LOSSES[n]: loss for n, loss in losses.items()}

    def predicted(self, image: Tensor) -> dict[str, Tensor]:
        found = self.net([image])[0]
        return {name: found[name] for name in ("boxes", "labels", "scores")}


@TRANSFER_MODELS.register_module()
class MaskRCNN(FasterRCNN):
    """Boxes and masks (arXiv:1703.06870).

    A mask has 28 x 28 cells: four convolutions with norm on 14 x 14 cells of a region, and a
    deconvolution; with `c4` 14 x 14, by a deconvolution of what conv5_x made for boxes.
    """

    tasks = ("masks",)
    learned: ClassVar[dict[str, str]] = {**FasterRCNN.learned, "masks": "shapes"}

    def add_to(self, heads: Heads, seen: Body, classes: int, keypoints: int, width: int) -> None:
        if isinstance(heads, Res5Heads):
            channels = seen.backbone.map_features
            heads.share_maps(in_float32(MaskRCNNPredictor(channels, width, classes + 1)))
            return
        heads.mask_roi_pool = RegionAlign(seen.region_strides, 14)
        heads.mask_head = MaskHead(width, [width] * 4, 1, seen.kind_of_norm)
        heads.mask_predictor = in_float32(MaskRCNNPredictor(width, width, classes + 1))

    def predicted(self, image: Tensor) -> dict[str, Tensor]:
        found = self.net([image])[0]
        kept = {name: found[name] for name in ("boxes", "labels", "scores")}
        return kept | {"masks": pasted(found["cells"], found["boxes"], tuple(image.shape[1:]))}


@TRANSFER_MODELS.register_module()
class KeypointRCNN(FasterRCNN):
    """Boxes and K keypoints in each (arXiv:1703.06870): eight convolutions twice as wide, a
    deconvolution, and of each keypoint a softmax over 56 x 56 places.
    """

    tasks = ("keypoints",)
    learned: ClassVar[dict[str, str]] = {**FasterRCNN.learned, "keypoints": "keypoints"}
    trained_on: ClassVar[dict[str, int]] = {"fpn": 1500, "pyramid": 1500}

    @staticmethod
    def validate(*, body: str, **options: Any) -> None:
        if body == "c4":
            problem = "keypoints are not found with body c4"
            raise ConfigError("body", problem, found=body, expected="fpn or pyramid")
        FasterRCNN.validate(body=body, **options)

    def add_to(self, heads: Heads, seen: Body, classes: int, keypoints: int, width: int) -> None:
        if not keypoints:
            raise ConfigError("type", "a data set without keypoints", found=type(self).__name__)
        heads.keypoint_roi_pool = RegionAlign(seen.region_strides, 14)
        heads.keypoint_head = KeypointRCNNHeads(width, [2 * width] * 8)
        heads.keypoint_predictor = KeypointRCNNPredictor(2 * width, keypoints)
        in_float32(heads.keypoint_predictor.kps_score_lowres)

    def forward(self, images: list[Tensor], targets: list[dict]) -> dict[str, Tensor]:
        return super().forward(
            images, [{**target, "keypoints": moved(target["keypoints"], 0.5)} for target in targets]
        )

    def predicted(self, image: Tensor) -> dict[str, Tensor]:
        found = self.net([image])[0]
        kept = {name: found[name] for name in ("boxes", "labels", "scores")}
        points = moved(found["keypoints"], -0.5)
        return kept | {"keypoints": points, "keypoint_scores": found["keypoints_scores"]}


def moved(points: Tensor, by: float) -> Tensor:
    """Keypoints [n, K, 3] between pixels by name, as COCO has them, and their middles (by 0.5).

    Those that are not there stay at 0, 0.
    """
    there = points[..., 2:] > 0
    return torch.cat([points[..., :2] + by * there, points[..., 2:]], dim=-1)


def _proposing(
    seen: Body, anchors: tuple | None, before: Sequence[int], kept: Sequence[int]
) -> RegionProposalNetwork:
    """Proposals in training and in evaluation, of a map before suppression and of all maps after.

    ConfigError for another number of anchors than of maps.
    """
    sizes = seen.anchors()
    if anchors is not None:
        if len(sizes) > 1 and len(anchors) != len(sizes):
            found, expected = f"{len(anchors)} sizes", f"{len(sizes)}, one for each map"
            raise ConfigError("anchors", "not one a map", found=found, expected=expected)
        sizes = [[*anchors]] if len(sizes) == 1 else [[size] for size in anchors]
    generator = Anchors(sizes, seen.strides)
    per_cell = generator.num_anchors_per_location()[0]
    phases = ("training", "testing")
    return RegionProposalNetwork(
        generator,
        in_float32(RPNHead(seen.width, per_cell, conv_depth=seen.hidden)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=dict(zip(phases, before, strict=True)),
        post_nms_top_n=dict(zip(phases, kept, strict=True)),
        nms_thresh=0.7,
    )
