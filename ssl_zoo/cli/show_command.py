"""ssl-zoo show: a config as it is run, each line with where it comes from."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ssl_zoo.cli.command_line import add_config
from ssl_zoo.system.text import show

DEFAULT = "default"


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Prints a config with its bases, overrides and defaults, and beside each line "
        "the file and line that it comes from. What is printed is a config itself.",
    )
    add_config(parser)
    parser.set_defaults(command=show_config)


def show_config(arguments: argparse.Namespace) -> int:
    from ssl_zoo import config
    from ssl_zoo.experiment import parse

    written = config.load(arguments.config, arguments.overrides)
    lines = list(_lines(parse(written).spelled_out(), written))
    width = max(len(line) for line, _ in lines)
    for line, origin in lines:
        show(f"{line:<{width}}  # {origin}" if origin else line)
    return 0


def _lines(
    block: Mapping[str, Any], written: Any, above: str = "", indent: str = ""
) -> Iterator[tuple[str, str]]:
    """(line, where it comes from), key by key; a block's own line has no origin."""
    from ssl_zoo import config

    for name, value in block.items():
        key = config.join(above, name)
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:", ""
            yield from _lines(value, written, key, f"{indent}  ")
        else:
            text = config.dump({name: value}).strip()
            first, *more = (text[1:-1] if text[0] == "{" else text).splitlines()
            yield f"{indent}{first}", _shown(written.origins.get(key, DEFAULT))
            yield from ((f"{indent}{line}", "") for line in more)


def _shown(origin: str) -> str:
    """Files below the working directory are named from there, recipes from theirs."""
    from ssl_zoo.config.yaml import RECIPES

    file, colon, line = origin.rpartition(":")
    for folder in (Path.cwd(), RECIPES.resolve().parent):
        if colon and Path(file).resolve().is_relative_to(folder):
            return f"{Path(file).resolve().relative_to(folder)}:{line}"
    return origin
