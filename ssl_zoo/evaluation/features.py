"""Frozen features of a set of images, taken without leaving a trace on training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ssl_zoo.encoder import eval_mode
from ssl_zoo.precision import autocast


@contextmanager
def frozen(module: nn.Module, device: torch.device | str = "cpu") -> Iterator[None]:
    """Evaluation mode, no gradients; afterwards modes and torch's RNG are bitwise as they were.

    BatchNorm's running statistics do not move in evaluation mode.
    """
    device = torch.device(device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad(), eval_mode(module):
        yield


def extract(
    backbone: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """Features of all images, in order.

    Args:
        backbone: images [n, C, H, W] -> pooled features [n, F].
        batches: (images [n, C, H, W], labels [n]) pairs.
        precision: 'fp32', 'bf16' or 'fp16'; the last two under autocast.

    Returns:
        features [total, F] float32 and labels [total] int64, both on the CPU.

    Raises:
        ValueError: no batches, or the backbone's output is not [n, F].
    """
    device = torch.device(device)
    features, labels = [], []
    with frozen(backbone, device), autocast(device, precision):
        for images, label in batches:
            h = backbone(images.to(device))  # [n, F]
            if h.ndim != 2:
                raise ValueError(f"a backbone must give features [n, F]; found {list(h.shape)}")
            features.append(h.float().cpu())
            labels.append(label.cpu())
    if not features:
        raise ValueError("there are no images to take features of")
    return torch.cat(features), torch.cat(labels)
