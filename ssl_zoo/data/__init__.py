"""Data sets, the stateless sampler, views made a batch at a time, loaders."""

from ssl_zoo.data.datasets import ImageSet, InMemory
from ssl_zoo.data.folder import ImageFolder
from ssl_zoo.data.loader import Data, view_grid
from ssl_zoo.data.sampler import Sampler
from ssl_zoo.data.transforms import Transform, Views

__all__ = [
    "Data",
    "ImageFolder",
    "ImageSet",
    "InMemory",
    "Sampler",
    "Transform",
    "Views",
    "view_grid",
]
