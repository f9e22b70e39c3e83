"""DINO's loss with two ways to keep its teacher from collapse, and what iBOT and DINOv2 add.

center = Center(K)
loss = dino_loss(center(g_t, 0.04), g_s, 0.1)  # g_t [T, N, K], g_s: V x [N, K]
center.update(g_t.mean(dim=0), 0.9)  # once a step
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.ops.sinkhorn import sinkhorn_knopp
from ssl_zoo.system import distributed


class Center(nn.Module):
    """The running mean of a teacher's scores, over all ranks (arXiv:2104.14294, equation 4).

    c <- m c + (1 - m) mean_i g_t(x_i), [K]. Taken off the scores, it keeps one output from winning
    for every image; the low temperature keeps all outputs from being alike.
    """

    def __init__(self, out_features: int):
        super().__init__()
        self.register_buffer("c", torch.zeros(out_features))

    def forward(self, scores: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
        """p_t = softmax((g_t - c) / t), [..., K], whichever rows are counted."""
        return ((scores - self.c) / temperature).softmax(dim=-1)

    @torch.no_grad()
    def update(self, scores: Tensor, momentum: float) -> None:
        """With this rank's scores [N, K], and m."""
        self.c.lerp_(distributed.mean(scores.mean(dim=0)), 1 - momentum)


class SinkhornCenter(nn.Module):
    """Used as `Center` is; balances prototypes within a batch (arXiv:2304.07193, section 4)."""

    def forward(self, scores: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
        """[..., K]; rows that are not `counted`, [...] bool, have no say in the balance."""
        if counted is not None:  # not 0: where no rank counts a row, all count alike
            counted = counted.flatten().float().clamp(min=torch.finfo(torch.float32).tiny)
        return sinkhorn_knopp(scores.flatten(0, -2), temperature, weight=counted).view_as(scores)

    def update(self, scores: Tensor, momentum: float) -> None:
        """Nothing is remembered."""


def dino_loss(p_t: Tensor, g_s: list[Tensor], temperature: float) -> Tensor:
    """L = mean over views t != s of -p_t . log softmax(g_s / t_s) (arXiv:2104.14294, eq. 3).

    Args:
        p_t: teacher's probabilities [T, N, K] of the T views it saw.
        g_s: student's scores [N, K] of all views, those that the teacher saw first.
    """
    pairs = [(p, g) for t, p in enumerate(p_t) for s, g in enumerate(g_s) if s != t]
    return torch.stack([F.cross_entropy(g / temperature, p) for p, g in pairs]).mean()


def ibot_loss(p_t: Tensor, g_s: Tensor, masked: Tensor, temperature: float) -> Tensor:
    """L = mean_n mean_{m masked} -p_t . log softmax(g_s / t_s) (arXiv:2111.07832, equation 2).

    An image without masked patches counts as 0, as in the authors' code.

    Args:
        p_t, g_s: teacher's probabilities and student's scores of each patch, [N, M, K].
        masked: [N, M] bool, the patches that the student did not see.
    """
    loss = -(p_t * (g_s / temperature).log_softmax(dim=-1)).sum(dim=-1)  # [N, M]
    return ((loss * masked).sum(dim=1) / masked.sum(dim=1).clamp(min=1)).mean()


def koleo_loss(x: Tensor) -> Tensor:
    """L = -mean_i log min_{j != i} |x_i - x_j|, x on the unit sphere (arXiv:1806.03198, eq. 2).

    x is [N, F] float32, of any length; neighbors are of all ranks, the authors' of one.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = distributed.gather(F.normalize(x, dim=1))  # [world x N, F]
        with torch.no_grad():
            neighbor = (x @ x.T).fill_diagonal_(-1).argmax(dim=1)  # [world x N]
        return -(F.pairwise_distance(x, x[neighbor], eps=1e-8) + 1e-8).log().mean()
