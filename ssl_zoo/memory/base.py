"""The right-hand side of MoCo's Figure 2: where keys come from, and what they are for."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.memory.lookup import Lookup, joined
from ssl_zoo.ops.batchnorm import has_batchnorm
from ssl_zoo.system import distributed, rng


class Memory(nn.Module):
    """A mechanism: makes keys, answers look-ups, and is written after the optimizer's step.

    It owns the key encoder, if there is one; the query encoder is shown to it at each call. A key
    carries a gradient exactly when `encode` runs the online encoder outside `no_grad`.

    Attributes:
        num_views: views of a sample it needs; 1 if it computes no keys from views.
        per_sample, positions: what of its state is tied to the training images, see `Method`.
        online_keys: the online encoder makes the keys, so that a view's key is also its query.
        least_images: of all ranks together, in a pass, see `Method`.
        steps: optimizer steps seen, int64; with `seed` it determines all that the memory draws,
            so that ranks agree without talking and a resume draws the same.
        stored: [M, D] the keys that it keeps; a memory that keeps none lacks it, and the next two.
        written: [M] int64, the step at which each was written.
        rows: [n] int64, the rows that the last update wrote, the first view's first; of one that
            was written twice the last key is there.
    """

    num_views = 2
    online_keys = False
    per_sample: ClassVar[dict[str, int]] = {}
    positions: ClassVar[tuple[str, ...]] = ()
    least_images = 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.randint(2**31, ()))

    def encode(self, encoder: nn.Module, x: Tensor, index: Tensor) -> Tensor:
        """Keys [N, D] of unit length, for a view x [N, ...] of samples index [N]."""
        raise NotImplementedError

    def lookup(self, q: Tensor, k: Tensor, index: Tensor) -> Lookup:
        """Compares queries q [N, D] with their keys k [N, D] and the dictionary."""
        raise NotImplementedError

    def lookups(self, q: list[Tensor], k: list[Tensor], index: Tensor) -> list[Lookup]:
        """`lookup` for several views; into one dictionary they are one, gone through once."""
        return joined([self.lookup(q_v, k_v, index) for q_v, k_v in zip(q, k, strict=True)])

    def update(self, encoder: nn.Module, q: Tensor, k: Tensor, index: Tensor) -> None:
        """Writes the step's queries and keys [N, V, D], of V views, after they were scored."""
        self.steps += 1

    def remark(self, batch_size: int) -> str:
        """What a person should know before watching the loss."""
        return ""

    def random_keys(self, purpose: str) -> tuple[Tensor | str, ...]:
        """What this step's random numbers for a purpose are a function of."""
        return (self.seed, self.steps, purpose)

    def _encode(self, encoder: nn.Module, x: Tensor, shuffle_bn: bool) -> Tensor:
        """Keys [N, D] of unit length, encoded in shuffled order where that changes something."""
        if shuffle_bn and has_batchnorm(encoder):
            k = shuffled(encoder, x, *self.random_keys("shuffle"))
        else:
            k = encoder(x)
        return F.normalize(k.float(), dim=1)


def shuffled(encode, x: Tensor, *keys: Tensor | str) -> Tensor:
    """ShuffleBN (arXiv:1911.05722, section 3.3): encodes the views x [N, ...] in another order.

    The rows of all ranks are permuted together, so that a key's BatchNorm statistics come from
    other samples than its query's, and put back afterwards. Differentiable in the encoder.

    Args:
        encode: this rank's views [N, ...] -> keys [N, D].
        keys: what determines the permutation; the same on all ranks.
    """
    everyone = distributed.gather(x)  # [world x N, ...]
    order = rng.permutation(len(everyone), *keys, device=x.device)
    k = encode(everyone[distributed.local_rows(order)])
    return distributed.local_rows(distributed.gather(k)[torch.argsort(order)])
