"""Balanced assignments: Sinkhorn-Knopp's algorithm over the rows of all ranks."""

import torch
from torch import Tensor

from ssl_zoo.system import distributed


@torch.no_grad()
def sinkhorn_knopp(
    scores: Tensor, epsilon: float = 0.05, iterations: int = 3, weight: Tensor | None = None
) -> Tensor:
    """Soft assignments of this rank's rows to K prototypes, [N, K] float32, each row summing to 1.

    Q = diag(u) exp(scores / epsilon) diag(v), where u and v let all ranks' rows, any number of
    each, share the prototypes equally (Cuturi 2013; SwAV, arXiv:2006.09882, section 3.1).

    Args:
        scores, epsilon: [N, K] similarities of rows and prototypes; the larger, the softer.
        iterations: how often prototypes, then rows, are normalized; 0 leaves a softmax.
        weight: [N] how much each row counts in the balance; 0 leaves it out. None: all the same.
    """
    log_q = scores.float() / epsilon  # [N, K]; in the log domain no epsilon overflows
    log_w = 0.0 if weight is None else weight.float().log()[:, None]  # [N, 1]
    for _ in range(iterations):
        of_rank = (log_q + log_w).logsumexp(dim=0, keepdim=True)  # [1, K]
        of_ranks = distributed.gather(of_rank)  # [world, K]
        log_q = log_q - of_ranks.logsumexp(dim=0)
        log_q = log_q.log_softmax(dim=1)
    return log_q.softmax(dim=1)
