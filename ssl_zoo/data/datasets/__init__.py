"""Data sets, by where their images are."""

from ssl_zoo.data.datasets.folder import ImageFolder
from ssl_zoo.data.datasets.in_memory import FashionMNIST, InMemory
from ssl_zoo.data.datasets.packed import Packed
from ssl_zoo.data.source import ImageSet, Split, check_split, roots

__all__ = [
    "FashionMNIST",
    "ImageFolder",
    "ImageSet",
    "InMemory",
    "Packed",
    "Split",
    "check_split",
    "roots",
]
