"""Contrastive multiview coding: what lightness and color know of each other."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, LOSSES, METHODS, Part
from ssl_zoo.config.constraints import SCHEDULED, marked
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.losses import accuracy
from ssl_zoo.memory import MemoryBank
from ssl_zoo.ops import health


class HalfHeads(nn.Module):
    """A head for each half of the features: [N, 2F] -> [N, 2D]."""

    def __init__(self, in_features: int, head: Part[HEADS]):
        super().__init__()
        self.l, self.ab = (head(in_features=in_features // 2) for _ in range(2))
        self.out_features: int = self.l.out_features + self.ab.out_features

    def forward(self, features: Tensor) -> Tensor:
        h_l, h_ab = features.chunk(2, dim=1)  # [N, F]
        return torch.cat([self.l(h_l), self.ab(h_ab)], dim=1)


@METHODS.register_module()
class CMC(Method):
    """Lightness finds its color among many, and color its lightness (arXiv:1906.05849).

    L = L_NCE(z_L; bank_ab) + L_NCE(z_ab; bank_L), where row i of a bank is the positive of image
    i and rows drawn at random are the negatives.

    Args:
        backbone: a `LabPair`, which makes both views.
        head: features of one view -> z, normalized here to unit length; one for each view.
        bank, loss: a view's memory, and of its look-ups; one for each.
    """

    family = "contrastive"
    needs = "lab"
    evaluated = "backbone"  # both halves: LinearProbing.py of HobbitLong/CMC

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int,
        *,
        head: Part[HEADS],
        bank: Part[MemoryBank],
        loss: Part[LOSSES],
    ):
        super().__init__()
        heads = HalfHeads(backbone.num_features, head)
        self.encoder = Encoder(backbone, heads)
        self.bank = bank(encoder=heads.l, num_samples=num_samples)
        self.bank_ab = bank(encoder=heads.ab, num_samples=num_samples)
        self.loss, self.loss_ab = (loss(num_samples=num_samples) for _ in range(2))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        for part, twin in ((self.bank, self.bank_ab), (self.loss, self.loss_ab)):
            for name in marked(type(part), SCHEDULED):  # what a schedule moves, of both
                setattr(twin, name, getattr(part, name))
        x = batch.views[0]  # [N, 3, H, W]
        z_l, z_ab = (F.normalize(z, dim=1) for z in self.encoder(x).float().chunk(2, dim=1))
        k_l = self.bank.encode(self.encoder, x, batch.index)  # [N, D]
        k_ab = self.bank_ab.encode(self.encoder, x, batch.index)
        colors = self.bank_ab.lookup(z_l, k_ab, batch.index)
        lights = self.bank.lookup(z_ab, k_l, batch.index)
        (of_color, nearer_l), (of_light, nearer_ab) = self.loss(colors), self.loss_ab(lights)
        return {
            "loss": of_color + of_light,
            "top1": (accuracy(nearer_l)["top1"] + accuracy(nearer_ab)["top1"]) / 2,
            "embedding_std": torch.minimum(health.embedding_std(z_l), health.embedding_std(z_ab)),
            "z_l": z_l[:, None],  # [N, 1, D]
            "z_ab": z_ab[:, None],
        }

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        for bank, z in ((self.bank, out["z_l"]), (self.bank_ab, out["z_ab"])):
            bank.update(self.encoder, z, z, batch.index)
