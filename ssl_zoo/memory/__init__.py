from ssl_zoo.memory.base import Lookup, Memory
from ssl_zoo.memory.end_to_end import EndToEnd
from ssl_zoo.memory.memory_bank import MemoryBank
from ssl_zoo.memory.moco_queue import MoCoQueue

__all__ = ["EndToEnd", "Lookup", "Memory", "MemoryBank", "MoCoQueue"]
