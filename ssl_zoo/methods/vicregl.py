"""VICReg of whole images and of the places in them."""

import torch
from torch import Tensor, nn

from ssl_zoo.config import HEADS, METHODS, Part
from ssl_zoo.config.constraints import NonNegativeFloat, PositiveInt, Scheduled, UnitInterval
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.losses import vicreg_terms
from ssl_zoo.ops import health
from ssl_zoo.ops.batchnorm import groups_of, split_batchnorm
from ssl_zoo.ops.masking import take
from ssl_zoo.ops.patches import cell_centers

# Not as |x|^2 - 2 x y + |y|^2, which is inexact among pixels this far from the origin.
EXACT = "donot_use_mm_for_euclid_dist"


@METHODS.register_module()
class VICRegL(Method):
    """VICReg of images and of places that match in two views of them (arXiv:2210.01571).

    L = alpha l(z, z') + (1 - alpha) [mean over both directions of l_features + l_location],
    l = lam s + mu mean of v + nu mean of c over both sides, as in VICReg (arXiv:2105.04906).

    l_features goes over each place of a map and the place of the other whose embedding is nearest;
    l_location over those nearest in the image, mirrored or not (the authors' code: not mirrored).

    Args:
        head, local_head: pooled features -> embeddings z; features of a place -> its embedding.
        alpha: weight of the whole images against the places.
        gamma: matches by location that are kept, the closest; all, where a map has fewer places.
        feature_gamma: the same by features; null keeps all, as the authors' code does.
        lam, mu, nu: weights of invariance, variance and covariance.
    """

    family = "non-contrastive"
    needs = "map"
    needs_boxes = True
    views_needed = 2
    least_images = 2

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        local_head: Part[HEADS],
        alpha: Scheduled[UnitInterval] = 0.75,
        gamma: PositiveInt = 20,
        feature_gamma: PositiveInt | None = None,
        lam: Scheduled[NonNegativeFloat] = 25.0,
        mu: Scheduled[NonNegativeFloat] = 25.0,
        nu: Scheduled[NonNegativeFloat] = 1.0,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        local_head = local_head(in_features=backbone.map_features)
        self.local_head = split_batchnorm(local_head, groups_of(backbone))
        self.alpha, self.gamma, self.feature_gamma = alpha, gamma, feature_gamma
        self.lam, self.mu, self.nu = lam, mu, nu

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        backbone, z, z_local, place = self.encoder.backbone, [], [], []
        for x, box in zip(batch.views[:2], batch.boxes[:2], strict=True):
            maps = backbone.feature_map(x)  # [N, F, h, w]
            z.append(self.encoder.head(backbone.pool(maps)).float())  # [N, D]
            features = maps.flatten(2).mT  # [N, L, F]
            of_places = self.local_head(features.flatten(0, 1)).float()  # [N L, D']
            z_local.append(of_places.unflatten(0, features.shape[:2]))  # [N, L, D']
            place.append(cell_centers(box, maps.shape[2:]))  # [N, L, 2]
        whole, local = self._loss(*z), 0.0
        for a, b in ((0, 1), (1, 0)):
            distance = torch.cdist(z_local[a].detach(), z_local[b].detach())  # [N, L, L']
            by_features = match(distance, self.feature_gamma)
            by_location = match(torch.cdist(place[a], place[b], compute_mode=EXACT), self.gamma)
            # Taken by `gather`: on several threads, indexing would add up gradients in any order.
            l_features, l_location = (
                self._loss(take(z_local[a], kept), take(z_local[b], partner))
                for kept, partner in (by_features, by_location)
            )
            local = local + (l_features + l_location) / 2
        return {
            "loss": self.alpha * whole + (1 - self.alpha) * local,
            "global": whole,
            "local": local,
            "embedding_std": health.embedding_std(z[0]),
        }

    def _loss(self, z: Tensor, z_other: Tensor) -> Tensor:
        """l of embeddings [N, ..., D] that should agree, []."""
        s, v, c = vicreg_terms(z, z_other)
        return self.lam * s + self.mu * v + self.nu * c / 2


def match(distance: Tensor, gamma: int | None) -> tuple[Tensor, Tensor]:
    """The gamma places (None: all) of one map that are closest to a place of another, and these.

    By distance [N, L, L']; numbers of places, [N, gamma] twice, in the order of the first map's.
    """
    least, partner = distance.min(dim=2)  # [N, L]
    count = min(gamma or least.shape[1], least.shape[1])
    kept = least.topk(count, dim=1, largest=False).indices.sort(dim=1).values  # [N, gamma]
    return kept, partner.gather(1, kept)
