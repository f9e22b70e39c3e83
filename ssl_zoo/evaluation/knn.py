"""Weighted k-nearest-neighbour classification of frozen features, searched by faiss."""

from __future__ import annotations

from typing import Any

import faiss
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.config import above, at_least
from ssl_zoo.evaluation.features import Features, check_labelled, extract_splits
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


def check_protocol(k: int, temperature: float, bank: int | None) -> None:
    """Raises ValueError for a vote that cannot be taken; `bank` is its number of images."""
    at_least("k", k, 1)
    above("temperature", temperature, 0)
    if bank is not None and k > bank:
        raise ValueError(f"kNN: k = {k} neighbours asked of a bank of {bank} images")


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
) -> dict[str, Any]:
    """score[c] = sum over the k nearest j of exp(cos(q, x_j) / T) [y_j = c]; arXiv:1805.01978.

    Args:
        bank, queries: features [n, F] and [m, F] float32 on the CPU; normalised here.
        bank_labels, query_labels: [n] and [m] int64.
        k: neighbours that vote.
        temperature: T.
        index: 'flat' (exact), 'ivf' or 'hnsw'.

    Returns:
        'top1' and 'top5' in %, and 'protocol', all that the two numbers depend on. A class that
        none of the k neighbours belongs to is not among the top five.

    Raises:
        ValueError: k exceeds the bank, unknown labels, features that are not finite.
    """
    check_protocol(k, temperature, len(bank))
    check_labelled("kNN", "bank", bank, bank_labels)
    check_labelled("kNN", "queries", queries, query_labels)
    classes = 1 + int(max(bank_labels.max(), query_labels.max()))

    bank = F.normalize(bank.float(), dim=1).contiguous()
    queries = F.normalize(queries.float(), dim=1).contiguous()
    search, described = build_index(bank, index, k)

    hits = torch.zeros(min(5, classes))
    chunks = zip(queries.split(QUERIES_AT_ONCE), query_labels.split(QUERIES_AT_ONCE), strict=True)
    for q, y in chunks:
        similarity, neighbours = map(torch.from_numpy, search.search(q.numpy(), k))  # [m, k]
        # Weights relative to the nearest neighbour's: the same ranking, and no overflow at small T.
        weight = ((similarity.double() - similarity[:, :1].double()) / temperature).exp()
        weight[neighbours < 0] = 0.0  # an approximate index may find fewer than k
        votes = bank_labels[neighbours.clamp(min=0)]  # [m, k]
        score = torch.zeros(len(q), classes, dtype=torch.float64).scatter_add_(1, votes, weight)
        best, predicted = score.topk(len(hits), dim=1)  # [m, 5]
        hits += ((predicted == y[:, None]) & (best > 0)).sum(0)
    accuracy = (100 * hits.cumsum(0) / len(queries)).tolist()
    return {
        "top1": accuracy[0],
        "top5": accuracy[-1],
        "protocol": {
            "k": k,
            "temperature": temperature,
            "index": described,
            "bank": f"{len(bank)} images",
            "queries": f"{len(queries)} images",
            "normalized": True,
            "classes": classes,
        },
    }


def evaluate(
    backbone: nn.Module,
    data,
    device: torch.device | str,
    *,
    k: int = 200,
    temperature: float = 0.07,
    index: str = "flat",
    bank_limit: int | None = None,
    query_limit: int | None = None,
    precision: str = "fp32",
) -> dict[str, Any]:
    """kNN accuracy of a frozen backbone: the training split votes on the test split, clean views.

    Args:
        data: `ssl_zoo.data.Data`, asked for the clean views of 'train' and 'test'.
        bank_limit, query_limit: use so many images of the split; None takes all.

    All ranks call it; each extracts its share and rank 0 searches.

    Returns:
        As `of_features`.
    """
    check_protocol(k, temperature, bank_limit)
    features = extract_splits(
        backbone,
        data,
        device,
        train_limit=bank_limit,
        test_limit=query_limit,
        precision=precision,
    )
    return of_features(features, k=k, temperature=temperature, index=index)


def of_features(
    features: Features | None, *, k: int = 200, temperature: float = 0.07, index: str = "flat"
) -> dict[str, Any]:
    """The vote on features that are there; all ranks call it, None where rank is not 0.

    Returns:
        As `vote`, with splits, views and precision written into the protocol, on every rank.
    """

    def on_main() -> dict[str, Any]:
        with distributed.borrowed_threads():
            result = vote(
                *features.train, *features.test, k=k, temperature=temperature, index=index
            )
        protocol = result["protocol"]
        protocol["bank"] = f"train split, clean views, {protocol['bank']}"
        protocol["queries"] = f"test split, clean views, {protocol['queries']}"
        protocol["precision"] = features.precision
        return result

    return distributed.attempt(on_main)
