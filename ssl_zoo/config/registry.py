"""Registries: the names that a config may use."""

import importlib
import inspect
import re
from collections.abc import Callable

from mmengine.registry import Registry as _MMEngineRegistry

from ssl_zoo.config.construct import constrained
from ssl_zoo.config.errors import not_among


class Registry(_MMEngineRegistry):
    """mmengine's Registry, of registered names alone; constructors check their arguments.

    mmengine resolves any dotted path (`type: os.system`) and imports modules that a config names.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.later: dict[str, str] = {}

    def register_later(self, name: str, module: str) -> None:
        """A name whose module is imported, and registers it, once somebody asks for it."""
        self.later[name] = module

    def names(self) -> list[str]:
        """All that a config may use."""
        return sorted(self.module_dict.keys() | self.later)

    def register_module(self, name=None, force: bool = False, module=None):
        if module is not None:
            return super().register_module(name, force, constrained(module))

        def register(target: Callable) -> Callable:
            return super(Registry, self).register_module(name, force, constrained(target))

        return register

    def get(self, name: str) -> Callable:
        if not isinstance(name, str) or name not in self.names():
            raise not_among("type", f"no {self.name} of this name", name, self.names())
        if name not in self.module_dict:
            importlib.import_module(self.later[name])
        return self.module_dict[name]

    def summary(self) -> list[tuple[str, str, str]]:
        """(name, first docstring line, arXiv number or '') of every entry, by name."""
        rows = []
        for name in self.names():
            text = inspect.getdoc(self.get(name)) or ""
            paper = re.search(r"arXiv:(\d{4}\.\d{4,5})", text)
            rows.append((name, text.split("\n")[0], paper.group(1) if paper else ""))
        return rows


METHODS = Registry("method")
HEADS = Registry("head")
MEMORY = Registry("memory")
BACKBONES = Registry("backbone")
LOSSES = Registry("loss")
DATASETS = Registry("dataset")
TRANSFORMS = Registry("transform")
OPTIMIZERS = Registry("optimizer")
SCHEDULES = Registry("schedule")
EVALUATIONS = Registry("evaluation")
OBSERVERS = Registry("observer")
