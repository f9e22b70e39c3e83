"""Data sets, the stateless sampler, views made a batch at a time, loaders."""

from ssl_zoo.data.datasets import ImageFolder, InMemory, Packed
from ssl_zoo.data.image import Transform, Views
from ssl_zoo.data.sampler import Sampler
from ssl_zoo.data.source import ImageSet
from ssl_zoo.data.splits import Splits
from ssl_zoo.data.training import Data, view_grid

__all__ = [
    "Data",
    "ImageFolder",
    "ImageSet",
    "InMemory",
    "Packed",
    "Sampler",
    "Splits",
    "Transform",
    "Views",
    "view_grid",
]
