"""Contrastive learning as dictionary look-up; the mechanism is the memory's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.encoder import Encoder
from ssl_zoo.method import Batch, Method
from ssl_zoo.registry import HEADS, LOSSES, MEMORY, METHODS, Part


@METHODS.register_module()
class Contrastive(Method):
    """Queries against a dictionary of keys (Figure 2 of arXiv:1911.05722).

    With `memory: MoCoQueue` this is MoCo v1 and v2, with a symmetric `EndToEnd` SimCLR, with a
    `MemoryBank` InstDisc.

    Args:
        backbone: images -> features.
        num_samples: size of the training set.
        head: features -> embeddings, normalised here to unit length.
        memory: where keys come from.
        loss: of a look-up.
    """

    family = "contrastive"

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int,
        *,
        head: Part[HEADS],
        memory: Part[MEMORY],
        loss: Part[LOSSES],
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.memory = memory(encoder=self.encoder, num_samples=num_samples)
        self.loss = loss(num_samples=num_samples)
        self._compared: tuple[Tensor, Tensor] | None = None  # data-set positions, for telemetry

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # 2 x [N, C, H, W], once the same for a memory that looks at one view.
        x_q, x_k = batch.views[0], batch.views[self.memory.num_views - 1]
        q = F.normalize(self.encoder(x_q).float(), dim=1)  # [N, D]
        k = self.memory.encode(self.encoder, x_k, batch.index)  # [N, D]
        found = self.memory.lookup(q, k, batch.index)
        self._compared = batch.index, found.index
        return {"loss": self.loss(found), **found.accuracy(), "q": q, "k": k}

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.memory.update(self.encoder, out["q"], out["k"], batch.index)

    def telemetry(self, labels: Tensor | None) -> dict[str, float]:
        scalars = self.memory.telemetry(self.encoder)
        if labels is not None and self._compared is not None:
            scalars |= _same_label(labels, *self._compared)
        return scalars

    def remark(self, batch_size: int) -> str:
        return self.memory.remark(batch_size)

    @staticmethod
    def views_needed(memory: Part[MEMORY], **_) -> int:
        return memory.target.num_views


def _same_label(labels: Tensor, queries: Tensor, keys: Tensor) -> dict[str, float]:
    """Share of labelled (query, key) pairs with the same label, in %; own pairs count."""
    of_queries, of_keys = labels[queries.cpu()], labels[keys[keys >= 0].cpu()]
    of_queries, of_keys = of_queries[of_queries >= 0], of_keys[of_keys >= 0]
    if len(of_queries) == 0 or len(of_keys) == 0:
        return {}
    share = torch.bincount(of_keys, minlength=int(labels.max()) + 1) / len(of_keys)  # [classes]
    return {"same_label_negatives": 100 * share[of_queries].mean().item()}
