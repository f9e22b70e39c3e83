from ssl_zoo.hooks.base import Hook
from ssl_zoo.hooks.checkpointing import Checkpointing, Interrupted
from ssl_zoo.hooks.knn import KNNMonitor
from ssl_zoo.hooks.logging import MetricsLogger, ResultWriter
from ssl_zoo.hooks.progress import ProgressBar
from ssl_zoo.hooks.schedules import Schedules

__all__ = [
    "Checkpointing",
    "Hook",
    "Interrupted",
    "KNNMonitor",
    "MetricsLogger",
    "ProgressBar",
    "ResultWriter",
    "Schedules",
]
