"""Evaluations, one file each. Every module here is imported, so a new file is a registered one."""

from importlib import import_module
from pkgutil import iter_modules

from ssl_zoo.config import EVALUATIONS

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
# It trains detectors, whose modules take long to import.
EVALUATIONS.register_later("Transfer", "ssl_zoo.transfer.evaluation")
globals().update(EVALUATIONS.module_dict)  # evaluation.KNN, and so on
