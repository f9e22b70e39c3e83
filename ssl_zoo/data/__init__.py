"""Data sets, the stateless sampler, views made a batch at a time, loaders."""

from .datasets import ImageSet, InMemory
from .folder import ImageFolder
from .loader import Data, view_grid
from .sampler import Sampler
from .transforms import Transform, Views

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
