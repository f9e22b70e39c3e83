"""Scalars that tell whether a representation has collapsed, and the words for it.

A collapse is silent: many losses look their best when every image has the same embedding.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Below these a run says so. Trained encoders of the zoo stay well above.
LOWEST = {"embedding_std": 0.1, "assignment_entropy": 0.1, "assignment_sharpness": 0.002}
MEANING = {
    "embedding_std": "all images have nearly the same embedding",
    "assignment_entropy": "nearly all images are assigned to the same few prototypes",
    "assignment_sharpness": "every image is assigned to all prototypes alike",
}


@torch.no_grad()
def embedding_std(z: Tensor) -> Tensor:
    """Spread of embeddings [N, D], []: 1 uniform on the sphere, 0 all equal (arXiv:2011.10566)."""
    z = F.normalize(z.detach().float(), dim=-1)
    return z.std(dim=0, correction=0).mean() * math.sqrt(z.shape[-1])


@torch.no_grad()
def assignment_entropy(p: Tensor) -> Tensor:
    """Entropy of the mean of assignments [N, K], over log K, []: 1 balanced, 0 all to one."""
    mean = p.detach().float().mean(dim=0)
    return -torch.xlogy(mean, mean).sum() / math.log(p.shape[-1])


@torch.no_grad()
def assignment_sharpness(p: Tensor) -> Tensor:
    """1 - the mean entropy of each assignment in [N, K], over log K, []: 1 one-hot, 0 uniform.

    DINO's other collapse (arXiv:2104.14294, section 5.3), which balance cannot tell.
    """
    p = p.detach().float()
    return 1 + torch.xlogy(p, p).sum(dim=-1).mean() / math.log(p.shape[-1])


def figures(z: Tensor, p: Tensor) -> dict[str, Tensor]:
    """All three, of embeddings z [N, D] and assignments p [N, K]."""
    return {
        "embedding_std": embedding_std(z),
        "assignment_entropy": assignment_entropy(p),
        "assignment_sharpness": assignment_sharpness(p),
    }


def collapse(scalars: dict[str, float]) -> str:
    """What is wrong, in words with figures; '' if nothing is."""
    return "; ".join(
        f"{name} is {scalars[name]:.3f}, below {lowest}: {MEANING[name]}"
        for name, lowest in LOWEST.items()
        if name in scalars and scalars[name] < lowest
    )
