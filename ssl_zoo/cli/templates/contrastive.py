"""NewPart: one sentence on the idea."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, LOSSES, MEMORY, METHODS, Part
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.losses import accuracy
from ssl_zoo.ops import health


@METHODS.register_module()
class NewPart(Method):
    """Which of many keys is another view of the same image? (InfoNCE, arXiv:1807.03748).

    L = -log exp(q.k+/t) / (exp(q.k+/t) + sum_i exp(q.k_i/t)).

    Args:
        backbone: images -> features.
        num_samples: size of the training set; None of a stream.
        head: features -> embeddings, normalized here to unit length.
        memory: where the keys come from.
        loss: of a look-up.
    """

    family = "contrastive"
    views_needed = 2

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int | None,
        *,
        head: Part[HEADS],
        memory: Part[MEMORY],
        loss: Part[LOSSES],
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.memory = memory(encoder=self.encoder, num_samples=num_samples)
        self.loss = loss(num_samples=num_samples)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_q, x_k = batch.views[:2]  # [N, C, H, W] each
        q = F.normalize(self.encoder(x_q).float(), dim=1)  # [N, D]
        k = self.memory.encode(self.encoder, x_k, batch.index)  # [N, D]
        loss, nearer = self.loss(self.memory.lookup(q, k, batch.index))
        return {
            "loss": loss,
            **accuracy(nearer),
            "embedding_std": health.embedding_std(q),
            "q": q[:, None],  # [N, 1, D]
            "k": k[:, None],
        }

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.memory.update(self.encoder, out["q"], out["k"], batch.index)
