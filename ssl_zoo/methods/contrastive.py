"""Contrastive learning as dictionary look-up; the mechanism is the memory's."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, LOSSES, MEMORY, METHODS, ConfigError, Part
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.losses import accuracy


@METHODS.register_module()
class Contrastive(Method):
    """Queries against a dictionary of keys (Figure 2 of arXiv:1911.05722).

    With `memory: MoCoQueue` this is MoCo v1 and v2, with a `MemoryBank` InstDisc, and symmetric
    with an `EndToEnd` that has `same_view_negatives` SimCLR.

    Args:
        head: features -> embeddings, normalized here to unit length.
        memory, loss: where keys come from; of a look-up.
        symmetric: each view is a query once and a key once; the loss is the mean of both, and the
            keys of both are written. With a MoCoQueue this is MoCo v2+ (arXiv:2011.10566, table 4).

    Attributes:
        compared: for observers, the last queries' data-set positions and those of their keys.
    """

    family = "contrastive"
    evaluated = "backbone"  # MoCo's: main_lincls.py of facebookresearch/moco

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int | None,
        *,
        head: Part[HEADS],
        memory: Part[MEMORY],
        loss: Part[LOSSES],
        symmetric: bool = False,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.memory = memory(encoder=self.encoder, num_samples=num_samples)
        self.loss = loss(num_samples=num_samples)
        self.symmetric = symmetric
        self.compared: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def validate(*, memory: Part[MEMORY], symmetric: bool, **_) -> None:
        if symmetric and memory.target.num_views == 1:
            recalls = f"{memory.target.__name__} recalls its keys"
            problem = f"{recalls}: no second view has one to be compared with"
            expected = "false, or a memory that encodes a second view: MoCoQueue, EndToEnd"
            raise ConfigError("symmetric", problem, found="true", expected=expected)

    @staticmethod
    def views_needed(memory: Part[MEMORY], **_) -> int:
        return memory.target.num_views

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # [N, C, H, W] each; the same one for a memory that looks at one view.
        x1, x2 = batch.views[0], batch.views[self.memory.num_views - 1]
        q, k = [self.embed(x1)], [self.memory.encode(self.encoder, x2, batch.index)]  # [N, D]
        if self.symmetric and self.memory.online_keys:
            q, k = [*q, *k], [*k, *q]
        elif self.symmetric:
            q.append(self.embed(x2))
            k.append(self.memory.encode(self.encoder, x1, batch.index))
        lookups = self.memory.lookups(q, k, batch.index)
        keys = lookups[-1].index  # a queue's own, which the update overwrites
        self.compared = batch.index, None if keys is None else keys.clone()
        losses, nearer = zip(*map(self.loss, lookups), strict=True)
        return {
            "loss": sum(losses) / len(losses),
            **accuracy(torch.cat(nearer)),
            "q": torch.stack(q, dim=1),  # [N, V, D]
            "k": torch.stack(k, dim=1),
        }

    def embed(self, images: Tensor) -> Tensor:
        return F.normalize(self.encoder(images).float(), dim=1)

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.memory.update(self.encoder, out["q"], out["k"], batch.index)

    def remark(self, batch_size: int) -> str:
        return self.memory.remark(2 * batch_size if self.symmetric else batch_size)
