"""One file a method. Every module here is imported, so a new file is a registered method."""

from importlib import import_module
from pkgutil import iter_modules

from ssl_zoo.config import METHODS

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
globals().update(METHODS.module_dict)  # methods.Contrastive, and so on
