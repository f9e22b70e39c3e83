"""What stands on a backbone. Every module here is imported, so a new file is a registered head."""

from importlib import import_module
from pkgutil import iter_modules

from ssl_zoo.heads.decoder import ViTDecoder
from ssl_zoo.heads.dino import DINOHead, FrozenStart
from ssl_zoo.heads.projection import MLP, Linear, Prototypes
from ssl_zoo.heads.tokenizer import DiscreteVAE

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
