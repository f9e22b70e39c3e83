"""Data sets, the stateless sampler, views made a batch at a time, loaders."""

from ssl_zoo.config import DATASETS, TRANSFORMS
from ssl_zoo.data.datasets.folder import ImageFolder
from ssl_zoo.data.datasets.packed import Packed
from ssl_zoo.data.image import Transform, Views
from ssl_zoo.data.sampler import Sampler
from ssl_zoo.data.source import ImageSet, InMemory, Source, Stream
from ssl_zoo.data.splits import Data, Splits, view_grid

globals().update(DATASETS.module_dict | TRANSFORMS.module_dict)  # data.Digits, data.Resize, ...
