"""Clustering of a whole training set: features, k-means, clusters that move, agreement."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import faiss
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ssl_zoo.ops.modes import eval_mode
from ssl_zoo.system import distributed, rng

ROWS_AT_ONCE = 8192


@contextmanager
def faiss_threads() -> Iterator[None]:
    """faiss takes as many threads as torch may, inside; left alone its OpenMP takes every core."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@torch.no_grad()
def embed(encoder: nn.Module, images: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """This rank's outputs [n, D] float32 in evaluation mode and positions [n], on the CPU.

    Of (images [n, C, H, W], data-set positions [n]), as `Method.before_epoch` gets them.
    """
    width = getattr(encoder, "out_features", None) or encoder.num_features
    outputs, positions = [torch.empty(0, width)], [torch.empty(0, dtype=torch.int64)]
    buffers = {}
    if distributed.world() > 1:  # rank 0's running statistics, lest clusters follow the ranks
        first = distributed.broadcast({name: b.cpu() for name, b in encoder.named_buffers()})
        buffers = {name: first[name].to(b.device) for name, b in encoder.named_buffers()}
    with eval_mode(encoder):
        for x, index in images:
            outputs.append(functional_call(encoder, buffers, x).float().cpu())
            positions.append(index.cpu())
    return torch.cat(outputs), torch.cat(positions)


def embed_everywhere(
    encoder: nn.Module, images: Iterable[tuple[Tensor, Tensor]], num_samples: int
) -> Tensor:
    """All ranks' outputs of `embed` as unit vectors by position, [num_samples, D], on each rank."""
    z, index = embed(encoder, images)
    device = next(encoder.parameters()).device
    whole = torch.zeros(num_samples, z.shape[1], device=device)
    whole[index] = F.normalize(z, dim=1).to(device)
    # Each rank wrote its share of the rows and left the others at zero.
    return distributed.mean(whole) * distributed.world()


def whiten(x: Tensor, dimensions: int) -> Tensor:
    """PCA of rows [N, D] to unit variance, then unit length: [N, dimensions], float32, CPU."""
    pca = faiss.PCAMatrix(x.shape[1], dimensions, -0.5)
    pca.epsilon = 1e-6  # a dimension that never varies would divide by zero
    with faiss_threads():
        pca.train(x.numpy())
        return F.normalize(torch.from_numpy(pca.apply(x.numpy())), dim=1)


def euclidean_kmeans(
    x: Tensor, k: int, iterations: int, seed: int, starts: int = 1
) -> tuple[Tensor, Tensor]:
    """Assignments [N] int64 and centroids [k, D] of rows [N, D], by faiss, on the CPU.

    Of several `starts` the one that ends nearest to the rows.
    """
    # Every point takes part, and few a cluster are no reason to warn. An empty one gets half of a
    # large one.
    points = {"min_points_per_centroid": 1, "max_points_per_centroid": len(x)}
    clustering = faiss.Kmeans(x.shape[1], k, niter=iterations, seed=seed, nredo=starts, **points)
    with faiss_threads():
        clustering.train(x.numpy())
        assigned = clustering.index.search(x.numpy(), 1)[1][:, 0]
    return torch.from_numpy(assigned), torch.from_numpy(clustering.centroids)


def closest_centroid(x: Tensor, centroids: Tensor) -> Tensor:
    """Which centroid [k, D] is nearest to each row [N, D], [N] int64."""
    bias = centroids.square().sum(dim=1) / 2  # argmin |x - c|^2 = argmax x.c - |c|^2 / 2
    parts = (torch.addmm(-bias, part, centroids.T) for part in x.split(ROWS_AT_ONCE))
    return torch.cat([score.argmax(dim=1) for score in parts])


def means(x: Tensor, labels: Tensor, k: int) -> Tensor:
    """Each label's mean row, [k, D], of all ranks' x [n, D]; 0 without one; the same everywhere."""
    sums = x.new_zeros(k, x.shape[1]).index_add_(0, labels, x)
    counts = x.new_zeros(k).index_add_(0, labels, x.new_ones(len(x)))
    counts = distributed.mean(counts).clamp(min=1 / distributed.world())
    return distributed.mean(sums) / counts[:, None]


def spherical_kmeans(x: Tensor, k: int, iterations: int, *key: Tensor | str) -> Tensor:
    """Unit centroids [k, D] of unit rows [N, D] that all ranks hold, from rows drawn by `key`."""
    centroids = x[rng.permutation(len(x), *key, device=x.device)[:k]]  # [k, D]
    share = distributed.local_rows(x)
    for _ in range(iterations):
        mean = means(share, closest_centroid(share, centroids), k)  # [k, D]
        # A centroid that no row is nearest to stays.
        centroids = torch.where(mean.any(dim=1, keepdim=True), F.normalize(mean, dim=1), centroids)
    return centroids


def cluster_sizes(labels: Tensor, k: int) -> Tensor:
    """Rows in each of k clusters, [k] int64; unlike `bincount` it does not stop the host."""
    ones = torch.ones_like(labels)
    return ones.new_zeros(k).index_add_(0, labels, ones)


def move_centroids(x: Tensor, labels: Tensor, centroids: Tensor) -> None:
    """Each centroid [k, D] becomes the mean of its rows [S, D]; one without rows stays."""
    share, of_rows = distributed.local_rows(x), distributed.local_rows(labels)
    mean = means(share, of_rows, len(centroids))  # [k, D]
    centroids.copy_(torch.where(mean.any(dim=1, keepdim=True), mean, centroids))


def replace_small_clusters(x: Tensor, labels: Tensor, centroids: Tensor, smallest: int) -> None:
    """Merges small clusters into the others, and gives each half of the largest (arXiv:2006.10645).

    With fewer than `smallest` rows of x [S, D]; changes labels [S] and centroids [k, D]. Draws
    nothing, so all ranks, which hold the same rows, do the same.
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
    """2-means of rows [n, D] from the first principal component's sign: the second's, [n] bool."""
    centered = x - x.mean(dim=0)
    axis = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -1]  # [D]
    second = centered @ axis > 0  # [n]
    for _ in range(iterations):
        if second.all() or not second.any():  # equal rows are dealt out in turn
            return torch.arange(len(x), device=x.device) % 2 == 1
        pair = torch.stack([x[~second].mean(dim=0), x[second].mean(dim=0)])  # [2, D]
        second = closest_centroid(x, pair).bool()
    return second


def mutual_information(a: Tensor, b: Tensor) -> float:
    """NMI of two labelings [N], I(a; b) / sqrt(H(a) H(b)), in [0, 1] (arXiv:1807.05520, eq. 3)."""

    def entropy(label: Tensor) -> Tensor:
        p = label.unique(return_counts=True)[1] / len(label)
        return -torch.xlogy(p, p).sum()

    of_a, of_b = entropy(a), entropy(b)
    both = entropy(a * (int(b.max()) + 1) + b)
    scale = (of_a * of_b).sqrt()  # 0 where one of them has a single label
    return float((of_a + of_b - both) / scale) if scale > 0 else 0.0
