"""Something to check parts on: a network of two layers and noise."""

import torch
from torch import Tensor, nn

from ssl_zoo.backbones import Backbone
from ssl_zoo.backbones.base import Level
from ssl_zoo.config import BACKBONES
from ssl_zoo.core import Batch
from ssl_zoo.ops.batchnorm import split_batchnorm


@BACKBONES.register_module()
class TinyNet(Backbone):
    """Two convolutions and a mean; for tests."""

    def __init__(
        self, *, in_chans: int = 1, width: int = 8, norm: bool = False, bn_groups: int = 1
    ):
        super().__init__()
        self.num_features, self.map_features, self.bn_groups = width, width, bn_groups
        self.levels = [Level(stride=2, channels=width)]
        self.net = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width) if norm else nn.Identity(),
            nn.ReLU(),
        )
        split_batchnorm(self.net, bn_groups)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.feature_map(images))

    def feature_map(self, images: Tensor) -> Tensor:
        return self.net(images)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        return [self.feature_map(images)]

    def pool(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def noise_batch(
    n: int, step: int = 0, size: int = 8, num_samples: int = 64, views: int = 2
) -> Batch:
    """A batch of noise, a function of its arguments."""
    generator = torch.Generator().manual_seed(step)
    images = [torch.randn(n, 1, size, size, generator=generator) for _ in range(views)]
    index = torch.randperm(num_samples, generator=generator)[:n]
    boxes = [torch.rand(n, 4, generator=generator) * 20 for _ in range(views)]
    return Batch(images, index, index % 10, boxes)


def share(whole: Batch, rank: int, world: int) -> Batch:
    """A rank's contiguous part of a batch."""
    return whole.split(world)[rank]
