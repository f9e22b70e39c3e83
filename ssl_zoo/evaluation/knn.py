"""Weighted k-nearest-neighbor classification of frozen features, searched by faiss."""

from typing import ClassVar, Literal

import faiss
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.config import EVALUATIONS, PositiveFloat, PositiveInt
from ssl_zoo.data import Splits
from ssl_zoo.evaluation.base import UNTRAINED, Evaluation, Outcome, Rows, top1_and_top5
from ssl_zoo.evaluation.features import Labeled, Precision, check_usable
from ssl_zoo.ops.kmeans import faiss_threads

QUERIES_AT_ONCE = 4096
QUERIES_FOR_RECALL = 1000
ROUNDING = 1e-6  # of a similarity, summed in another order
NOBODY = -1  # no class; labels are known, so never right
Index = Literal["flat", "ivf", "hnsw"]


class Pixels(nn.Module):
    """The images themselves as features, averaged down to `side` where they are larger.

    At 224 x 224 a bank of ImageNet's training set would take 770 GB.
    """

    def __init__(self, side: int = 32):
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        size = (min(height, self.side), min(width, self.side))
        return F.adaptive_avg_pool2d(images, size).flatten(1)  # [n, C x h x w]


def build_index(bank: Tensor, kind: Index, k: int) -> tuple[faiss.Index, str]:
    """A faiss index of inner products over rows [n, F], and its description for the protocol.

    'flat' is exact. 'ivf' (inverted lists) and 'hnsw' (a graph) are approximate, for banks of
    millions; their settings follow faiss's guidelines with recall put before speed.
    """
    n, width = bank.shape
    if kind == "flat":
        index, described = faiss.IndexFlatIP(width), "flat"
    elif kind == "ivf":
        lists = max(1, min(int(4 * n**0.5), n // 39))  # k-means wants 39 points a list or more
        coarse = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFFlat(coarse, width, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(lists, max(8, lists // 16))
        described = f"ivf (lists {lists}, probes {index.nprobe})"
    else:
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        index.hnsw.efSearch = 2 * k
        described = f"hnsw (links 32, ef {index.hnsw.efSearch})"
    rows = bank.numpy()
    if not index.is_trained:
        index.train(rows)
    index.add(rows)
    return index, described


def index_recall(search: faiss.Index, bank: Tensor, queries: Tensor, k: int) -> float:
    """How much of what the exact index finds an index over the same bank finds, in %.

    Of evenly spaced queries, at most QUERIES_FOR_RECALL. A neighbor counts if it is as similar as
    the k-th that there is: which of several alike is found does not matter.
    """
    count = min(len(queries), QUERIES_FOR_RECALL)
    asked = queries[torch.arange(count) * len(queries) // count].numpy()
    exact, _ = faiss.knn(asked, bank.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)  # [n, k]
    least = exact[:, -1:]
    return 100 * float((search.search(asked, k)[0] >= least - ROUNDING).mean())


def check_bank(k: int, bank: int) -> None:
    """Raises ValueError for more neighbors than the bank has images."""
    if k > bank:
        raise ValueError(f"kNN: k = {k} neighbors asked of a bank of {bank} images")


@EVALUATIONS.register_module()
class KNN(Evaluation):
    """Weighted k-nearest-neighbor vote on frozen features (arXiv:1805.01978), searched by faiss.

    The training split (the bank) votes on the test split (the queries):
    score[c] = sum over the k nearest j of exp(cos(q, x_j) / T) [y_j = c].

    Args:
        k: neighbors that vote.
        temperature: T.
        index: 'flat' (exact), 'ivf' or 'hnsw', see `build_index`.
        train_limit, test_limit: images used of the training and of the test split; null: all.
        precision: of the backbone's pass. An untrained network's features are nearly all alike, and
            bf16 rounds away what they differ in.
    """

    baselines: ClassVar = {"raw pixels": Pixels, UNTRAINED: None}
    offered_baselines = True

    def __init__(
        self,
        *,
        k: PositiveInt = 200,
        temperature: PositiveFloat = 0.07,
        index: Index = "flat",
        train_limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
        precision: Precision = "fp32",
    ):
        self.k, self.temperature, self.index = k, temperature, index
        self.limits, self.precision = (train_limit, test_limit), precision

    @staticmethod
    def validate(*, k: int, train_limit: int | None, **_) -> None:
        if train_limit is not None:
            check_bank(k, train_limit)

    def check(self, splits: Splits) -> None:
        check_usable("kNN", bank=splits.split("train"), queries=splits.split("test"))
        check_bank(self.k, len(splits.chosen("train", self.limits[0])))

    @faiss_threads()
    def judge(self, train: Labeled, test: Labeled, device: torch.device | str = "cpu") -> Outcome:
        """'top1', 'top5' and 'nearest' in %, and for each query the winner's share of the votes; of
        an approximate index its 'index_recall' as well.

        A class that none of the k neighbors belongs to is not among the top five. 'nearest' is what
        the nearest neighbor alone says. A query for which no neighbor is found is predicted -1.

        Raises:
            ValueError: k exceeds the bank, unknown labels, features that are not finite.
        """
        check_bank(self.k, len(train.features))
        check_usable("kNN", bank=train, queries=test)
        classes = 1 + int(max(train.labels.max(), test.labels.max()))
        bank, queries = (F.normalize(x.features.float(), dim=1).contiguous() for x in (train, test))
        search, described = build_index(bank, self.index, self.k)

        predicted, shares, first = [], [], []
        for q in queries.split(QUERIES_AT_ONCE):
            nearest = search.search(q.numpy(), self.k)
            similarity, neighbors = map(torch.from_numpy, nearest)  # [m, k]
            # Weights relative to the nearest neighbor's: the same ranking, no overflow at small T.
            weight = similarity.double() - similarity[:, :1].double()
            weight = (weight / self.temperature).exp()
            weight[neighbors < 0] = 0.0  # an approximate index may find fewer than k, or none
            votes = train.labels[neighbors.clamp(min=0)]  # [m, k]
            score = torch.zeros(len(q), classes, dtype=torch.float64).scatter_add_(1, votes, weight)
            top = score.topk(min(5, classes), dim=1)
            predicted.append(top.indices.where(top.values > 0, NOBODY))
            shares.append((top.values[:, 0] / score.sum(1)).nan_to_num(0.0))
            first.append(votes[:, 0].where(neighbors[:, 0] >= 0, NOBODY))
        ranked = torch.cat(predicted)  # [m, 5]
        hits = ranked == test.labels[:, None]
        protocol = {
            "k": self.k,
            "temperature": self.temperature,
            "index": described,
            "bank": f"train split, clean views, {len(bank)} images",
            "queries": f"test split, clean views, {len(queries)} images",
            "normalized": True,
            "classes": classes,
            "precision": self.precision,
        }
        rows = Rows.of(test, ranked[:, 0], torch.cat(shares))
        nearest = 100 * (torch.cat(first) == test.labels).float().mean().item()
        metrics = top1_and_top5(hits) | {"nearest": nearest}
        if self.index != "flat":
            metrics["index_recall"] = index_recall(search, bank, queries, self.k)
        return Outcome(metrics, protocol, rows)
