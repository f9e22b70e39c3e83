"""Frozen features of images: extracted once, each rank its share, without a trace on training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssl_zoo.data import Splits
from ssl_zoo.engine.precision import autocast
from ssl_zoo.ops.modes import frozen
from ssl_zoo.system import distributed

# Measured on a CPU: fewer are slower with small networks, more with large ones. A GPU wants many.
BATCH_SIZE = {"cpu": 256, "cuda": 512}


class Labeled(NamedTuple):
    """One split's features [n, F] float32 and labels [n] int64, on the CPU."""

    features: Tensor
    labels: Tensor


def check_labels(protocol: str, name: str, labels: Tensor) -> None:
    """Raises ValueError unless every image has a label."""
    unknown = int((labels < 0).sum())
    if unknown:
        raise ValueError(
            f"{protocol} needs labels: {unknown} of the {len(labels)} images of the {name} have "
            "none"
        )


def check_labeled(protocol: str, name: str, features: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless all labels are known and all features finite."""
    check_labels(protocol, name, labels)
    if not features.isfinite().all():
        raise ValueError(f"{protocol}: the features of the {name} are not all finite")


def extract(
    backbone: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str,
    precision: str = "fp32",
    buffers: dict[str, Tensor] | None = None,
) -> Labeled:
    """Features of all images, in order, on this process.

    Args:
        backbone: images [n, C, H, W] -> pooled features [n, F].
        batches: (images [n, C, H, W], labels [n]) pairs.
        precision: 'fp32', 'bf16' or 'fp16'; the last two under autocast.
        buffers: used in place of the backbone's own, by name.

    Raises:
        ValueError: no batches, or the backbone's output is not [n, F].
    """
    device = torch.device(device)
    features, labels = [], []
    with frozen(backbone, device), autocast(device, precision):
        for images, label in batches:
            h = functional_call(backbone, buffers or {}, images.to(device))  # [n, F]
            if h.ndim != 2:
                raise ValueError(f"a backbone must give features [n, F]; found {list(h.shape)}")
            features.append(h.float().cpu())
            labels.append(label.cpu())
    if not features:
        raise ValueError("there are no images to take features of")
    return Labeled(torch.cat(features), torch.cat(labels))


def extract_split(
    backbone: nn.Module,
    splits: Splits,
    split: str,
    device: torch.device | str,
    limit: int | None = None,
    precision: str = "fp32",
) -> Labeled | None:
    """Features of the clean views of a split, on rank 0; None on the other ranks.

    All ranks call it and each extracts its share, cut between batches: every image goes through
    the network in the same company whatever the world size, so the features are the same as well.

    Args:
        backbone: on `device`. The running statistics in use are rank 0's: each rank has its own,
            and features of two networks do not compare.
        split: 'train' or 'test'.
        limit: use so many images of the split; None takes all.

    Raises:
        ValueError: as `extract`.
    """
    device = torch.device(device)
    size, rank, world = BATCH_SIZE[device.type], distributed.rank(), distributed.world()
    buffers = None
    if world > 1:
        here = {name: value.cpu() for name, value in backbone.named_buffers()}
        buffers = {name: x.to(device) for name, x in distributed.broadcast(here).items()}
    images = len(splits.split(split))
    share = None
    if rank * size < min(images, limit or images):  # else no batch is left for this rank
        batches = splits.clean_batches(split, device, size, limit, share=(rank, world))
        share = extract(backbone, batches, device, precision, buffers)
    return _on_main(share)


def _on_main(share: Labeled | None) -> Labeled | None:
    """All ranks' shares as one, on rank 0; a rank that has none gives no rows."""
    width = distributed.broadcast(None if share is None else share.features.shape[1])
    share = share or Labeled(torch.empty(0, width), torch.empty(0, dtype=torch.int64))
    features, labels = (distributed.to_main(x) for x in share)
    return None if features is None else Labeled(features, labels)
