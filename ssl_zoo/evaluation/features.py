"""Frozen features of images: extracted once, each rank its share, without a trace on training."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssl_zoo.data import ImageSet, Splits
from ssl_zoo.engine.precision import autocast
from ssl_zoo.ops.modes import frozen
from ssl_zoo.system import distributed

Precision = Literal["fp32", "bf16", "fp16"]
# Measured on a CPU: fewer are slower with small networks, more with large ones. A GPU wants many.
BATCH_SIZE = {"cpu": 256, "cuda": 512}


class Labeled(NamedTuple):
    """Features [n, F] float32 and labels [n] int64 of a split's images, on the CPU.

    `index` [n] is where they stand in the split; None: they are its first n. Images that cannot be
    read are not among them.
    """

    features: Tensor
    labels: Tensor
    index: Tensor | None = None


def check_usable(by: str, **splits: Labeled | ImageSet) -> None:
    """Raises ValueError, naming which, unless all labels are known and all features finite."""
    for key, given in splits.items():
        name, labels = key.replace("_", " "), given.labels
        if labels is None:  # of a set without classes
            labels = given.labels_of(torch.arange(len(given)))
        if unknown := int((labels < 0).sum()):
            images = f"{unknown} of the {len(labels)} images of the {name}"
            raise ValueError(f"{by} needs labels: {images} have none")
        if isinstance(given, Labeled) and not given.features.isfinite().all():
            raise ValueError(f"{by}: the features of the {name} are not all finite")


def extract(
    backbone: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    device: torch.device | str,
    precision: Precision = "fp32",
    buffers: dict[str, Tensor] | None = None,
) -> Labeled:
    """Features of all images, in order, on this process.

    Args:
        backbone: images [n, C, H, W] -> pooled features [n, F].
        batches: (images [n, C, H, W], labels [n], positions [n]).
        precision: bf16 and fp16 under autocast.
        buffers: used in place of the backbone's own, by name.

    Raises:
        ValueError: no batches, or the backbone's output is not [n, F].
    """
    device = torch.device(device)
    features, labels, positions = [], [], []
    with frozen(backbone, device):
        for images, label, index in batches:
            with autocast(device, precision):  # not around the making of the images, a product
                h = functional_call(backbone, buffers or {}, images.to(device))  # [n, F]
            if h.ndim != 2:
                raise ValueError(f"a backbone must give features [n, F]; found {list(h.shape)}")
            features.append(h.float().cpu())
            labels.append(label.cpu())
            positions.append(index.cpu())
    if not features:
        raise ValueError("there are no images to take features of")
    return Labeled(torch.cat(features), torch.cat(labels), torch.cat(positions))


def main_buffers(backbone: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Rank 0's buffers by name, to be used on every rank; {} on one process: its own.

    Each rank has running statistics of its own, and features of two networks do not compare.
    """
    if distributed.world() == 1:
        return {}
    here = {name: value.cpu() for name, value in backbone.named_buffers()}
    return {name: x.to(device) for name, x in distributed.broadcast(here).items()}


def extract_split(
    backbone: nn.Module,
    splits: Splits,
    split: str,
    device: torch.device | str,
    limit: int | Tensor | None = None,
    precision: Precision = "fp32",
) -> Labeled | None:
    """Features of the clean views of a split, on rank 0; None on the other ranks.

    All ranks call it and each extracts its share, cut between batches: every image goes through
    the network in the same company whatever the world size, so the features are the same as well.

    Args:
        limit: use so many images of the split, or those of these positions [n]; None: all.
    """
    device = torch.device(device)
    size, rank, world = BATCH_SIZE[device.type], distributed.rank(), distributed.world()
    buffers = main_buffers(backbone, device)
    share = None
    if rank * size < len(splits.chosen(split, limit)):  # else no batch is left for this rank
        batches = splits.clean_batches(split, device, size, limit, share=(rank, world))
        share = extract(backbone, batches, device, precision, buffers)
    width = distributed.broadcast(None if share is None else share.features.shape[1])
    if share is None:
        none = torch.empty(0, dtype=torch.int64)
        share = Labeled(torch.empty(0, width), none, none)
    features, labels, index = (distributed.to_main(x) for x in share)
    return None if features is None else Labeled(features, labels, index)
