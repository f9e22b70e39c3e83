"""ODC: clusters that move a little at every step, instead of a clustering between epochs."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, AtLeastTwo, ConfigError, NonNegativeFloat, Part
from ssl_zoo.config.constraints import (
    DueSteps,
    NonNegativeInt,
    PositiveInt,
    Scheduled,
    UnitInterval,
)
from ssl_zoo.core import Batch, Encoder, Method, set_apart
from ssl_zoo.ops import health
from ssl_zoo.ops.kmeans import (
    closest_centroid,
    cluster_sizes,
    embed_everywhere,
    euclidean_kmeans,
    move_centroids,
    replace_small_clusters,
)
from ssl_zoo.system import distributed, rng


@METHODS.register_module()
class ODC(Method):
    """Online deep clustering: labels from two memories, corrected at every step (arXiv:2006.10645).

    L = sum_n w_n CE(W f(x_n), y_n) / sum_n w_n over all ranks' rows, w_n = |cluster y_n|^-r.

    One memory holds a feature m and a label y of every image, the other the clusters' means. After
    a step, for its images, m <- normalize((1 - a) m + a f / |f|), and y is the nearest centroid.
    Every few steps centroids become means again, the members of a small cluster go to the nearest
    others, and half of the largest takes its place. k-means of untrained features is the start.

    Args:
        head: features -> f, whose unit vectors are remembered.
        clusters: K.
        momentum: a, the weight of the new feature, as in the paper (and not of the old one).
        centroid_interval: steps between updates of the centroids and (the authors: 1) searches.
        min_cluster: a cluster with fewer images is small.
        reweight_power: r; 0 weighs all images alike.
    """

    family = "clustering"
    per_sample: ClassVar = {"features": 0, "labels": 0}

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int,
        *,
        head: Part[HEADS],
        clusters: AtLeastTwo = 10000,
        momentum: Scheduled[UnitInterval] = 0.5,
        centroid_interval: DueSteps[PositiveInt] = 10,
        min_cluster: NonNegativeInt = 20,
        reweight_power: Scheduled[NonNegativeFloat] = 0.5,
    ):
        super().__init__()
        if clusters * max(min_cluster, 1) > num_samples:
            problem = "too many clusters of min_cluster images for this data set"
            found, most = f"{clusters} of {min_cluster}", f"a product of at most {num_samples}"
            raise ConfigError("clusters", problem, found=found, expected=most)
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        width = self.encoder.out_features
        self.classifier = nn.Linear(width, clusters)  # W
        self.momentum, self.reweight_power = momentum, reweight_power
        self.centroid_interval, self.min_cluster = centroid_interval, min_cluster
        self.register_buffer("features", torch.zeros(num_samples, width))  # m
        self.register_buffer("labels", torch.arange(num_samples) % clusters)  # y
        self.register_buffer("centroids", torch.zeros(clusters, width))
        self.register_buffer("changed", torch.zeros(()))  # share of the last step's labels
        # `steps` on the host, which would wait for the device; None: to be read, as after a resume.
        self.host_steps: int | None = None
        self.register_load_state_dict_post_hook(lambda odc, _: setattr(odc, "host_steps", None))

    @torch.no_grad()
    def before_epoch(self, images) -> None:
        """Before the first: the memories are filled, and clustered as DeepCluster does."""
        if self.steps > 0:
            return
        self.features.copy_(embed_everywhere(self.encoder, images, len(self.features)))
        seed = int(rng.integers(2**31 - 1, self.seed, "k-means"))

        def on_main() -> tuple[Tensor, Tensor]:
            with distributed.borrowed_threads():
                return euclidean_kmeans(self.features.cpu(), len(self.centroids), 20, seed)

        labels, centroids = distributed.attempt(on_main)
        self.labels.copy_(labels)
        self.centroids.copy_(centroids)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        f = self.encoder(batch.views[0])  # [N, D]
        logits = self.classifier(f).float()  # [N, K]
        y = self.labels[batch.index]  # [N]
        sizes = cluster_sizes(self.labels, len(self.centroids))  # [K]
        w = sizes[y].float() ** -self.reweight_power  # [N]
        w = w / distributed.mean(w.mean())
        return {
            "loss": (w * F.cross_entropy(logits, y, reduction="none")).mean(),
            "top1": 100 * (logits.argmax(dim=1) == y).float().mean(),
            "embedding_std": health.embedding_std(f),
            "assignment_entropy": health.assignment_entropy(sizes[None] / len(self.labels)),
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
        self.host_steps = int(self.steps) if self.host_steps is None else self.host_steps + 1
        if self.host_steps % self.centroid_interval == 0:
            # The host waits for the device here: what follows depends on numbers of rows.
            clusters = self.features, self.labels, self.centroids
            move_centroids(*clusters)
            replace_small_clusters(*clusters, self.min_cluster)

    def param_groups(self, weight_decay: float, decay_norm_and_bias: bool = True) -> list[dict]:
        """The classifier learns without momentum, as with the authors: its classes change."""
        groups = super().param_groups(weight_decay, decay_norm_and_bias)
        return set_apart(groups, self.classifier, momentum=0.0, constant_momentum=True)

    def telemetry(self, labels: Tensor | None) -> dict[str, float]:
        in_use = (cluster_sizes(self.labels, len(self.centroids)) > 0).sum()
        return {"clusters_in_use": float(in_use), "label_change": float(self.changed)}
