"""Names of precisions, and what they mean to torch."""

from typing import Literal

import torch
from torch import nn

from ssl_zoo.config import ConfigError
from ssl_zoo.system.hardware import bf16_unit

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Computes in 'bf16' or 'fp16' where torch holds it safe; 'fp32' changes nothing."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def choose(device: torch.device, precision: Precision) -> tuple[str, str]:
    """The precision to train in, and why: 'auto' is bf16 where the hardware multiplies in it."""
    if precision == "auto":
        unit = bf16_unit(device)
        return ("bf16", f"auto: {unit}") if unit else ("fp32", "auto: no bf16 units here")
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError("train.precision", "fp16 is for GPUs; bf16 runs here")
    if precision == "bf16" and device.type == "cuda" and not bf16_unit(device):
        raise ConfigError(
            "train.precision", "this GPU does not multiply in bf16", expected="fp16 or fp32"
        )
    return precision, "as configured"


def plain_attention(module: nn.Module, plain: bool) -> None:
    """Whether timm's attention is two products and a softmax, instead of torch's fused one.

    In bf16 on a CPU the fused one's backward pass takes 2 to 15 times as long (torch 2.15).
    """
    for child in module.modules():
        if hasattr(child, "fused_attn"):
            child.usual_attn = getattr(child, "usual_attn", child.fused_attn)
            child.fused_attn = child.usual_attn and not plain
