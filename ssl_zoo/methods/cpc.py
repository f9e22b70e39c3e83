"""Contrastive predictive coding: what is further on in the picture."""

from typing import Literal

import torch
from torch import Tensor, nn

from ssl_zoo.config import METHODS, ConfigError, PositiveFloat, PositiveInt, Scheduled
from ssl_zoo.core import Batch, Method
from ssl_zoo.losses import accuracy, info_nce_loss
from ssl_zoo.memory import Lookup
from ssl_zoo.ops import health
from ssl_zoo.system import distributed


class RowsAbove(nn.Module):
    """A PixelCNN whose output at a patch sees its row and those above: [N, F, h, w] -> the same.

    CPC v2's residual blocks (arXiv:1905.09272): 1x1, 1x3, 2x1 over a row and the one above, 1x1.
    """

    def __init__(self, features: int, hidden_features: int, depth: int):
        super().__init__()
        hidden = hidden_features
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(features, hidden, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1)),
                nn.ZeroPad2d((0, 0, 1, 0)),  # one row on top
                nn.Conv2d(hidden, hidden, (2, 1)),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, features, 1),
            )
            for _ in range(depth)
        )

    def forward(self, z: Tensor) -> Tensor:
        for block in self.blocks:
            z = z + block(z)
        return z.relu()


class PatchEncoder(nn.Module):
    """A backbone on every patch of an overlapping grid: [N, C, H, W] -> z [N, F, h, w]."""

    def __init__(self, backbone: nn.Module, patch_size: int, stride: int):
        super().__init__()
        self.backbone, self.patch_size, self.stride = backbone, patch_size, stride

    def forward(self, images: Tensor) -> Tensor:
        size, stride = self.patch_size, self.stride
        patches = images.unfold(2, size, stride).unfold(3, size, stride)  # [N, C, h, w, s, s]
        patches = patches.permute(0, 2, 3, 1, 4, 5)  # [N, h, w, C, s, s]
        z = self.backbone(patches.flatten(0, 2))  # [N h w, F]
        return z.unflatten(0, patches.shape[:3]).permute(0, 3, 1, 2)


@METHODS.register_module()
class CPC(Method):
    """From the rows above, patches below are told from all others (CPC, arXiv:1807.03748).

    The recipe is version 2's (arXiv:1905.09272): c = context(z) sees a row and those above it,
    W_k c_ij predicts the patch k rows further down, y = W z:
    L = mean over k, i, j of -log exp(W_k c_ij . y_i+k,j / t) / sum_y' exp(W_k c_ij . y' / t),
    where y' goes over all patches of all images of the batch. With four directions the grid is
    also turned by one, two and three quarters: a context network and W_k for each, and one W.

    BatchNorm's statistics would be of patches when whole images are evaluated, and tell patches of
    a batch of each other: configs give the backbone LayerNorm, as version 2 does.

    Args:
        backbone: one patch -> features z.
        patch_size, stride: of a patch, and from a patch to the next, in pixels.
        rows_down: every k. Nearer than patch_size / stride rows, patches share pixels to copy.
        directions: 1, from the top down, or 4, as version 2.
        out_features: width of y.
        hidden_features, depth: width and residual blocks of a context network.
        temperature: t; products are not normalized. The inverse of version 2's `emb_scale`.
    """

    family = "contrastive"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        patch_size: PositiveInt,
        stride: PositiveInt,
        rows_down: list[PositiveInt],
        directions: Literal[1, 4] = 1,
        out_features: PositiveInt = 64,
        hidden_features: PositiveInt = 256,
        depth: PositiveInt = 5,
        temperature: Scheduled[PositiveFloat] = 10.0,
    ):
        super().__init__()
        features = backbone.num_features
        self.encoder = PatchEncoder(backbone, patch_size, stride)
        contexts = (RowsAbove(features, hidden_features, depth) for _ in range(directions))
        self.contexts = nn.ModuleList(contexts)
        self.w = nn.Conv2d(features, out_features, 1)
        self.w_k = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(features, out_features, 1) for _ in rows_down)
            for _ in range(directions)
        )
        self.temperature, self.rows_down = temperature, rows_down

    @staticmethod
    def validate(*, rows_down: list[int], **_) -> None:
        if not rows_down or len(set(rows_down)) < len(rows_down):
            found, expected = str(rows_down), "such as [2, 3]"
            raise ConfigError("rows_down", "no different rows", found=found, expected=expected)

    @staticmethod
    def seen(
        view: int,
        size: tuple[int, int],
        /,
        *,
        patch_size: int,
        stride: int,
        rows_down: list[int],
        directions: int,
        **_,
    ) -> tuple[int, int]:
        patch_grid(size, patch_size, stride, rows_down, directions)
        return patch_size, patch_size

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, size, stride = batch.views[0], self.encoder.patch_size, self.encoder.stride
        n = len(images)
        h, w = patch_grid(images.shape[2:], size, stride, self.rows_down, len(self.contexts))
        z = self.encoder(images)  # [N, F, h, w]
        y = self.w(z).permute(0, 2, 3, 1)  # [N, h, w, D]
        place = torch.arange(n * h * w, device=z.device) + distributed.rank() * n * h * w
        place = place.view(n, h, w)  # of each y among those of all ranks
        q, positive, columns = [], [], []
        for quarters, (context, matrices) in enumerate(zip(self.contexts, self.w_k, strict=True)):
            c = context(z.rot90(quarters, (2, 3)))  # [N, F, h, w], or w, h
            below, below_place = (x.rot90(quarters, (1, 2)) for x in (y, place))
            for k, w_k in zip(self.rows_down, matrices, strict=True):
                q.append(w_k(c[:, :, :-k]).permute(0, 2, 3, 1).flatten(0, 2))  # [N (h - k) w, D]
                positive.append(below[:, k:].flatten(0, 2))
                columns.append(below_place[:, k:].flatten())
        patches = distributed.gather(y.flatten(0, 2))  # [world x N h w, D]
        masked = torch.cat(columns)[:, None]  # the positive's column is no negative's
        lookup = Lookup(torch.cat(q), torch.cat(positive), patches, masked=masked)
        loss, nearer = info_nce_loss(lookup, self.temperature)
        spread = health.embedding_std(y.flatten(0, 2))
        return {"loss": loss, **accuracy(nearer), "embedding_std": spread}


def patch_grid(
    view: tuple[int, int], size: int, stride: int, rows_down: list[int], directions: int
) -> tuple[int, int]:
    """Patches down and across a view; ValueError where they are too few to predict any."""
    h, w = (max(0, (side - size) // stride + 1) for side in view)
    k = max(rows_down)
    if h <= k or w <= (0 if directions == 1 else k):
        where = "down" if directions == 1 else "in each direction"
        raise ValueError(
            f"views make {h} x {w} patches, too few to predict {k} rows {where}: "
            "expected larger views, a smaller patch_size, stride or rows_down"
        )
    return h, w
