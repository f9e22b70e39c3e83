"""Losses over a look-up, and those that papers name; a new file here is a registered loss."""

from importlib import import_module
from pkgutil import iter_modules

from ssl_zoo.losses.contrastive import DCL, NCE, Margin, in_batch
from ssl_zoo.losses.dino import Center, SinkhornCenter, dino_loss, ibot_loss, koleo_loss
from ssl_zoo.losses.info_nce import InfoNCE, Scored, accuracy, info_nce_loss
from ssl_zoo.losses.lejepa import sigreg
from ssl_zoo.losses.swav import swapped_prediction
from ssl_zoo.losses.vicreg import vicreg_terms

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
