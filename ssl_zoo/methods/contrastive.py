"""Contrastive learning as dictionary look-up; the mechanism is the memory's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, LOSSES, MEMORY, METHODS, ConfigError, Part
from ssl_zoo.core import Batch, Encoder, Method


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
        symmetric: each view is a query once and a key once; the loss is the mean of both, and the
            keys of both are written. With a MoCoQueue this is MoCo v2+, the better MoCo v2 that
            SimSiam is compared with (arXiv:2011.10566, table 4). A symmetric `EndToEnd` is so
            already.

    Raises:
        ConfigError: `symmetric` with a memory that looks at one view.
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
        symmetric: bool = False,
    ):
        super().__init__()
        self.validate(memory=memory, symmetric=symmetric)
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.memory = memory(encoder=self.encoder, num_samples=num_samples)
        self.loss = loss(num_samples=num_samples)
        self.symmetric = symmetric
        self._compared: tuple[Tensor, Tensor] | None = None  # data-set positions, for telemetry

    @staticmethod
    def validate(*, memory: Part[MEMORY], symmetric: bool = False, **_) -> None:
        if symmetric and memory.target.num_views == 1:
            raise ConfigError(
                "symmetric",
                f"{memory.target.__name__} recalls its keys: no second view has one to be "
                "compared with",
                found="true",
                expected="false, or a memory that encodes a second view: MoCoQueue, EndToEnd",
            )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # 2 x [N, C, H, W], once the same for a memory that looks at one view.
        x_q, x_k = batch.views[0], batch.views[self.memory.num_views - 1]
        there = self._compare(x_q, x_k, batch.index)
        if not self.symmetric:
            return there
        back = self._compare(x_k, x_q, batch.index)
        both = {name: (there[name], back[name]) for name in there}
        return {
            name: torch.stack(pair, dim=1) if pair[0].dim() else sum(pair) / 2  # [N, 2, D] or []
            for name, pair in both.items()
        }

    def _compare(self, x_q: Tensor, x_k: Tensor, index: Tensor) -> dict[str, Tensor]:
        q = F.normalize(self.encoder(x_q).float(), dim=1)  # [N, D]
        k = self.memory.encode(self.encoder, x_k, index)  # [N, D]
        found = self.memory.lookup(q, k, index)
        self._compared = index, found.index
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
        return self.memory.remark(2 * batch_size if self.symmetric else batch_size)

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
