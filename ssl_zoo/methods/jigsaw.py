"""Solving jigsaw puzzles."""

import math
from functools import cache
from itertools import permutations
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, AtLeastTwo, Part, PositiveInt, Range
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.heads import MLP
from ssl_zoo.ops.patches import cut, patch_shape
from ssl_zoo.system import rng

GRID = 3
TILES = GRID * GRID


@METHODS.register_module()
class Jigsaw(Method):
    """In which of K orders are the nine tiles of an image? (arXiv:1603.09246).

    Each tile goes through the same network. A tile's place within its cell, and so the gap to its
    neighbors, is random, and each tile has zero mean and unit deviation in every channel: otherwise
    lines and colors that run over a border would give the order away.

    Args:
        head: features of a tile -> D numbers (the paper's fc6).
        num_permutations: K.
        patch_size: of a tile, in pixels; a third of the image at most.
        hidden_features: width between the tiles' 9 x D numbers and the K classes (fc7).
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        num_permutations: Annotated[int, Range(2, math.factorial(TILES))] = 1000,
        patch_size: AtLeastTwo = 64,
        hidden_features: PositiveInt = 4096,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        width = TILES * self.encoder.out_features
        self.classifier = MLP(width, out_features=num_permutations, hidden_features=hidden_features)
        orders = torch.from_numpy(distant_permutations(num_permutations))
        self.register_buffer("permutations", orders)  # [K, 9]
        self.patch_size = patch_size

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """L = -log p(k | tile_{pi_k(1)}, ..., tile_{pi_k(9)})."""
        place = self.random_key("place", batch.index)  # [N]
        tiles = cut(batch.views[0], GRID, self.patch_size, place)  # [N, 9, C, s, s]
        k = rng.integers(len(self.permutations), self.random_key("permutation", batch.index))
        tiles = tiles[torch.arange(len(k), device=k.device)[:, None], self.permutations[k]]
        tiles = F.instance_norm(tiles.flatten(0, 1))  # [9N, C, s, s]
        z = F.relu(self.encoder(tiles)).view(len(k), -1)  # [N, 9 D]
        logits = self.classifier(z).float()  # [N, K]
        top1 = 100 * (logits.argmax(dim=1) == k).float().mean()
        return {"loss": F.cross_entropy(logits, k), "top1": top1}

    @staticmethod
    def seen(view: int, size: tuple[int, int], /, *, patch_size: int, **_) -> tuple[int, int]:
        return patch_shape(size, GRID, patch_size)


@cache
def distant_permutations(count: int) -> np.ndarray:
    """Permutations of nine, far from each other, [count, 9] int64; the same at every call.

    Algorithm 1 of arXiv:1603.09246: the next is the one with the largest Hamming distance, summed
    over those taken so far; among equals, the first in a fixed random order.
    """
    every = np.array(list(permutations(range(TILES))), dtype=np.int8)
    every = every[rng.permutation(len(every), "jigsaw").numpy()].T.copy()  # [9, 9!]
    agree = np.zeros(every.shape[1], dtype=np.int32)  # places shared with those taken, in total
    taken = [0]
    while len(taken) < count:
        agree += (every == every[:, taken[-1:]]).sum(axis=0, dtype=np.int8)
        agree[taken[-1]] = np.iinfo(np.int32).max // 2
        taken.append(int(agree.argmin()))
    return every[:, taken].T.astype(np.int64)
