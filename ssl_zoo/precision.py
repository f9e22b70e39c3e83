"""Names of precisions, and what they mean to torch."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Computes in 'bf16' or 'fp16' where torch holds it safe; 'fp32' changes nothing."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
