"""The commands: ssl-zoo train | ablate | evaluate | new and others; tools/*.py are their faces."""

from ssl_zoo.cli.command_line import main
