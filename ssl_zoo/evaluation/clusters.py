"""How well k-means finds the classes again, without being shown one."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_zoo.config import EVALUATIONS, NonNegativeInt, PositiveInt
from ssl_zoo.data import Splits
from ssl_zoo.evaluation.base import UNTRAINED, Evaluation, Outcome, Rows
from ssl_zoo.evaluation.features import Labeled, Precision, check_usable
from ssl_zoo.ops.kmeans import euclidean_kmeans, mutual_information

NO_CLASS = -1  # of a cluster that is matched with none


def adjusted_rand(counts: Tensor) -> float:
    """ARI of a contingency table [K, C]: pairs of images that both labelings join or part.

    (sum_kc (n_kc choose 2) - E) / ((sum_k (a_k choose 2) + sum_c (b_c choose 2)) / 2 - E), with E
    what chance expects (Hubert and Arabie 1985); 1 where both labelings are trivial in one way.
    """

    def pairs(n: Tensor) -> float:
        n = n.double()
        return float((n * (n - 1) / 2).sum())

    joined, a, b = pairs(counts), pairs(counts.sum(1)), pairs(counts.sum(0))
    every = pairs(counts.sum())
    if a == b and a in (0.0, every):
        return 1.0
    expected = a * b / every
    return (joined - expected) / ((a + b) / 2 - expected)


def matched_classes(counts: Tensor) -> Tensor:
    """Which class each cluster stands for, [K] int64, of a contingency table [K, C].

    One to one, so that as many images as possible are of their cluster's class (Kuhn 1955); a
    cluster too many has NO_CLASS.
    """
    # Not at the top: every process of a run would hold scipy's 60 MB.
    from scipy.optimize import linear_sum_assignment

    clusters, classes = linear_sum_assignment(counts.numpy(), maximize=True)
    matched = np.full(len(counts), NO_CLASS)
    matched[clusters] = classes
    return torch.from_numpy(matched)


@EVALUATIONS.register_module()
class KMeans(Evaluation):
    """k-means of the test images' features, and how far its clusters are the classes.

    'nmi' is I(clusters; classes) / sqrt(H H) (arXiv:1807.05520, equation 3), 'ari' the adjusted
    Rand index, both times 100; 'top1' the share of the images that are of their cluster's class,
    which is the best of all one-to-one matchings (arXiv:1511.06335). The labels serve to count and
    to match, and no training image is looked at.

    Args:
        clusters: null: as many as the test images have classes.
        iterations, starts: of k-means; of several starts the one that ends nearest to the features.
        test_limit: test images used; null: all.
        precision: of the backbone's pass.
    """

    metric, given = "nmi", ("test",)
    baselines: ClassVar = {UNTRAINED: None}

    def __init__(
        self,
        *,
        clusters: PositiveInt | None = None,
        iterations: PositiveInt = 50,
        starts: PositiveInt = 5,
        seed: NonNegativeInt = 0,
        test_limit: PositiveInt | None = None,
        precision: Precision = "fp32",
    ):
        self.clusters = clusters
        self.settings = {"iterations": iterations, "seed": seed, "starts": starts}
        self.limits, self.precision = (None, test_limit), precision

    def check(self, splits: Splits) -> None:
        test = splits.split("test")
        check_usable("KMeans", test_split=test)
        self._check_count(len(splits.chosen("test", self.limits[1])))

    def _check_count(self, images: int) -> None:
        if self.clusters is not None and self.clusters > images:
            raise ValueError(f"KMeans: {self.clusters} clusters asked of {images} test images")

    def judge(self, test: Labeled, device: torch.device | str = "cpu") -> Outcome:
        """Of each test image the class that its cluster is matched with, -1 for none, and the
        cosine of its feature and the cluster's centroid.

        Raises:
            ValueError: unknown labels, features that are not finite, more clusters than images.
        """
        check_usable("KMeans", test_split=test)
        self._check_count(len(test.labels))
        classes, label = test.labels.unique(return_inverse=True)  # [C], [m]
        clusters = len(classes) if self.clusters is None else self.clusters
        x = F.normalize(test.features.float(), dim=1)
        assigned, centroids = euclidean_kmeans(x, clusters, **self.settings)
        counts = torch.zeros(clusters, len(classes), dtype=torch.int64)
        counts.index_put_((assigned, label), torch.ones_like(label), accumulate=True)
        matched = matched_classes(counts)[assigned]  # [m]
        prediction = classes[matched.clamp(min=0)].where(matched != NO_CLASS, NO_CLASS)
        metrics = {
            "nmi": 100 * mutual_information(assigned, label),
            "ari": 100 * adjusted_rand(counts),
            "top1": 100 * (prediction == test.labels).float().mean().item(),
        }
        protocol = {
            "clusters": clusters,
            "classes": len(classes),
            **self.settings,
            "normalized": True,
            "images": f"test split, clean views, {len(x)} images",
            "nmi": "divided by the geometric mean of the entropies",
            "top1": "clusters matched with classes one to one, by these images' labels",
            "precision": self.precision,
        }
        score = F.cosine_similarity(x, centroids[assigned])
        return Outcome(metrics, protocol, Rows.of(test, prediction, score))
