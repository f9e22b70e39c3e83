"""What happens around the steps."""

from ssl_zoo.engine.hooks.base import Hook
from ssl_zoo.engine.hooks.checkpoints import Checkpoints
from ssl_zoo.engine.hooks.logging import MetricsLogger, ResultWriter
from ssl_zoo.engine.hooks.progress import ProgressBar
from ssl_zoo.engine.hooks.unreadable import Unreadable
