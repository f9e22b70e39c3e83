"""Predicting where a patch lies beside another."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, AtLeastTwo, NonNegativeInt, Part, PositiveInt
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.heads import MLP
from ssl_zoo.ops.patches import cut, patch_shape
from ssl_zoo.system import rng

GRID, CENTER, NEIGHBORS = 3, 4, 8


@METHODS.register_module()
class RelativeLocation(Method):
    """On which of its eight sides does a patch lie of another? (arXiv:1505.05192).

    The gap between the two and the jitter keep lines that run on from giving the answer away;
    dropped colors do so for the lens, whose colors part further from the image's middle.

    Args:
        head: features of a patch -> D numbers (the paper's fc6).
        patch_size: in pixels; the rest of a third of the image is the gap, in the paper half of it.
        jitter: pixels that a patch may be off its place, 7 for the paper's 96.
        drop_colors: leave each patch one channel, and noise in the others; not for gray images.
        hidden_features: width between the pair's 2 x D numbers and the eight classes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        patch_size: AtLeastTwo = 64,
        jitter: NonNegativeInt = 5,
        drop_colors: bool = True,
        hidden_features: PositiveInt = 4096,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        width = 2 * self.encoder.out_features
        self.classifier = MLP(width, out_features=NEIGHBORS, hidden_features=hidden_features)
        self.patch_size, self.jitter, self.drop_colors = patch_size, jitter, drop_colors

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """L = -log p(y | patch_center, patch_y), y one of eight."""
        # The words are part of what is drawn, so they keep their first spelling.
        place = self.random_key("place", batch.index)  # [N]
        patches = cut(batch.views[0], GRID, self.patch_size, place, self.jitter)
        y = rng.integers(NEIGHBORS, self.random_key("neighbour", batch.index))  # [N]
        pair = torch.stack([torch.full_like(y, CENTER), y + (y >= CENTER)], dim=1)  # [N, 2]
        pair = patches[torch.arange(len(y), device=y.device)[:, None], pair]  # [N, 2, C, s, s]
        if self.drop_colors:
            pair = keep_one_channel(pair, self.random_key("colour", batch.index))
        z = F.relu(self.encoder(pair.flatten(0, 1))).view(len(y), -1)  # [N, 2 D]
        logits = self.classifier(z).float()  # [N, 8]
        top1 = 100 * (logits.argmax(dim=1) == y).float().mean()
        return {"loss": F.cross_entropy(logits, y), "top1": top1}

    @staticmethod
    def seen(
        view: int, size: tuple[int, int], /, *, patch_size: int, jitter: int, **_
    ) -> tuple[int, int]:
        return patch_shape(size, GRID, patch_size, jitter)


def keep_one_channel(patches: Tensor, key: Tensor) -> Tensor:
    """One channel, drawn by `key` [N], of each patch [N, P, C, h, w]; in the others noise."""
    _, count, channels, height, width = patches.shape
    number, channel, row, column = (
        torch.arange(size, device=key.device) for size in (count, channels, height, width)
    )
    kept = rng.integers(channels, key[:, None], "kept", number)[:, :, None]  # [N, P, 1]
    deviation = patches.std(dim=(3, 4)).gather(2, kept)[..., None, None]  # [N, P, 1, 1, 1]
    place = (number[:, None, None, None], channel[:, None, None], row[:, None], column)
    u = rng.uniform(key[:, None, None, None, None], "noise", *place)  # [N, P, C, h, w]
    # Normal, with a hundredth of the kept channel's deviation.
    noise = 0.01 * deviation * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
    return torch.where((channel == kept)[..., None, None], patches, noise)
