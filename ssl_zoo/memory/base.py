"""The right-hand side of MoCo's Figure 2: where keys come from, and what they are for."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.memory.reductions import LogSumExp, SoftplusSum
from ssl_zoo.ops.batchnorm import has_batchnorm
from ssl_zoo.ops.modes import eval_mode
from ssl_zoo.system import distributed, rng


class Lookup:
    """What a memory answers: a positive for every query, and one dictionary for all of them.

    The dictionary is handed out as rows, not as similarities, so that a loss need never keep
    the [R, M] matrix: `logsumexp` and `softplus_sum` go through the rows block by block.
    `positives` and `negatives` are that matrix, for losses that want it, formed when asked.

    Args:
        q: [R, D] queries, unit length.
        positive: [R, D] each query's positive key.
        dictionary: [M, D] keys.
        index: [M] data-set position of each key, -1 for none; or None, where nobody asks.
        own: [R, E] columns of the dictionary that are not a query's negatives (itself, its
            positive), or None.
    """

    def __init__(
        self,
        q: Tensor,
        positive: Tensor,
        dictionary: Tensor,
        index: Tensor | None = None,
        own: Tensor | None = None,
    ):
        self.q, self.positive, self.dictionary = q.float(), positive.float(), dictionary.float()
        self.index, self.own = index, own
        self._nearer: Tensor | None = None  # [R], counted on the way

    @cached_property
    def positives(self) -> Tensor:
        """[R, 1] cosine similarities."""
        return (self.q * self.positive).sum(dim=1, keepdim=True)

    @cached_property
    def negatives(self) -> Tensor:
        """[R, M] cosine similarities, -inf where the key is the query's own."""
        with torch.autocast(self.q.device.type, enabled=False):
            similarity = self.q @ self.dictionary.T
        return similarity if self.own is None else similarity.scatter(1, self.own, -torch.inf)

    @property
    def num_negatives(self) -> int:
        """Negatives of one query."""
        return len(self.dictionary) - (0 if self.own is None else self.own.shape[1])

    def logsumexp(self, temperature: float) -> Tensor:
        """[R], log of the sum over negatives of exp(q.k / t)."""
        return self._reduce(LogSumExp, temperature)

    def softplus_sum(self, temperature: float, even: Tensor) -> Tensor:
        """[R], sum over negatives of log(1 + exp(q.k / t - even)); no gradient to even []."""
        return self._reduce(SoftplusSum, temperature, even.detach())

    def _reduce(self, reduction, temperature: float, *others: Tensor) -> Tensor:
        q, positive = self.q / temperature, self.positives.detach() / temperature
        with torch.autocast(q.device.type, enabled=False):
            result, self._nearer = reduction.apply(q, self.dictionary, self.own, positive, *others)
        return result

    def accuracy(self) -> dict[str, Tensor]:
        """Pretext accuracy: is the positive the nearest key (top1), or among five (top5)? In %.

        Costs nothing after a reduction, which has counted.
        """
        nearer = self._nearer
        if nearer is None:  # not under no_grad: similarities are kept, and the loss wants gradients
            nearer = (self.negatives >= self.positives).sum(dim=1)  # [R]
        return {
            "top1": 100 * (nearer < 1).float().mean(),
            "top5": 100 * (nearer < 5).float().mean(),
        }


class Memory(nn.Module):
    """A mechanism: makes keys, answers look-ups, and is written after the optimiser's step.

    It owns the key encoder, if there is one. The query encoder is shown to it at each call and
    never stored. A key carries a gradient exactly when `encode` runs the online encoder outside
    `no_grad`.

    Attributes:
        num_views: views of an image it needs; 1 if it computes no keys from images.
        steps: optimiser steps seen, int64; with `seed` it determines all that the memory draws,
            so that ranks agree without talking and a resume draws the same.
    """

    num_views = 2
    probe_size = 16

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.randint(2**31, ()))
        self._shown: Tensor | None = None
        self._probe: tuple[Tensor, Tensor] | None = None  # images and the rows of their keys
        self._probe_age = 0

    def encode(self, encoder: nn.Module, images: Tensor, index: Tensor) -> Tensor:
        """Keys [N, D] of unit length, for images [N, C, H, W] at data-set positions index [N]."""
        raise NotImplementedError

    def lookup(self, q: Tensor, k: Tensor, index: Tensor) -> Lookup:
        """Compares queries q [N, D] with their keys k [N, D] and the dictionary."""
        raise NotImplementedError

    def update(self, encoder: nn.Module, q: Tensor, k: Tensor, index: Tensor) -> None:
        """Writes the step's queries and keys, after they were scored.

        Args:
            q, k: [N, D]; [N, V, D] if V views of each image were queries, and had keys.
        """
        self.steps += 1

    def telemetry(self, encoder: nn.Module) -> dict[str, float]:
        """`key_age`: mean steps since a key was written. `key_cosine`: stored against re-encoded.

        Both are 0 and 1 where keys are never stored.
        """
        return {"key_age": 0.0, "key_cosine": 1.0}

    def remark(self, batch_size: int) -> str:
        """What a person should know before watching the loss."""
        return ""

    def _keys(self, encode: nn.Module, images: Tensor, shuffle_bn: bool) -> Tensor:
        """Keys [N, D] of unit length, encoded in shuffled order where that changes something."""
        if shuffle_bn and has_batchnorm(encode):
            k = shuffled(encode, images, *self._draw("shuffle"))
        else:
            k = encode(images)
        return F.normalize(k.float(), dim=1)

    def _draw(self, purpose: str) -> tuple[Tensor | str, ...]:
        return (self.seed, self.steps, purpose)

    def _show(self, images: Tensor) -> None:
        """Keeps a few of the step's first images, for `_watch`."""
        if self._shown is None:
            self._shown = images[: self.probe_size].detach()

    def _watch(self, rows: Tensor, lifetime: int) -> None:
        """Follows the step's first rows until they are overwritten, then fresh ones.

        The probe is not saved: after a resume the next rows to be written are followed.
        """
        self._probe_age += 1
        if self._shown is not None and (self._probe is None or self._probe_age >= lifetime):
            # A copy, or the probe would keep the whole batch in memory.
            self._probe = self._shown.clone(), rows[: len(self._shown)]
            self._probe_age = 0
        self._shown = None

    @torch.no_grad()
    def _cosine(self, stored: Tensor, encoder: nn.Module) -> dict[str, float]:
        """Cosine between the probe's stored keys and the same images encoded now, in eval mode."""
        if self._probe is None:
            return {}
        images, rows = self._probe
        with eval_mode(encoder):
            fresh = F.normalize(encoder(images).float(), dim=1)
        return {"key_cosine": F.cosine_similarity(stored[rows], fresh).mean().item()}


def shuffled(encode, images: Tensor, *keys: Tensor | str) -> Tensor:
    """ShuffleBN (arXiv:1911.05722, section 3.3): encodes the images in another order.

    The rows of all ranks are permuted together, so that a key's BatchNorm statistics come from
    other images than its query's, and put back afterwards. Differentiable in the encoder.

    Args:
        encode: images [N, ...] -> keys [N, D].
        images: [N, C, H, W] of this rank.
        keys: what determines the permutation; the same on all ranks.
    """
    everyone = distributed.gather(images)  # [world x N, C, H, W]
    order = rng.permutation(len(everyone), *keys, device=images.device)
    k = encode(everyone[distributed.local_rows(order)])
    return distributed.local_rows(distributed.gather(k)[torch.argsort(order)])
