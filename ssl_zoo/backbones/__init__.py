from ssl_zoo.backbones.lab import LabPair
from ssl_zoo.backbones.masking import (
    block,
    block_mask,
    block_order,
    mask_of,
    masked_patches,
    random_order,
    take,
)
from ssl_zoo.backbones.timm import FITS, Timm

__all__ = [
    "FITS",
    "LabPair",
    "Timm",
    "block",
    "block_mask",
    "block_order",
    "mask_of",
    "masked_patches",
    "random_order",
    "take",
]
