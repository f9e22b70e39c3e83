"""Data sets, the stateless sampler, views made a batch at a time, loaders."""

from ssl_zoo.data.datasets import ImageFolder, ImageSet, InMemory, Packed
from ssl_zoo.data.image.transforms import Transform, Views
from ssl_zoo.data.loader import Data, cores, view_grid
from ssl_zoo.data.sampler import Sampler

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
