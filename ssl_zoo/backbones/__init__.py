from ssl_zoo.backbones.masking import block_mask, mask_of, random_order
from ssl_zoo.backbones.timm import FITS, Timm

__all__ = ["FITS", "Timm", "block_mask", "mask_of", "random_order"]
