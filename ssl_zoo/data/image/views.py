"""Views of images."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_zoo.config import TRANSFORMS, Part, PositiveInt
from ssl_zoo.config.construct import constrained
from ssl_zoo.data.image.color import Normalize
from ssl_zoo.data.image.transform import GeometricTransform, Transform, whole_images
from ssl_zoo.system import rng


class Samples(NamedTuple):
    """Samples as they look in one epoch: what their views' random numbers are hashes of."""

    seed: int
    epoch: int
    index: Tensor  # [N] int64, see `Batch.index`; on the CPU, lest a GPU be waited for
    records: list | None = None  # N, of a stream


@constrained
class Views:
    """Several random views of each image.

    The view of a sample depends on (seed, epoch, index, view, label of the operation) alone, so it
    is the same in whatever batch, worker or process it is made.

    Args:
        ops: operations by a label of the user's choice, applied in order; the label seeds its
            random numbers, so adding one leaves the others' as they are.
        count: number of views; None: as many as the method needs.
    """

    check_by_building = True

    def __init__(
        self,
        views_needed: int = 1,
        *,
        ops: dict[str, Part[TRANSFORMS]],
        count: PositiveInt | None = None,
    ):
        self.ops: dict[str, Transform] = {label: part() for label, part in ops.items()}
        self.count = views_needed if count is None else count

    def ops_of(self, view: int) -> list[tuple[str, Transform]]:
        """The (label, operation) pairs of one view, in order."""
        return [(n, op) for n, op in self.ops.items() if op.views is None or view in op.views]

    def ops_until_one_size(self, view: int) -> int:
        """How many operations bring images of any size to one; ValueError if the first do not."""
        first = "none of these"
        for number, (label, op) in enumerate(self.ops_of(view), start=1):
            if not isinstance(op, GeometricTransform):
                first = f"ops.{label} ({type(op).__name__}) before that"
                break
            if op.one_size:
                return number
        raise ValueError(
            f"the images vary in size, so view {view} must first bring them to one "
            f"(RandomResizedCrop, CenterCrop, or Resize to [height, width]); it has {first}"
        )

    def check_sizes(self, varied: bool) -> None:
        """Raises ValueError where images of varying size would not come out in one."""
        for view in range(self.count if varied else 0):
            self.ops_until_one_size(view)

    def _keyed(self, views: list[int], samples: Samples) -> Iterator[tuple[Transform, Tensor]]:
        """(operation, its keys [V x N] int64, view by view), in order, of views that share them."""
        seed, epoch, index = samples.seed, samples.epoch, samples.index.cpu()
        key = torch.cat([rng.hashed(seed, epoch, index, view) for view in views])
        for label, op in self.ops_of(views[0]):
            yield op, rng.hashed(key, label) if op.random else key

    def shrink_factors(self, shapes: Tensor, samples: Samples) -> Tensor:
        """How much smaller images of (C, H, W) `shapes` [N, 3] may be decoded, [N] of 1, 2, 4, 8.

        1/k is allowed if the first operation of every view, making h x w pixels of a box of H x W,
        has k h <= H and k w <= W: no view enlarges what was decoded smaller.
        """
        fewest = torch.full((len(shapes),), torch.inf)  # [N], pixels for one of a view's
        for view in range(self.count):
            op, key = next(self._keyed([view], samples))
            params = op.draw(key, (3, shapes[:, 1], shapes[:, 2]))
            fewest = torch.minimum(fewest, op.source_pixels_per_output_pixel(shapes, params))
        return 2 ** sum((fewest >= k).long() for k in (2, 4, 8))

    def boxes(self, view: int, shapes: Tensor, samples: Samples) -> Tensor:
        """A view's (top, left, bottom, right) in images of (C, H, W) `shapes` [N, 3]: [N, 4].

        In pixels, float32; left > right where the view is mirrored.
        """
        box = whole_images(shapes)
        for op, key in self._keyed([view], samples):
            if op.moves_pixels:
                channels, height, width = shapes.unbind(1)
                seen = op.source_box(shapes, op.draw(key, (channels, height, width)))
                seen = torch.where(op.chosen(key)[:, None], seen, whole_images(shapes))
                start, end = box.split(2, dim=1)  # [N, 2], where the current view's corners lie
                pixel = (end - start) / shapes[:, 1:]  # [N, 2], negative where mirrored
                box = start.repeat(1, 2) + pixel.repeat(1, 2) * seen
                shapes = op.output_shapes(shapes)
        return box

    def bring_to_one_size(
        self,
        view: int,
        images: list[Tensor],
        samples: Samples,
        shapes: Tensor | None = None,
        shrink: Tensor | None = None,
    ) -> Tensor:
        """A view's first operations on images of varying size, one by one, in a loader's worker.

        N of uint8 [C, H, W] -> uint8 [N, C, h, w]: a quarter of the floats' traffic. If they were
        decoded at 1/shrink [N], `shapes` [N, 3] is their (C, H, W) before, where boxes are drawn.
        """
        keyed = self._keyed([view], samples)
        for _, (op, key) in zip(range(self.ops_until_one_size(view)), keyed, strict=False):
            if shapes is None:
                shapes = torch.tensor([image.shape for image in images])  # [N, 3]
            params = op.draw(key, (images[0].shape[0], shapes[:, 1], shapes[:, 2]))
            if shrink is not None:
                params = op.scale_params(params, shrink)
            rows = [{name: value[i] for name, value in params.items()} for i in range(len(images))]
            images = [op.apply_one(image, row) for image, row in zip(images, rows, strict=True)]
            shapes = shrink = None  # from here on the images are what they would have been
        return torch.stack(images)

    def make(self, images: list[Tensor], varied: bool, samples: Samples) -> list[Tensor]:
        """All views, each float32 [N, C, h, w], of uint8 [N, C, H, W].

        Where images varied in size, `images` has `bring_to_one_size`'s for each view, else one.
        """
        if varied:
            return [
                self._apply([view], x, samples, done=self.ops_until_one_size(view))[0]
                for view, x in enumerate(images)
            ]
        groups: dict[tuple[str, ...], list[int]] = {}  # views by the labels of their operations
        for view in range(self.count):
            groups.setdefault(tuple(label for label, _ in self.ops_of(view)), []).append(view)
        made: dict[int, Tensor] = {}
        for views in groups.values():
            made |= zip(views, self._apply(views, images[0], samples), strict=True)
        return [made[view] for view in range(self.count)]

    def _apply(
        self, views: list[int], images: Tensor, samples: Samples, done: int = 0
    ) -> list[Tensor]:
        """Views with the same operations, without the first `done`: each float32 [N, C, h, w]."""
        # Views keep full precision even where a training loop asks for them under autocast.
        with torch.autocast(images.device.type, enabled=False):
            made = images.float().div_(255)
            if len(views) > 1:  # as one batch: small images cost calls and not arithmetic
                made = made.repeat(len(views), 1, 1, 1)  # [V x N, C, H, W]
            for i, (op, key) in enumerate(self._keyed(views, samples)):
                if i >= done:
                    made = op(made, key)
        return list(made.split(len(samples.index)))

    def __call__(
        self, images: Tensor | list[Tensor], seed: int, epoch: int, index: Tensor
    ) -> list[Tensor]:
        """All views [N, C, h, w] of uint8 [N, C, H, W], or of a list of uint8 [C, H, W]."""
        samples, views = Samples(seed, epoch, index), range(self.count)
        if not isinstance(images, list):
            return self.make([images], False, samples)
        images = [self.bring_to_one_size(view, images, samples) for view in views]
        return self.make(images, True, samples)

    def denormalize(self, view: int, images: Tensor) -> Tensor:
        """Undoes the view's normalization for display, [N, C, h, w] in [0, 1]."""
        for _, op in reversed(self.ops_of(view)):
            if isinstance(op, Normalize):
                images = op.undo(images)
        return images.clamp(0, 1)
