"""DeepCluster v2: k-means of the last epoch's embeddings, prototypes instead of a classifier."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, ConfigError, Part
from ssl_zoo.config.constraints import AtLeastTwo, PositiveFloat, PositiveInt, Scheduled
from ssl_zoo.core import Batch, Encoder, Method, encode_views
from ssl_zoo.heads import Prototypes
from ssl_zoo.ops import health
from ssl_zoo.ops.kmeans import closest_centroid, embed_everywhere, spherical_kmeans
from ssl_zoo.system import distributed


@METHODS.register_module()
class DeepClusterV2(Method):
    """Classifies views by spherical k-means of the last epoch's embeddings (arXiv:2006.09882).

    L = 1/H sum_h 1/V sum_v CE(z_v C_h^T / T, y_h), y_h = argmax_k m_h . c_hk: m_h is the image's
    embedding in the epoch before, and the centroids C_h themselves, without a gradient, classify
    (section 'DeepCluster-v2'). The first two views are remembered, in a bank each; the clusterings
    h = 1 ... H take the banks in turn. All views, smaller ones too (multi-crop), predict.

    Args:
        head: features -> embeddings, normalized here to unit length.
        clusters: K of each clustering; H numbers.
        temperature: T.
    """

    family = "clustering"
    views_needed = 2
    per_sample: ClassVar = {"bank": 1}

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int,
        *,
        head: Part[HEADS],
        clusters: list[AtLeastTwo] = [3000, 3000, 3000],  # noqa: B006
        temperature: Scheduled[PositiveFloat] = 0.1,
        kmeans_iterations: PositiveInt = 10,
    ):
        super().__init__()
        if max(clusters) > num_samples:
            found, most = str(max(clusters)), f"at most {num_samples}"
            raise ConfigError("clusters", "too large", found=found, expected=most)
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.temperature, self.kmeans_iterations = temperature, kmeans_iterations
        width = self.encoder.out_features
        self.centroids = nn.ModuleList(Prototypes(width, k).requires_grad_(False) for k in clusters)
        self.register_buffer("bank", torch.zeros(2, num_samples, width))

    @staticmethod
    def validate(*, clusters: list[int], **_) -> None:
        if not clusters:
            raise ConfigError("clusters", "none", found="[]", expected="such as [300, 300]")

    @torch.no_grad()
    def before_epoch(self, images) -> None:
        if self.steps == 0:  # no epoch before: what the untrained network sees in clean images
            self.bank.copy_(embed_everywhere(self.encoder, images, self.bank.shape[1]))
        for h, centroids in enumerate(self.centroids):
            key = (self.seed, self.steps, f"k-means {h}")
            start = self.bank[h % 2], len(centroids.weight), self.kmeans_iterations
            centroids.weight.copy_(spherical_kmeans(*start, *key))  # [K, D]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        outputs = encode_views(self.encoder, batch.views)
        z = [F.normalize(output.float(), dim=1) for output in outputs]  # V x [N, D]
        every = torch.cat(z)  # [V x N, D]
        loss, entropy = 0.0, []
        for h, centroids in enumerate(self.centroids):
            y = self._assigned(h, batch.index)  # [N]
            logits = centroids(every) / self.temperature  # [V x N, K]
            loss += F.cross_entropy(logits, y.repeat(len(z))) / len(self.centroids)
            entropy.append(health.assignment_entropy(logits.softmax(dim=1)))
        return {
            "loss": loss,
            "embedding_std": health.embedding_std(z[0]),
            "assignment_entropy": torch.stack(entropy).mean(),
            "z": torch.stack(z[:2], dim=1),  # [N, 2, D]
        }

    def _assigned(self, h: int, index: Tensor) -> Tensor:
        """The cluster of images [N] in clustering h, [N]."""
        # A row changes after its image was seen, once an epoch: until then it is k-means' own.
        with torch.autocast(index.device.type, enabled=False):
            return closest_centroid(self.bank[h % 2][index], self.centroids[h].weight)

    @torch.no_grad()
    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        index, z = distributed.gather(batch.index), distributed.gather(out["z"])
        self.bank[:, index] = z.transpose(0, 1)
