from ssl_zoo.heads.decoder import ViTDecoder
from ssl_zoo.heads.dino import Centre, DINOHead, FrozenStart, SinkhornCentre
from ssl_zoo.heads.projection import MLP, Linear
from ssl_zoo.heads.prototypes import Prototypes
from ssl_zoo.heads.tokenizer import DiscreteVAE

__all__ = [
    "MLP",
    "Centre",
    "DINOHead",
    "DiscreteVAE",
    "FrozenStart",
    "Linear",
    "Prototypes",
    "SinkhornCentre",
    "ViTDecoder",
]
