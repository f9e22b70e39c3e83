"""A run: its folder, its lock, and what it ran on."""

from ssl_zoo.runs.environment import describe_environment
from ssl_zoo.runs.folder import RunFolder
from ssl_zoo.runs.lock import Held, Lock
