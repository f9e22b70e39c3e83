"""VICReg of whole images and of the places in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo import distributed, health
from ssl_zoo.batchnorm import split_batchnorm
from ssl_zoo.encoder import Encoder
from ssl_zoo.method import Batch, Method
from ssl_zoo.methods.vicreg import covariance, variance
from ssl_zoo.registry import HEADS, METHODS, Part, at_least, within


@METHODS.register_module()
class VICRegL(Method):
    """VICReg on features and on matched places of the feature maps (arXiv:2210.01571).

    L = alpha l(z, z') + (1 - alpha) [l of z's matches in z' + l of z' matches in z] / 2,
    l = lam s + mu mean of v + nu mean of c over both sides, as in VICReg (arXiv:2105.04906).

    The paper matches places twice, by their features and by where the crops lie in the image. Here
    they are matched by features alone: a batch does not say where its crops lie.

    Args:
        backbone: images -> feature maps, which it pools.
        head: pooled features -> embeddings z.
        local_head: the features of each place -> its embedding.
        alpha: weight of the whole images against the places.
        gamma: matches kept, those of least distance; all, where a map has fewer places.
        lam, mu, nu: lambda, mu, nu: weights of invariance, variance and covariance.
    """

    family = "non-contrastive"
    needs = "map"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        local_head: Part[HEADS],
        alpha: float = 0.75,
        gamma: int = 20,
        lam: float = 25.0,
        mu: float = 25.0,
        nu: float = 1.0,
    ):
        super().__init__()
        self.validate(alpha=alpha, gamma=gamma, lam=lam, mu=mu, nu=nu)
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.local_head = split_batchnorm(
            local_head(in_features=backbone.map_features), backbone.bn_groups
        )
        self.alpha, self.gamma = alpha, gamma
        self.lam, self.mu, self.nu = lam, mu, nu

    @staticmethod
    def validate(
        *,
        alpha: float = 0.0,
        gamma: int = 1,
        lam: float = 0.0,
        mu: float = 0.0,
        nu: float = 0.0,
        **_,
    ) -> None:
        within("alpha", alpha, 0, 1)
        at_least("gamma", gamma, 1)
        at_least("lam", lam, 0)
        at_least("mu", mu, 0)
        at_least("nu", nu, 0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        (z_1, map_1), (z_2, map_2) = (self.embed(x) for x in batch.views[:2])
        whole = self.criterion(z_1, z_2)
        there = self.criterion(*match(map_1, map_2, self.gamma))
        back = self.criterion(*match(map_2, map_1, self.gamma))
        local = (there + back) / 2
        return {
            "loss": self.alpha * whole + (1 - self.alpha) * local,
            "global": whole,
            "local": local,
            "embedding_std": health.embedding_std(z_1),
        }

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] -> the image's embedding [N, D] and its L places' [N, L, D']."""
        backbone = self.encoder.backbone
        maps = backbone.feature_map(x)  # [N, F, h, w]
        z = self.encoder.head(backbone.pool(maps))  # [N, D]
        places = maps.flatten(2).mT  # [N, L, F]
        local = self.local_head(places.flatten(0, 1)).unflatten(0, places.shape[:2])  # [N, L, D']
        return z.float(), local.float()

    def criterion(self, z_1: Tensor, z_2: Tensor) -> Tensor:
        """l of embeddings [N, ..., D] that should agree; variance and covariance of all ranks'."""
        s = F.mse_loss(z_1, z_2)
        z_1, z_2 = distributed.gather(z_1), distributed.gather(z_2)  # [world x N, ..., D]
        v = (variance(z_1) + variance(z_2)) / 2
        c = (covariance(z_1) + covariance(z_2)) / 2
        return self.lam * s + self.mu * v + self.nu * c

    @staticmethod
    def views_needed(**_) -> int:
        return 2


def match(z: Tensor, other: Tensor, gamma: int) -> tuple[Tensor, Tensor]:
    """The gamma places of z closest to their nearest neighbours in `other`, and these.

    Args:
        z, other: [N, L, D], [N, L', D], the places of two maps.

    Returns:
        [N, gamma, D] twice, in the order of z's places.
    """
    with torch.no_grad():
        distance, nearest = torch.cdist(z, other).min(dim=2)  # [N, L]
        kept = distance.topk(min(gamma, z.shape[1]), dim=1, largest=False).indices
        kept = kept.sort(dim=1).values  # [N, gamma]
        partner = nearest.gather(1, kept)
    sample = torch.arange(len(z), device=z.device)[:, None]
    return z[sample, kept], other[sample, partner]
