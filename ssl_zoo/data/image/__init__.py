"""Images, from bytes to views. Every module is imported: a new file is a registered transform."""

from importlib import import_module
from pkgutil import iter_modules

from ssl_zoo.data.image.transform import GeometricTransform, Transform
from ssl_zoo.data.image.views import Samples, Views

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
