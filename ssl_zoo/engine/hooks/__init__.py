from ssl_zoo.engine.hooks.base import Hook
from ssl_zoo.engine.hooks.checkpointing import Checkpointing, Interrupted
from ssl_zoo.engine.hooks.logging import MetricsLogger, ResultWriter
from ssl_zoo.engine.hooks.progress import ProgressBar

__all__ = [
    "Checkpointing",
    "Hook",
    "Interrupted",
    "MetricsLogger",
    "ProgressBar",
    "ResultWriter",
]
