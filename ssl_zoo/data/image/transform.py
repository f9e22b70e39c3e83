"""What an augmentation is: a whole batch at once, with each sample's own parameters.

`draw` turns keys (one 64-bit number a sample, a hash of seed, epoch, index, view and the
operation's label) into parameters, on the CPU, so that choosing rows waits for no GPU. `apply` does
to each image, float32 in [0, 1], [N, C, H, W] with C = 1 or 3, what torchvision's functional does.
"""

import torch
from torch import Tensor

from ssl_zoo.config import NonNegativeInt
from ssl_zoo.system import rng

Params = dict[str, Tensor]
Shape = tuple[int, int | Tensor, int | Tensor]  # C, H, W; H and W are [N] where images vary in size
ViewNumbers = list[NonNegativeInt] | None


class Transform:
    """An operation on each sample with chance `p`, in the views of these numbers (None: all)."""

    check_by_building = True
    random = True  # draws random numbers, so it has no place in evaluation
    moves_pixels = False  # pixels go to other places, see `source_box`
    one_size = False  # images come out in one size, `self.size`, whatever went in

    def __init__(self, p: float = 1.0, views: ViewNumbers = None):
        self.p, self.views = p, views

    def draw(self, key: Tensor, shape: Shape) -> Params:
        """Parameters, rows beside `key` [N] int64; on the CPU."""
        return {}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """[N, C, H, W] -> [N, C, h, w]; may overwrite `images`."""
        raise NotImplementedError

    def chosen(self, key: Tensor) -> Tensor:
        """Which samples are changed, [N] bool."""
        return rng.uniform(key, "p") < self.p

    def source_box(self, shapes: Tensor, params: Params) -> Tensor:
        """(top, left, bottom, right) [N, 4] of what is seen of (C, H, W) `shapes` [N, 3].

        In their pixels, if all are changed; left > right where they are mirrored.
        """
        return whole_images(shapes)

    def output_shapes(self, shapes: Tensor) -> Tensor:
        """The (C, H, W) that come out, [N, 3]."""
        if not self.one_size:
            return shapes
        size = shapes.new_tensor(self.size).expand(len(shapes), 2)
        return torch.cat([shapes[:, :1], size], dim=1)

    def __call__(self, images: Tensor, key: Tensor) -> Tensor:
        """Draws and applies, to the chosen rows alone; may overwrite `images`."""
        if self.p == 1:
            return self.apply(images, self.draw(key, images.shape[1:]))
        rows = self.chosen(key).nonzero().squeeze(1)  # [n]
        if len(rows) == 0:
            return images
        params = self.draw(key[rows], images.shape[1:])
        rows = rows.to(images.device, non_blocking=True)
        return images.index_copy_(0, rows, self.apply(images.index_select(0, rows), params))


class GeometricTransform(Transform):
    """An operation that also takes images one at a time, as bytes, each of its own size."""

    moves_pixels = True

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return self.apply_one(images, params)

    def apply_one(self, image: Tensor, params: Params) -> Tensor:
        """uint8 [C, H, W] -> uint8 [C, h, w], with a single sample's parameters."""
        raise NotImplementedError

    def source_pixels_per_output_pixel(self, shapes: Tensor, params: Params) -> Tensor:
        """Along the side where they are fewer, of images of (C, H, W) `shapes` [N, 3]: [N]."""
        return torch.ones(len(shapes))

    def scale_params(self, params: Params, shrink: Tensor) -> Params:
        """The same parameters for images decoded at 1/shrink of their size, `shrink` [N] int64."""
        return params


def whole_images(shapes: Tensor) -> Tensor:
    """All of images of (C, H, W) `shapes` [N, 3], as (top, left, bottom, right) [N, 4] float32."""
    return torch.nn.functional.pad(shapes[:, 1:].float(), (2, 0))


def filter_rows_and_columns(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Products with rows [N, h, H] and columns [N, w, W], [N, C, H, W] -> [N, C, h, w]."""
    n, channels, height, width = images.shape
    images = images.reshape(n, channels * height, width) @ columns.mT  # [N, C * H, w]
    images = images.view(n, channels, height, -1)
    # One product a channel: broadcasting over channels would copy the matrices.
    return torch.stack([rows @ plane for plane in images.unbind(1)], dim=1)


def uniforms(key: Tensor, count: int) -> Tensor:
    """`count` uniform numbers a sample, [N] int64 -> [N, count] float32."""
    return rng.uniform(key[:, None], torch.arange(count))


def between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform
