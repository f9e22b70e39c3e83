"""What a network's weights are, in a few letters."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn


def digest_of_weights(network: nn.Module, *further: Any) -> str:
    """Of the names, types, shapes and bytes of all tensors, on whatever device; and of `further`
    plain values.
    """
    digest = hashlib.sha256("".join(map(str, further)).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
