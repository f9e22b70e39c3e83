from ssl_zoo.backbones.timm import Timm

__all__ = ["Timm"]
