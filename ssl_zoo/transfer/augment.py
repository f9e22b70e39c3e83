"""Random views of pictures together with what is annotated on them."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ssl_zoo.config import Bounds, ConfigError, PositiveFloat, UnitInterval
from ssl_zoo.config.construct import constrained
from ssl_zoo.data.image.geometry import Size, height_and_width
from ssl_zoo.system import rng
from ssl_zoo.transfer.source import Target


@constrained
class Augment:
    """A flip; of semantic maps another scale before, and a crop after.

    Each number is a hash of the picture's key and what it is for.

    Args:
        flip: chance that left and right change places.
        scale: both sides are made longer by a factor from here; maps alone, since detectors choose
            a scale themselves.
        crop: at most so many pixels of the result, anywhere; of maps alone.
    """

    def __init__(
        self,
        *,
        flip: UnitInterval = 0.5,
        scale: Bounds[PositiveFloat] | None = None,
        crop: Size | None = None,
    ):
        self.flip, self.scale, self.crop = flip, scale, crop

    @staticmethod
    def check_task(augment: dict[str, Any], task: str) -> None:
        """Raises ConfigError for what these arguments do to maps alone."""
        for name in ("scale", "crop"):
            if task != "semantic" and augment[name] is not None:
                found, expected = f"{name}={augment[name]} of {task}", f"{name}=null"
                raise ConfigError(name, "is for semantic maps", found=found, expected=expected)

    def __call__(
        self, image: Tensor, target: Target | Tensor, key: Tensor, mirrored: list[int] | None
    ) -> tuple[Tensor, Target | Tensor]:
        """uint8 [3, H, W] and its target, as they look for a key, [] int64.

        `mirrored` says of each keypoint which it is in the mirror.
        """
        if isinstance(target, Tensor):
            image, target = self._scaled(image, target, key)
            image, target = self._cropped(image, target, key)
        if rng.uniform(key, "flip") < self.flip:
            image = image.flip(-1)
            target = target.flip(-1) if isinstance(target, Tensor) else mirror(target, mirrored)
        return image, target

    def _scaled(self, image: Tensor, labels: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale is None:
            return image, labels
        low, high = self.scale
        factor = low + (high - low) * rng.uniform(key, "scale").item()
        size = [max(1, round(side * factor)) for side in labels.shape]
        image = F.resize(image, size, antialias=True)
        return image, F.resize(labels[None], size, InterpolationMode.NEAREST_EXACT)[0]

    def _cropped(self, image: Tensor, labels: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.crop is None:
            return image, labels
        parts = []
        for side, most, name in zip(
            labels.shape, height_and_width(self.crop), ("top", "left"), strict=True
        ):
            start = rng.integers(max(side - most, 0) + 1, key, name).item()
            parts.append(slice(start, start + most))
        rows, columns = parts
        return image[:, rows, columns], labels[rows, columns]


def mirror(target: Target, mirrored: list[int] | None) -> Target:
    """A target of objects, left and right exchanged; `mirrored` as in `Augment`."""
    width = target["size"][1]
    x0, y0, x1, y1 = target["boxes"].unbind(1)
    turned = {**target, "boxes": torch.stack([width - x1, y0, width - x0, y1], dim=1)}
    if "masks" in target:
        turned["masks"] = target["masks"].flip(-1)
    if "keypoints" in target:
        points = target["keypoints"][:, mirrored].clone()  # [n, K, 3]
        points[..., 0] = width - 1 - points[..., 0]  # COCO's name pixels, and not their corners
        points[points[..., 2] == 0] = 0  # that are not there lie at 0, 0
        turned["keypoints"] = points
    return turned
