"""Losses over a look-up, and those that papers name; each works by hand."""

from ssl_zoo.losses.contrastive import DCL, NCE, InfoNCE, Margin, in_batch
from ssl_zoo.losses.swav import swapped_prediction
from ssl_zoo.losses.vicreg import vicreg_terms

__all__ = ["DCL", "NCE", "InfoNCE", "Margin", "in_batch", "swapped_prediction", "vicreg_terms"]
