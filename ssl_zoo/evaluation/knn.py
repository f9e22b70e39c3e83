"""Weighted k-nearest-neighbor classification of frozen features, searched by faiss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import faiss
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.config import EVALUATIONS, PositiveFloat, PositiveInt
from ssl_zoo.data import Splits
from ssl_zoo.evaluation.base import UNTRAINED, Context, Evaluation, Outcome, Rows
from ssl_zoo.evaluation.features import check_labeled, check_labels
from ssl_zoo.ops.kmeans import faiss_threads
from ssl_zoo.system import distributed

QUERIES_AT_ONCE = 4096


class Pixels(nn.Module):
    """The images themselves as features, the baseline that a representation has to beat.

    Images larger than `side` are averaged down to it: at 224 x 224 a bank of ImageNet's training
    set would take 770 GB.
    """

    def __init__(self, side: int = 32):
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        size = (min(height, self.side), min(width, self.side))
        return F.adaptive_avg_pool2d(images, size).flatten(1)  # [n, C x h x w]


def build_index(bank: Tensor, kind: str, k: int) -> tuple[faiss.Index, str]:
    """A faiss index of inner products over rows [n, F], and its description for the protocol.

    'flat' is exact. 'ivf' (inverted lists) and 'hnsw' (a graph) are approximate, for banks of
    millions; their settings follow faiss's guidelines with recall put before speed.
    """
    n, width = bank.shape
    if kind == "flat":
        index, described = faiss.IndexFlatIP(width), "flat"
    elif kind == "ivf":
        lists = max(1, min(int(4 * n**0.5), n // 39))  # k-means wants 39 points a list or more
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT
        )
        index.nprobe = min(lists, max(8, lists // 16))
        described = f"ivf (lists {lists}, probes {index.nprobe})"
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        index.hnsw.efSearch = 2 * k
        described = f"hnsw (links 32, ef {index.hnsw.efSearch})"
    else:
        raise ValueError(f"index is {kind!r}; expected flat, ivf or hnsw")
    rows = bank.numpy()
    if not index.is_trained:
        index.train(rows)
    index.add(rows)
    return index, described


def check_bank(k: int, bank: int) -> None:
    """Raises ValueError for more neighbors than the bank has images."""
    if k > bank:
        raise ValueError(f"kNN: k = {k} neighbors asked of a bank of {bank} images")


@faiss_threads()
def vote(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.07,
    index: str = "flat",
) -> Outcome:
    """score[c] = sum over the k nearest j of exp(cos(q, x_j) / T) [y_j = c]; arXiv:1805.01978.

    Args:
        bank, queries: features [n, F] and [m, F] float32 on the CPU; normalized here.
        bank_labels, query_labels: [n] and [m] int64.
        k: neighbors that vote.
        temperature: T.
        index: 'flat' (exact), 'ivf' or 'hnsw'.

    Returns:
        'top1' and 'top5' in %, all that the two depend on, and a row a query, whose score is the
        winner's share of the votes. A class that none of the k neighbors belongs to is not among
        the top five.

    Raises:
        ValueError: k exceeds the bank, unknown labels, features that are not finite.
    """
    check_bank(k, len(bank))
    check_labeled("kNN", "bank", bank, bank_labels)
    check_labeled("kNN", "queries", queries, query_labels)
    classes = 1 + int(max(bank_labels.max(), query_labels.max()))

    bank = F.normalize(bank.float(), dim=1).contiguous()
    queries = F.normalize(queries.float(), dim=1).contiguous()
    search, described = build_index(bank, index, k)

    hits = torch.zeros(min(5, classes))
    predictions, scores = [], []
    chunks = zip(queries.split(QUERIES_AT_ONCE), query_labels.split(QUERIES_AT_ONCE), strict=True)
    for q, y in chunks:
        similarity, neighbors = map(torch.from_numpy, search.search(q.numpy(), k))  # [m, k]
        # Weights relative to the nearest neighbor's: the same ranking, and no overflow at small T.
        weight = ((similarity.double() - similarity[:, :1].double()) / temperature).exp()
        weight[neighbors < 0] = 0.0  # an approximate index may find fewer than k
        votes = bank_labels[neighbors.clamp(min=0)]  # [m, k]
        score = torch.zeros(len(q), classes, dtype=torch.float64).scatter_add_(1, votes, weight)
        best, predicted = score.topk(len(hits), dim=1)  # [m, 5]
        hits += ((predicted == y[:, None]) & (best > 0)).sum(0)
        predictions.append(predicted[:, 0])
        scores.append(best[:, 0] / score.sum(1))
    accuracy = (100 * hits.cumsum(0) / len(queries)).tolist()
    protocol = {
        "k": k,
        "temperature": temperature,
        "index": described,
        "bank": f"{len(bank)} images",
        "queries": f"{len(queries)} images",
        "normalized": True,
        "classes": classes,
    }
    rows = Rows(
        torch.arange(len(queries)), query_labels, torch.cat(predictions), torch.cat(scores).float()
    )
    return Outcome({"top1": accuracy[0], "top5": accuracy[-1]}, protocol, rows)


@EVALUATIONS.register_module()
class KNN(Evaluation):
    """Weighted k-nearest-neighbor vote on frozen features (arXiv:1805.01978), searched by faiss.

    The training split votes on the test split, clean views. Every rank extracts its share of the
    features; rank 0 searches them.

    Args:
        k, temperature, index: see `vote`.
        bank_limit, query_limit: images used of the training and of the test split; null: all.
        precision: of the backbone's pass. An untrained network's features are nearly all alike, and
            bf16 rounds away what they differ in.
    """

    def __init__(
        self,
        *,
        k: PositiveInt = 200,
        temperature: PositiveFloat = 0.07,
        index: Literal["flat", "ivf", "hnsw"] = "flat",
        bank_limit: PositiveInt | None = None,
        query_limit: PositiveInt | None = None,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    ):
        self.k, self.temperature, self.index = k, temperature, index
        self.bank_limit, self.query_limit, self.precision = bank_limit, query_limit, precision

    @staticmethod
    def validate(*, k: int, bank_limit: int | None, **_) -> None:
        if bank_limit is not None:
            check_bank(k, bank_limit)

    def check(self, splits: Splits) -> None:
        for name in ("train", "test"):
            check_labels("kNN", name, splits.split(name).labels)
        bank = len(splits.split("train"))
        check_bank(self.k, min(bank, self.bank_limit or bank))

    def evaluate(self, context: Context) -> Outcome:
        train = context.features("train", self.precision, self.bank_limit)
        test = context.features("test", self.precision, self.query_limit)

        def on_main() -> Outcome:
            settings = {"k": self.k, "temperature": self.temperature, "index": self.index}
            with distributed.borrowed_threads():
                outcome = vote(*train, *test, **settings)
            protocol = outcome.protocol
            protocol["bank"] = f"train split, clean views, {protocol['bank']}"
            protocol["queries"] = f"test split, clean views, {protocol['queries']}"
            protocol["precision"] = self.precision
            return outcome

        return distributed.attempt(on_main)

    def baselines(self, offered: Mapping[str, Callable[[], nn.Module]]) -> dict[str, Any]:
        others = {name: network() for name, network in offered.items()}
        return {"raw pixels": Pixels(), UNTRAINED: None, **others}
