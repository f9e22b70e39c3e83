"""Clusters that are kept up without a new k-means, all of them on every rank."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_zoo.ops.kmeans import closest_centroid, means, share_of


def cluster_sizes(labels: Tensor, k: int) -> Tensor:
    """Rows in each of k clusters, [k] int64; unlike `bincount` it does not stop the host."""
    ones = torch.ones_like(labels)
    return ones.new_zeros(k).index_add_(0, labels, ones)


def move_centroids(x: Tensor, labels: Tensor, centroids: Tensor) -> None:
    """Each centroid [k, D] becomes the mean of its rows [S, D]; one without rows stays."""
    mean = means(share_of(x), share_of(labels), len(centroids))  # [k, D]
    centroids.copy_(torch.where(mean.any(dim=1, keepdim=True), mean, centroids))


def replace_small_clusters(x: Tensor, labels: Tensor, centroids: Tensor, smallest: int) -> None:
    """Merges small clusters into the others, and gives each half of the largest (arXiv:2006.10645).

    It draws nothing, so all ranks, which hold the same rows, do the same.

    Args:
        x: [S, D] rows.
        labels: [S] int64 and centroids: [k, D] float32, changed in place.
        smallest: a cluster with fewer rows is small.
    """
    is_small = cluster_sizes(labels, len(centroids)) < smallest
    small, others = is_small.nonzero()[:, 0], (~is_small).nonzero()[:, 0]
    members = torch.isin(labels, small).nonzero()[:, 0]
    labels[members] = others[closest_centroid(x[members], centroids[others])]
    for empty in small:
        largest = cluster_sizes(labels, len(centroids)).argmax()
        members = (labels == largest).nonzero()[:, 0]
        labels[members[halve(x[members])]] = empty
        for k in (largest, empty):
            centroids[k] = x[labels == k].mean(dim=0)


def halve(x: Tensor, iterations: int = 10) -> Tensor:
    """2-means of rows [n, D]: which of them are in the second cluster, [n] bool.

    It starts from the sign of the first principal component, so it draws nothing. Rows that are all
    equal are dealt out in turn.
    """
    centered = x - x.mean(dim=0)
    axis = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -1]  # [D]
    second = centered @ axis > 0  # [n]
    for _ in range(iterations):
        if second.all() or not second.any():
            return torch.arange(len(x), device=x.device) % 2 == 1
        pair = torch.stack([x[~second].mean(dim=0), x[second].mean(dim=0)])  # [2, D]
        second = closest_centroid(x, pair).bool()
    return second
