"""Losses over a look-up, and those that papers name; each works by hand."""

from ssl_zoo.losses.contrastive import DCL, NCE, InfoNCE, Margin, in_batch
from ssl_zoo.losses.dino import Center, SinkhornCenter, dino_loss
from ssl_zoo.losses.ibot import ibot_loss
from ssl_zoo.losses.koleo import koleo_loss
from ssl_zoo.losses.lejepa import sigreg
from ssl_zoo.losses.swav import swapped_prediction
from ssl_zoo.losses.vicreg import vicreg_terms

__all__ = ["DCL", "NCE", "Center", "InfoNCE", "Margin", "SinkhornCenter", "dino_loss", "ibot_loss"]
__all__ += ["in_batch", "koleo_loss", "sigreg", "swapped_prediction", "vicreg_terms"]
