"""iBOT's loss of masked patches."""

from __future__ import annotations

from torch import Tensor


def ibot_loss(p_t: Tensor, g_s: Tensor, masked: Tensor, temperature: float) -> Tensor:
    """L = mean_n mean_{m masked} -p_t . log softmax(g_s / t_s) (arXiv:2111.07832, equation 2).

    An image without masked patches counts as 0, as in the authors' code.

    Args:
        p_t: teacher's probabilities of each patch, [N, M, K].
        g_s: student's scores, [N, M, K].
        masked: [N, M] bool, the patches that the student did not see.
        temperature: t_s.
    """
    loss = -(p_t * (g_s / temperature).log_softmax(dim=-1)).sum(dim=-1)  # [N, M]
    return ((loss * masked).sum(dim=1) / masked.sum(dim=1).clamp(min=1)).mean()
