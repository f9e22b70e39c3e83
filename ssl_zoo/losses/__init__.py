"""Losses over a look-up, and those that papers name; each works by hand.

Every module here is imported, so a new file is a registered loss.
"""

from importlib import import_module
from pkgutil import iter_modules

from ssl_zoo.losses.contrastive import (
    DCL,
    NCE,
    InfoNCE,
    Margin,
    Scored,
    accuracy,
    in_batch,
    info_nce,
)

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["DCL", "NCE", "InfoNCE", "Margin", "Scored", "accuracy", "in_batch", "info_nce"]
