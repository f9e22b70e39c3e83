"""Models of transfer tasks. Every module is imported, so a new file is a registered model."""

from importlib import import_module
from pkgutil import iter_modules

from ssl_zoo.transfer.models.base import TRANSFER_MODELS, Norm, TransferModel
from ssl_zoo.transfer.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from ssl_zoo.transfer.models.semantic import FCN, DeepLabV3

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
