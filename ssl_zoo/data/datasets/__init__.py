"""Data sets. Every module is imported, so a new file is a registered data set."""

from importlib import import_module
from pkgutil import iter_modules

from ssl_zoo.data.datasets.fashion_mnist import FashionMNIST
from ssl_zoo.data.datasets.folder import ImageFolder
from ssl_zoo.data.datasets.in_memory import InMemory
from ssl_zoo.data.datasets.packed import Packed

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["FashionMNIST", "ImageFolder", "InMemory", "Packed"]
