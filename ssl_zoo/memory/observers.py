"""What a memory's keys are like, watched from outside."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_zoo.config import OBSERVERS, PositiveInt
from ssl_zoo.core import Batch, Method, Observer
from ssl_zoo.memory.base import Memory
from ssl_zoo.ops.modes import eval_mode


@OBSERVERS.register_module()
class KeyDrift(Observer):
    """How old a memory's keys are, and how far its encoder has moved since (arXiv:1911.05722).

    `key_age`: mean steps since a key was written; 0 where none is stored. `key_cosine`: between a
    few keys as stored and as their images are encoded now, in evaluation mode; 1 where none is. It
    follows the first images of a step until their keys are overwritten; which ones is not saved.
    `own_older_keys`: negatives of a query that are keys of its own image, written earlier; a mean.

    Args:
        images: how many.
    """

    def __init__(self, *, images: PositiveInt = 16):
        self.images, self.steps = images, 0
        self.followed: tuple[Tensor, Tensor] | None = None  # images and the rows of their keys

    def after_step(self, method: Method, batch: Batch, out: dict[str, Tensor]) -> None:
        memory = _memory(method)
        if not hasattr(memory, "stored"):
            return
        self.steps += 1
        lifetime = len(memory.stored) // len(memory.rows)  # in steps; 0: overwritten at once
        if lifetime and (self.followed is None or self.steps >= lifetime):
            images = batch.views[memory.num_views - 1][: self.images]
            # A copy, or the whole batch would stay in memory.
            self.followed = images.clone(), memory.rows[: len(images)]
            self.steps = 0

    @torch.no_grad()
    def scalars(self, method: Method, labels: Tensor | None) -> dict[str, float]:
        memory = _memory(method)
        if memory is None:
            return {}
        if not hasattr(memory, "stored"):
            return {"key_age": 0.0, "key_cosine": 1.0, "own_older_keys": 0.0}
        scalars = {"key_age": (memory.steps - memory.written).float().mean().item()}
        queries, keys = getattr(method, "compared", None) or (None, None)
        if keys is not None:
            scalars["own_older_keys"] = torch.isin(keys, queries).sum().item() / len(queries)
        # A bank of one half of the encoder's outputs (CMC) cannot be compared with them.
        if self.followed and memory.stored.shape[1] == method.encoder.out_features:
            images, rows = self.followed
            encoder = getattr(memory, "key_encoder", method.encoder)
            with eval_mode(encoder):
                fresh = F.normalize(encoder(images).float(), dim=1)
            scalars["key_cosine"] = F.cosine_similarity(memory.stored[rows], fresh).mean().item()
        return scalars


@OBSERVERS.register_module()
class SameLabel(Observer):
    """`same_label_negatives`: share of labeled (query, key) pairs of one label, in %.

    Of what `method.compared` says was compared; own pairs count.
    """

    def scalars(self, method: Method, labels: Tensor | None) -> dict[str, float]:
        queries, keys = getattr(method, "compared", None) or (None, None)
        if labels is None or keys is None:  # a memory need not know which images its keys are of
            return {}
        of_queries, of_keys = labels[queries.cpu()], labels[keys[keys >= 0].cpu()]
        of_queries, of_keys = of_queries[of_queries >= 0], of_keys[of_keys >= 0]
        if not len(of_queries) or not len(of_keys):
            return {}
        share = torch.bincount(of_keys, minlength=int(labels.max()) + 1) / len(of_keys)  # [classes]
        return {"same_label_negatives": 100 * share[of_queries].mean().item()}


def _memory(method: Method) -> Memory | None:
    """The first that the method holds."""
    return next((child for child in method.children() if isinstance(child, Memory)), None)
