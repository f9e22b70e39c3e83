"""Pretext-invariant representations: the same, whatever was done to the image."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, LOSSES, MEMORY, METHODS, ConfigError, Part
from ssl_zoo.config.constraints import PositiveInt, Scheduled, UnitInterval
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.losses import accuracy
from ssl_zoo.memory import MemoryBank
from ssl_zoo.ops import health
from ssl_zoo.ops.batchnorm import groups_of, hold_statistics, split_batchnorm
from ssl_zoo.ops.masking import random_order
from ssl_zoo.ops.patches import cut, patch_shape, quarter_turns
from ssl_zoo.system import rng


@METHODS.register_module()
class PIRL(Method):
    """A jigsaw, or a turned image, is to look like its image and no other (arXiv:1912.01991).

    L = lambda L_NCE(m_I, g(v_It)) + (1 - lambda) L_NCE(m_I, f(v_I)) (equation 5): v features, I the
    first view, It the transformed second, m_I the memory's row, negatives the rows of others.

    Args:
        transform: I -> It.
        head: f, of the image. g is another one: of a turned image as it is; of a jigsaw on each
            patch, then a linear layer on the patches' outputs side by side, in random order.
        memory: a MemoryBank.
        loss: L_NCE, of a look-up; the authors' code takes InstDisc's.
        weight: lambda.
        grid, patch_size: patches along each side of a jigsaw, and their size in pixels.
    """

    family = "contrastive"
    views_needed = 2

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int,
        *,
        transform: Literal["jigsaw", "rotation"],
        head: Part[HEADS],
        memory: Part[MEMORY],
        loss: Part[LOSSES],
        weight: Scheduled[UnitInterval] = 0.5,
        grid: PositiveInt = 3,
        patch_size: PositiveInt = 64,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.g = split_batchnorm(head(in_features=backbone.num_features), groups_of(backbone))
        d = self.g.out_features
        self.join = nn.Linear(grid**2 * d, d) if transform == "jigsaw" else nn.Identity()
        self.memory = memory(encoder=self.encoder, num_samples=num_samples)
        self.loss = loss(num_samples=num_samples)
        self.transform, self.weight = transform, weight
        self.grid, self.patch_size = grid, patch_size

    @staticmethod
    def validate(*, memory: Part[MEMORY], **_) -> None:
        if not issubclass(memory.target, MemoryBank):
            problem, found = "PIRL compares images with a memory bank", memory.target.__name__
            raise ConfigError("memory.type", problem, found=found, expected="MemoryBank")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x, x_t = batch.views[:2]  # [N, C, H, W]
        encode = self.encode_jigsaw if self.transform == "jigsaw" else self.encode_rotation
        key = self.random_key(self.transform, batch.index)  # [N]
        # In this order: a compiled pass after a plain one would spoil BatchNorm's backward pass.
        f = F.normalize(self.encoder(x).float(), dim=1)  # [N, D], f(v_I)
        g = F.normalize(encode(x_t, key).float(), dim=1)  # [N, D], g(v_It)
        m = self.memory.encode(self.encoder, x, batch.index)  # [N, D], m_I
        of_transformed, of_image = (self.memory.lookup(z, m, batch.index) for z in (g, f))
        loss_g, nearer = self.loss(of_transformed)
        loss_f, _ = self.loss(of_image)
        return {
            "loss": self.weight * loss_g + (1 - self.weight) * loss_f,
            **accuracy(nearer),
            "embedding_std": health.embedding_std(f),
            "f": f[:, None],  # [N, 1, D]
            "m": m[:, None],
        }

    def encode_jigsaw(self, x: Tensor, key: Tensor) -> Tensor:
        """grid**2 patches, each alone, side by side in an order drawn for each image: [N, D]."""
        patches = cut(x, self.grid, self.patch_size, key)  # [N, P, C, s, s]
        # Running statistics stay those of whole images, as the backbone is evaluated.
        hold_statistics(self.encoder.backbone, True, "patches")
        v = self.encoder.backbone(patches.flatten(0, 1))  # [N P, F]
        hold_statistics(self.encoder.backbone, False, "patches")
        z = self.g(v).unflatten(0, patches.shape[:2])  # [N, P, D]
        order = random_order(key, self.grid**2)  # [N, P]
        return self.join(z.take_along_dim(order[:, :, None], dim=1).flatten(1))

    def encode_rotation(self, x: Tensor, key: Tensor) -> Tensor:
        """Each square image turned by a multiple of 90 degrees drawn for it: [N, D]."""
        turns = rng.integers(4, key)  # [N]
        x_t = quarter_turns(x)[torch.arange(len(x), device=x.device), turns]
        return self.join(self.g(self.encoder.backbone(x_t)))

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.memory.update(self.encoder, out["f"], out["m"], batch.index)

    @staticmethod
    def seen(
        view: int, size: tuple[int, int], /, *, transform: str, grid: int, patch_size: int, **_
    ) -> tuple[int, int]:
        if view == 1 and transform == "jigsaw":
            return patch_shape(size, grid, patch_size)
        if view == 1:
            quarter_turns(torch.empty(1, 1, *size, device="meta"))
        return size

    def remark(self, batch_size: int) -> str:
        return self.memory.remark(batch_size)
