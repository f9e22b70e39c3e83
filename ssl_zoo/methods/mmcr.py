"""Maximum manifold capacity: centroids that fill the sphere."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, NonNegativeFloat, Part, Scheduled
from ssl_zoo.core import Batch, Encoder, Method, encode_views
from ssl_zoo.ops import health
from ssl_zoo.system import distributed


@METHODS.register_module()
class MMCR(Method):
    """The nuclear norm of the images' mean embeddings, made large (arXiv:2303.03307).

    L = -||C||_* + lam mean_b ||Z_b||_*, C the centroids over the views of all images of the batch,
    Z_b the views of image b. The host waits in each step: it checks the singular values.

    Args:
        head: features -> embeddings, normalized here to unit length.
        lam: lambda, the weight of the manifolds' own extent; 0 on ImageNet.
    """

    family = "non-contrastive"
    views_needed = 2
    least_images = 2

    def __init__(
        self, backbone: nn.Module, *, head: Part[HEADS], lam: Scheduled[NonNegativeFloat] = 0.0
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.lam = lam

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = torch.stack(encode_views(self.encoder, batch.views), dim=1)  # [N, V, D]
        z = F.normalize(z.float(), dim=2)
        centroids = z.mean(dim=1)  # [N, D]
        loss = -torch.linalg.matrix_norm(distributed.gather(centroids), "nuc")
        if self.lam:
            loss = loss + self.lam * torch.linalg.matrix_norm(z, "nuc").mean()
        return {
            "loss": loss,
            "centroid_length": centroids.norm(dim=1).mean(),
            "embedding_std": health.embedding_std(z[:, 0]),
        }
