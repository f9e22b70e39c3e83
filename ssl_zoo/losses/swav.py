"""SwAV's swapped prediction (arXiv:2006.09882)."""

from torch import Tensor


def swapped_prediction(codes: list[Tensor], log_p: list[Tensor]) -> Tensor:
    """L = 1/S sum_s 1/(V-1) sum_{v != s} -sum_k q_s^k log p_v^k, the mean over images, [].

    Codes are `sinkhorn_knopp(z_s @ C.T)`, and log p_v = log_softmax(z_v @ C.T / T).

    Args:
        codes: q of the S views that are assigned, the first of the V, S x [N, K], no gradient.
        log_p: of all V views, V x [N, K].
    """
    loss = 0.0
    for s, q in enumerate(codes):
        others = [log_p_v for v, log_p_v in enumerate(log_p) if v != s]
        loss -= sum((q * log_p_v).sum(dim=1).mean() for log_p_v in others) / len(others)
    return loss / len(codes)
