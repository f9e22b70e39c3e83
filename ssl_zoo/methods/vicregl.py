"""VICReg of whole images and of the places in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Part, at_least, within
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.methods.vicreg import covariance, variance
from ssl_zoo.ops import health
from ssl_zoo.ops.batchnorm import split_batchnorm
from ssl_zoo.ops.masking import take
from ssl_zoo.ops.patches import centres
from ssl_zoo.system import distributed


@METHODS.register_module()
class VICRegL(Method):
    """VICReg of images and of places that match in two views of them (arXiv:2210.01571).

    L = alpha l(z, z') + (1 - alpha) [mean over both directions of l_features + l_location],
    l = lam s + mu mean of v + nu mean of c over both sides, as in VICReg (arXiv:2105.04906).

    l_features goes over each place of a map and the place of the other whose embedding is nearest;
    l_location over those that are nearest in the image, mirrored or not (the authors' code leaves
    mirrored views out of account unless told otherwise).

    Args:
        backbone: images -> feature maps, which it pools.
        head: pooled features -> embeddings z.
        local_head: the features of each place -> its embedding.
        alpha: weight of the whole images against the places.
        gamma: matches by location that are kept, those of least distance; all, where a map has
            fewer places.
        feature_gamma: the same by features; null keeps all, as the authors' code does.
        lam, mu, nu: lambda, mu, nu: weights of invariance, variance and covariance.
    """

    family = "non-contrastive"
    needs = "map"
    needs_boxes = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        local_head: Part[HEADS],
        alpha: float = 0.75,
        gamma: int = 20,
        feature_gamma: int | None = None,
        lam: float = 25.0,
        mu: float = 25.0,
        nu: float = 1.0,
    ):
        super().__init__()
        self.validate(alpha=alpha, gamma=gamma, feature_gamma=feature_gamma, lam=lam, mu=mu, nu=nu)
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.local_head = split_batchnorm(
            local_head(in_features=backbone.map_features), backbone.bn_groups
        )
        self.alpha, self.gamma, self.feature_gamma = alpha, gamma, feature_gamma
        self.lam, self.mu, self.nu = lam, mu, nu

    @staticmethod
    def validate(
        *,
        alpha: float = 0.0,
        gamma: int = 1,
        feature_gamma: int | None = None,
        lam: float = 0.0,
        mu: float = 0.0,
        nu: float = 0.0,
        **_,
    ) -> None:
        within("alpha", alpha, 0, 1)
        at_least("gamma", gamma, 1)
        if feature_gamma is not None:
            at_least("feature_gamma", feature_gamma, 1)
        at_least("lam", lam, 0)
        at_least("mu", mu, 0)
        at_least("nu", nu, 0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z_1, *places_1 = self.embed(batch.views[0], batch.boxes[0])
        z_2, *places_2 = self.embed(batch.views[1], batch.boxes[1])
        whole = self.criterion(z_1, z_2)
        local = (self.local(*places_1, *places_2) + self.local(*places_2, *places_1)) / 2
        return {
            "loss": self.alpha * whole + (1 - self.alpha) * local,
            "global": whole,
            "local": local,
            "embedding_std": health.embedding_std(z_1),
        }

    def embed(self, x: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An image's embedding [N, D], its L places' [N, L, D'], and where they lie [N, L, 2]."""
        backbone = self.encoder.backbone
        maps = backbone.feature_map(x)  # [N, F, h, w]
        z = self.encoder.head(backbone.pool(maps))  # [N, D]
        features = maps.flatten(2).mT  # [N, L, F]
        local = self.local_head(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return z.float(), local.float(), centres(box, maps.shape[2:])

    def local(self, z: Tensor, at: Tensor, other_z: Tensor, other_at: Tensor) -> Tensor:
        """l of one map's places [N, L, D] at [N, L, 2] with their matches in another map."""
        by_features = match(torch.cdist(z.detach(), other_z.detach()), self.feature_gamma)
        # Not as |x|^2 - 2 x y + |y|^2, which is inexact among pixels this far from the origin.
        mode = "donot_use_mm_for_euclid_dist"
        by_location = match(torch.cdist(at, other_at, compute_mode=mode), self.gamma)
        # Taken by `gather`: on several threads, indexing would add up gradients in any order.
        return sum(
            self.criterion(take(z, place), take(other_z, partner))
            for place, partner in (by_features, by_location)
        )

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


def match(distance: Tensor, gamma: int | None) -> tuple[Tensor, Tensor]:
    """The gamma places (None: all) closest to their nearest neighbours, and these.

    Args:
        distance: [N, L, L'], from the places of one map to those of another.

    Returns:
        Numbers of places, [N, gamma] twice, in the order of the first map's.
    """
    places = distance.shape[1]
    least, nearest = distance.min(dim=2)  # [N, L]
    kept = least.topk(min(gamma or places, places), dim=1, largest=False).indices
    kept = kept.sort(dim=1).values  # [N, gamma]
    return kept, nearest.gather(1, kept)
