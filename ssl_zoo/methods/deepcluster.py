"""DeepCluster: k-means of the features gives the labels, and the labels better features."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import METHODS, AtLeastTwo, ConfigError, PositiveInt
from ssl_zoo.core import Batch, Encoder, Method, set_apart
from ssl_zoo.heads import Linear
from ssl_zoo.ops import health
from ssl_zoo.ops.kmeans import embed, euclidean_kmeans, mutual_information, whiten
from ssl_zoo.system import distributed, rng


@METHODS.register_module()
class DeepCluster(Method):
    """Classifies images by the clusters of their own features (arXiv:1807.05520).

    L = 1/N sum_n w_n CE(W f(x_n), y_n), w_n = S / (K' |cluster y_n|): S images in K' clusters that
    are in use. In expectation this is the paper's sampling of images uniformly over clusters.

    Before every epoch the features of all images (clean, evaluation mode) are whitened by PCA, set
    to unit length and clustered, and the classifier is drawn anew, since clusters have no names.
    The paper's Sobel filter, for AlexNet's and VGG's first layer, is left out.

    Args:
        clusters: K; the paper takes ten times the classes.
        pca: dimensions that are kept.
    """

    family = "clustering"
    per_sample: ClassVar = {"assignments": 0}

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int,
        *,
        clusters: AtLeastTwo = 10000,
        pca: PositiveInt = 256,
        kmeans_iterations: PositiveInt = 20,
    ):
        super().__init__()
        most = min(backbone.num_features, num_samples)
        for name, value, bound in (("clusters", clusters, num_samples), ("pca", pca, most)):
            if value > bound:
                raise ConfigError(name, "too large", found=str(value), expected=f"at most {bound}")
        self.encoder = Encoder(backbone, Linear(backbone.num_features, out_features=clusters))
        self.clusters, self.pca, self.kmeans_iterations = clusters, pca, kmeans_iterations
        # Any clusters will do until the first ones are found.
        self.register_buffer("assignments", torch.arange(num_samples) % clusters)
        self.register_buffer("sizes", torch.bincount(self.assignments, minlength=clusters))
        self.register_buffer("nmi", torch.zeros(()))  # with the clusters before
        self.register_load_state_dict_post_hook(lambda method, _: method._count())

    @torch.no_grad()
    def before_epoch(self, images) -> None:
        features, positions = map(distributed.to_main, embed(self.encoder.backbone, images))
        seed = self._seed("k-means")

        def on_main() -> Tensor:
            with distributed.borrowed_threads():
                x = whiten(features, self.pca)  # [S, pca]
                y, _ = euclidean_kmeans(x, self.clusters, self.kmeans_iterations, seed)
            return torch.empty_like(y).index_copy_(0, positions, y)

        y = distributed.attempt(on_main).to(self.assignments.device)  # [S]
        self.nmi.fill_(mutual_information(y, self.assignments))
        self.assignments.copy_(y)
        self._count()
        classifier = self.encoder.head.layers[0]
        generator = torch.Generator().manual_seed(self._seed("classifier"))
        weight = torch.empty(classifier.weight.shape).normal_(0, 0.01, generator=generator)
        classifier.weight.copy_(weight)
        classifier.bias.zero_()

    def _count(self) -> None:
        self.sizes.copy_(torch.bincount(self.assignments, minlength=self.clusters))

    def _seed(self, purpose: str) -> int:
        return int(rng.integers(2**31 - 1, self.seed, self.steps, purpose))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        y = self.assignments[batch.index]  # [N]
        logits = self.encoder(batch.views[0]).float()  # [N, K]
        share = self.sizes / len(self.assignments)  # [K], |cluster| / S
        w = 1 / (share[y] * (share > 0).sum())  # [N]
        return {
            "loss": (w * F.cross_entropy(logits, y, reduction="none")).mean(),
            "top1": 100 * (logits.argmax(dim=1) == y).float().mean(),
            "assignment_entropy": health.assignment_entropy(share[None]),
        }

    def telemetry(self, labels: Tensor | None) -> dict[str, float]:
        return {"clusters_in_use": float((self.sizes > 0).sum()), "nmi": float(self.nmi)}

    def param_groups(self, weight_decay: float, decay_norm_and_bias: bool = True) -> list[dict]:
        """The classifier learns without momentum, as with the authors: it is new in each epoch."""
        # Adam has no such switch: its moments, of weights that are gone, fade within the epoch.
        groups = super().param_groups(weight_decay, decay_norm_and_bias)
        return set_apart(groups, self.encoder.head, momentum=0.0, constant_momentum=True)
