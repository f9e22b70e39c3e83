"""The commands: ssl-zoo train | ablate | evaluate | list | data; tools/*.py are their faces."""

from ssl_zoo.cli.command_line import main

__all__ = ["main"]
