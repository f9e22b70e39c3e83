"""Data sets, the stateless sampler, views made a batch at a time, loaders."""

from ssl_zoo.data.datasets import ImageSet, InMemory
from ssl_zoo.data.folder import ImageFolder
from ssl_zoo.data.loader import Data, cores, view_grid
from ssl_zoo.data.packed import Packed
from ssl_zoo.data.sampler import Sampler
from ssl_zoo.data.transforms import Transform, Views

__all__ = [
    "Data",
    "ImageFolder",
    "ImageSet",
    "InMemory",
    "Packed",
    "Sampler",
    "Transform",
    "Views",
    "cores",
    "view_grid",
]
