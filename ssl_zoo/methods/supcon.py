"""Supervised contrastive learning."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Part, PositiveFloat, Scheduled
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.ops import health
from ssl_zoo.system import distributed


@METHODS.register_module()
class SupCon(Method):
    """Images of one class attract each other: SimCLR with labels (SupCon, arXiv:2004.11362).

    It trains on `batch.label`: a supervised reference for the others. ValueError without a label.
    L = mean over i of -1/|P(i)| sum_{p in P(i)} log(exp(z_i.z_p/t) / sum_{a != i} exp(z_i.z_a/t)),
    the paper's L_out: i, p and a are views of the batch of all ranks and P(i) the others of i's
    class, or, where the image has no label (-1), its other view alone.

    Args:
        head: features -> embeddings, normalized here to unit length.
        temperature: t.
    """

    family = "contrastive"
    views_needed = 2
    least_images = 2

    def __init__(
        self,
        backbone: nn.Module,
        labels: Tensor,
        *,
        head: Part[HEADS],
        temperature: Scheduled[PositiveFloat] = 0.1,
    ):
        super().__init__()
        if not (labels >= 0).any():
            raise ValueError(f"SupCon needs labels; none of the {len(labels)} images has one")
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.temperature = temperature

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = (F.normalize(self.encoder(x).float(), dim=1) for x in batch.views[:2])  # [N, D]
        z = torch.cat([z1, z2])  # [2N, D]
        others = torch.cat([distributed.gather(z1), distributed.gather(z2)])  # [2M, D], all ranks'
        label = distributed.gather(batch.label)  # [M]
        image = torch.arange(len(label), device=z.device)  # [M]
        mine = distributed.local_rows(image)  # [N]

        same_image = mine[:, None] == image  # [N, M]
        same_class = (batch.label[:, None] == label) & (label >= 0)  # [N, M]
        itself = torch.block_diag(same_image, same_image)  # [2N, 2M]
        positive = (same_class | same_image).repeat(2, 2) & ~itself  # [2N, 2M]

        with torch.autocast(z.device.type, enabled=False):
            similarity = z @ others.T / self.temperature  # [2N, 2M]
        log_p = similarity.masked_fill(itself, -torch.inf).log_softmax(dim=1)
        log_p = log_p.masked_fill(~positive, 0)  # -inf on the diagonal too
        loss = -(log_p.sum(dim=1) / positive.sum(dim=1)).mean()
        return {"loss": loss, "embedding_std": health.embedding_std(z1)}
