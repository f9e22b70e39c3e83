"""What detectors look at: maps of a backbone, of one width, at one or several strides."""

from collections.abc import Iterable
from itertools import pairwise
from typing import ClassVar, Literal

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ssl_zoo.config import ConfigError


class Body(nn.Module):
    """Images [N, C, H, W] -> maps [N, width, h, w] by number, "0" the finest; in float32.

    Regions are cut out of them and boxes computed, which bf16 is too coarse for.

    Attributes:
        needs: of a backbone, a word of backbones/base.py.
        before_nms: detectron2's numbers of proposals a map, in training and in evaluation.
        hidden: convolutions of the head that proposes.
        cells: of a region, down and across.
        kind_of_norm: of new layers.
        strides, region_strides: of the maps, and of those that regions are cut from.
        multiple: pixels; images are padded to a multiple of these.
    """

    needs: ClassVar[str] = "maps"
    before_nms: ClassVar[tuple[int, int]] = (2000, 1000)
    hidden: ClassVar[int] = 1
    cells: ClassVar[int] = 7
    kind_of_norm: ClassVar[type[nn.Module]] = nn.BatchNorm2d
    strides: list[float]
    region_strides: list[float]
    multiple: int

    def __init__(self, backbone: nn.Module, width: int):
        super().__init__()
        self.backbone, self.width = backbone, width

    def anchors(self) -> list[list[float]]:
        """Sizes of each map's, in pixels."""
        return [[8 * stride] for stride in self.strides]


class C4(Body):
    """A ResNet up to conv4_x: one map of stride 16."""

    needs = "c4"
    before_nms = (12000, 6000)
    cells = 14

    def __init__(self, backbone: nn.Module, _width: int):
        stride, channels = backbone.c4_level
        super().__init__(backbone, channels)
        self.strides = self.region_strides = [stride]
        self.multiple = stride

    def anchors(self) -> list[list[float]]:
        return [[times * self.strides[0] for times in (2, 4, 8, 16, 32)]]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return _numbered([self.backbone.c4(images)])


class FPN(Body):
    """A top-down pyramid over the backbone's maps of stride 4 to 32 (arXiv:1612.03144).

    With BatchNorm in it, as in arXiv:1911.05722. One map more, every second cell of the last, is
    for proposals alone.

    Raises:
        ConfigError: the backbone has no map of these strides, or one is missing between two.
    """

    def __init__(self, backbone: nn.Module, width: int):
        super().__init__(backbone, width)
        levels = [(i, *level) for i, level in enumerate(backbone.levels) if 4 <= level.stride <= 32]
        self.taken, strides, channels = zip(*levels, strict=True) if levels else ((), (), ())
        if not levels or any(b != 2 * a for a, b in pairwise(strides)):
            found = f"strides {', '.join(str(level.stride) for level in backbone.levels)}"
            expected = "some of 4, 8, 16, 32, one after the other"
            raise ConfigError("body", "no FPN over the maps", found=found, expected=expected)
        self.fpn = FeaturePyramidNetwork(
            [*channels], width, LastLevelMaxPool(), norm_layer=self.kind_of_norm
        )
        self.region_strides, self.strides = [*strides], [*strides, 2 * strides[-1]]
        self.multiple = strides[-1]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.backbone.feature_maps(images)
        return _numbered(self.fpn({str(i): maps[i] for i in self.taken}).values())


class Pyramid(Body):
    """Four maps out of a plain ViT's one (ViTDet, arXiv:2203.16527, section 3).

    Of 1/4, 1/2, 1 and 2 times its stride, by deconvolution or pooling, with LayerNorm; and one
    more as in `FPN`. All blocks attend to the whole image: the paper's windows are left out.
    """

    hidden = 2
    kind_of_norm = LayerNorm2d

    def __init__(self, backbone: nn.Module, width: int):
        super().__init__(backbone, width)
        stride, m = backbone.levels[-1]
        finest = [_doubled(m, m // 2), LayerNorm2d(m // 2), nn.GELU(), _doubled(m // 2, m // 4)]
        scaled = (nn.Sequential(*finest), _doubled(m, m // 2), nn.Identity(), nn.MaxPool2d(2))
        self.maps = nn.ModuleList(
            nn.Sequential(
                layers,
                nn.Conv2d(channels, width, 1, bias=False),
                LayerNorm2d(width),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                LayerNorm2d(width),
            )
            for layers, channels in zip(scaled, (m // 4, m // 2, m, m), strict=True)
        )
        self.last = nn.MaxPool2d(1, stride=2)
        self.region_strides = [stride / 4, stride / 2, stride, 2 * stride]
        self.strides = [*self.region_strides, 4 * stride]
        self.multiple = 2 * stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.backbone.feature_maps(images)[-1]
        maps = [layers(x) for layers in self.maps]
        return _numbered([*maps, self.last(maps[-1])])


BODIES = {"c4": C4, "fpn": FPN, "pyramid": Pyramid}
BodyName = Literal["c4", "fpn", "pyramid"]


def _doubled(channels: int, out: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, out, 2, stride=2)


def _numbered(maps: Iterable[Tensor]) -> dict[str, Tensor]:
    return {str(i): x.float() for i, x in enumerate(maps)}
