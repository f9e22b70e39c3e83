"""ODC: clusters that move a little at every step, instead of a clustering between epochs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, ConfigError, Part, at_least, within
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.methods.deepcluster import without_momentum
from ssl_zoo.ops import health
from ssl_zoo.ops.kmeans import closest_centroid, embed, kmeans, means, share_of
from ssl_zoo.system import distributed, rng


@METHODS.register_module()
class ODC(Method):
    """Online deep clustering: labels from two memories, corrected at every step (arXiv:2006.10645).

    L = sum_n w_n CE(W f(x_n), y_n) / sum_n w_n over all ranks' rows, w_n = |cluster y_n|^-r.

    The samples memory holds a feature m and a label y of every image, the centroids memory the
    clusters' means. After a step, for its images, m <- normalise((1 - a) m + a f / |f|), and y is
    the nearest centroid. Every few steps centroids become means again, the members of a cluster
    that has become small go to the nearest others, and its place is taken by half of the largest.
    All begins with k-means of the untrained network's features.

    Args:
        num_samples: rows of the samples memory, the same on all ranks.
        head: features -> f, whose unit vectors are remembered.
        clusters: K.
        momentum: a, the weight of the new feature, as in the paper (and not of the old one).
        centroid_interval: steps between two updates of the centroids; small clusters are looked
            for then too, which the authors do at every step.
        min_cluster: a cluster with fewer images is small.
        reweight_power: r; 0 weighs all images alike.
    """

    family = "clustering"

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int,
        *,
        head: Part[HEADS],
        clusters: int = 10000,
        momentum: float = 0.5,
        centroid_interval: int = 10,
        min_cluster: int = 20,
        reweight_power: float = 0.5,
    ):
        super().__init__()
        self.validate(
            clusters=clusters,
            momentum=momentum,
            centroid_interval=centroid_interval,
            min_cluster=min_cluster,
            reweight_power=reweight_power,
        )
        if clusters * max(min_cluster, 1) > num_samples:
            raise ConfigError(
                "clusters",
                "too many clusters of min_cluster images for this data set",
                found=f"{clusters} of {min_cluster}",
                expected=f"a product of at most {num_samples}",
            )
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        width = self.encoder.out_features
        self.classifier = nn.Linear(width, clusters)
        self.clusters, self.momentum, self.reweight_power = clusters, momentum, reweight_power
        self.centroid_interval, self.min_cluster = centroid_interval, min_cluster
        self.register_buffer("features", torch.zeros(num_samples, width))
        self.register_buffer("labels", torch.arange(num_samples) % clusters)
        self.register_buffer("centroids", torch.zeros(clusters, width))
        self.register_buffer("changed", torch.zeros(()))  # share of the last step's labels
        # `steps` on the host, which would wait for the device; None: to be read from it.
        self.counted: int | None = None
        self.register_load_state_dict_post_hook(forget_count)

    @staticmethod
    def validate(
        *,
        clusters: int = 2,
        momentum: float = 0.5,
        centroid_interval: int = 1,
        min_cluster: int = 0,
        reweight_power: float = 0.0,
        **_,
    ) -> None:
        at_least("clusters", clusters, 2)
        within("momentum", momentum, 0, 1)
        at_least("centroid_interval", centroid_interval, 1)
        at_least("min_cluster", min_cluster, 0)
        at_least("reweight_power", reweight_power, 0)

    @torch.no_grad()
    def before_epoch(self, images) -> None:
        if self.steps > 0:
            return
        z, index = embed(self.encoder, images)
        self.features[index] = F.normalize(z, dim=1).to(self.features.device)
        # Each rank wrote its own rows and left the others at zero.
        self.features.copy_(distributed.mean(self.features) * distributed.world())
        seed = int(rng.integers(2**31 - 1, self.seed, "k-means"))

        def on_main() -> tuple[Tensor, Tensor]:
            with distributed.borrowed_threads():
                return kmeans(self.features.cpu(), self.clusters, iterations=20, seed=seed)

        labels, centroids = distributed.attempt(on_main)
        self.labels.copy_(labels)
        self.centroids.copy_(centroids)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        f = self.encoder(batch.views[0])  # [N, D]
        logits = self.classifier(f).float()  # [N, K]
        y, sizes = self.labels[batch.index], self._sizes()  # [N], [K]
        w = sizes[y].float() ** -self.reweight_power  # [N]
        w = w / distributed.mean(w.mean())
        share = sizes / len(self.labels)  # [K]
        return {
            "loss": (w * F.cross_entropy(logits, y, reduction="none")).mean(),
            "top1": 100 * (logits.argmax(dim=1) == y).float().mean(),
            "embedding_std": health.embedding_std(f),
            "assignment_entropy": health.assignment_entropy(share[None]),
            "f": F.normalize(f.float(), dim=1),
        }

    @torch.no_grad()
    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        index, f = distributed.gather(batch.index), distributed.gather(out["f"])
        m = torch.lerp(self.features[index], f, self.momentum)  # [world x N, D]
        self.features[index] = F.normalize(m, dim=1)
        y = closest_centroid(self.features[index], self.centroids)  # [world x N]
        self.changed.copy_((y != self.labels[index]).float().mean())
        self.labels[index] = y
        self.counted = int(self.steps) if self.counted is None else self.counted + 1
        if self.counted % self.centroid_interval == 0:
            # The host waits for the device here: what follows depends on numbers of rows.
            self._move_centroids()
            self._replace_small_clusters()

    def _sizes(self) -> Tensor:
        """Images in each cluster, [K] int64; unlike bincount it does not stop the host."""
        ones = torch.ones_like(self.labels)
        return ones.new_zeros(self.clusters).index_add_(0, self.labels, ones)

    def _move_centroids(self) -> None:
        mean = means(share_of(self.features), share_of(self.labels), self.clusters)  # [K, D]
        self.centroids.copy_(torch.where(mean.any(dim=1, keepdim=True), mean, self.centroids))

    def _replace_small_clusters(self) -> None:
        """Merges small clusters into the others, and gives each half of the largest one.

        All ranks do the same with the same rows.
        """
        sizes = self._sizes()
        is_small = sizes < self.min_cluster
        small, others = is_small.nonzero()[:, 0], (~is_small).nonzero()[:, 0]
        members = torch.isin(self.labels, small).nonzero()[:, 0]
        self.labels[members] = others[
            closest_centroid(self.features[members], self.centroids[others])
        ]
        for empty in small:
            largest = self._sizes().argmax()
            members = (self.labels == largest).nonzero()[:, 0]
            second = halve(self.features[members])  # [members] bool
            self.labels[members[second]] = empty
            for k in (largest, empty):
                self.centroids[k] = self.features[self.labels == k].mean(dim=0)

    def param_groups(self, weight_decay: float, decay_norm_and_bias: bool = True) -> list[dict]:
        """The classifier learns without momentum, as with the authors: its classes change."""
        groups = super().param_groups(weight_decay, decay_norm_and_bias)
        return without_momentum(groups, self.classifier)

    def telemetry(self, labels: Tensor | None) -> dict[str, float]:
        in_use = (self._sizes() > 0).sum()
        return {"clusters_in_use": float(in_use), "label_change": float(self.changed)}


def forget_count(method: ODC, _) -> None:
    """A checkpoint brought other steps."""
    method.counted = None


def halve(x: Tensor, iterations: int = 10) -> Tensor:
    """2-means of rows [n, D]: which of them are in the second cluster, [n] bool.

    It starts from the sign of the first principal component, so it draws nothing. Rows that are all
    equal are dealt out in turn.
    """
    centred = x - x.mean(dim=0)
    axis = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]  # [D]
    second = centred @ axis > 0  # [n]
    for _ in range(iterations):
        if second.all() or not second.any():
            return torch.arange(len(x), device=x.device) % 2 == 1
        centres = torch.stack([x[~second].mean(dim=0), x[second].mean(dim=0)])  # [2, D]
        second = closest_centroid(x, centres).bool()
    return second
