"""What a memory answers, and a loss is computed of."""

from functools import cached_property

import torch
from torch import Tensor

from ssl_zoo.memory.reductions import LogSumExp, SoftplusSum


class Lookup:
    """A positive for every query, one dictionary of negatives for all, and some of each alone.

    A loss need never keep the [R, M] matrix of similarities: `logsumexp` and `softplus_sum` go
    through the dictionary block by block. `positives` and `negatives` are the matrix, if asked for.

    Args:
        q: [R, D] queries, unit length.
        positive: [R, D] each query's positive key.
        dictionary: [M, D] keys.
        index: [M] data-set position of each key, -1 for none; or None, where nobody asks.
        masked: [R, C] columns of the dictionary that are not negatives of a query (itself, its
            positive), or None.
        extra: [R, E, D] keys that are negatives of one query each, or None.
    """

    def __init__(
        self,
        q: Tensor,
        positive: Tensor,
        dictionary: Tensor,
        index: Tensor | None = None,
        masked: Tensor | None = None,
        extra: Tensor | None = None,
    ):
        self.q, self.positive, self.dictionary = q.float(), positive.float(), dictionary.float()
        self.index, self.masked = index, masked
        self.extra = None if extra is None else extra.float()

    @cached_property
    def positives(self) -> Tensor:
        """[R, 1] cosine similarities."""
        return (self.q * self.positive).sum(dim=1, keepdim=True)

    @cached_property
    def negatives(self) -> Tensor:
        """[R, M + E] cosine similarities, -inf where a key is masked."""
        with torch.autocast(self.q.device.type, enabled=False):
            similarity = self.q @ self.dictionary.T
            if self.masked is not None:
                similarity = similarity.scatter(1, self.masked, -torch.inf)
            if self.extra is None:
                return similarity
            return torch.cat([similarity, (self.extra @ self.q[:, :, None])[:, :, 0]], dim=1)

    @property
    def num_negatives(self) -> int:
        """Negatives of one query."""
        masked = 0 if self.masked is None else self.masked.shape[1]
        return len(self.dictionary) - masked + (0 if self.extra is None else self.extra.shape[1])

    def logsumexp(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Log sum over negatives of exp(q.k / t), [R]; [R] how many are as near as the positive."""
        return self._reduce(LogSumExp, temperature)

    def softplus_sum(self, temperature: float, even: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of log(1 + exp(q.k / t - even)), and as above; no gradient goes to even []."""
        return self._reduce(SoftplusSum, temperature, even.detach())

    def _reduce(self, reduction, temperature: float, *others: Tensor) -> tuple[Tensor, Tensor]:
        q, positive = self.q / temperature, self.positives.detach() / temperature
        with torch.autocast(q.device.type, enabled=False):
            return reduction.apply(q, self.dictionary, self.masked, self.extra, positive, *others)


def joined(lookups: list[Lookup]) -> list[Lookup]:
    """Look-ups into the very same dictionary as one, queries after queries; others as they are."""
    first = lookups[0]
    if len(lookups) == 1 or any(x.dictionary is not first.dictionary for x in lookups):
        return lookups
    q, positive, masked, extra = (
        None if getattr(first, name) is None else torch.cat([getattr(x, name) for x in lookups])
        for name in ("q", "positive", "masked", "extra")
    )
    return [Lookup(q, positive, first.dictionary, first.index, masked, extra)]
