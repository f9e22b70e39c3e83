"""The commands: ssl-zoo train | ablate | evaluate | list | data; tools/*.py are their faces."""

from ssl_zoo.cli.main import main

__all__ = ["main"]
