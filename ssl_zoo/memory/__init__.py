"""Where keys come from. Every module here is imported, so a new file is a registered memory."""

from importlib import import_module
from pkgutil import iter_modules

from ssl_zoo.memory.base import Memory, shuffled
from ssl_zoo.memory.end_to_end import EndToEnd
from ssl_zoo.memory.lookup import Lookup, joined
from ssl_zoo.memory.memory_bank import MemoryBank
from ssl_zoo.memory.moco_queue import MoCoQueue
from ssl_zoo.memory.ring import Ring

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
