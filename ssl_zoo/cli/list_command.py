"""ssl-zoo list: what is registered, and the recipes."""

import argparse
import re
from itertools import takewhile

from ssl_zoo.system.text import show

# The names of the registries, in lower case.
KINDS = ["methods", "heads", "memory", "backbones", "losses", "datasets", "transforms"]
KINDS += ["optimizers", "schedules", "evaluations", "observers"]
RECIPES = "configs"


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(name, parents=[common], help=summary, description=summary + ".")
    parser.add_argument("kind", nargs="?", choices=[*KINDS, RECIPES], help="one kind only")
    parser.set_defaults(command=list_parts)


def list_parts(arguments: argparse.Namespace) -> int:
    from ssl_zoo import config, experiment  # noqa: F401  (registers everything)

    if arguments.kind == RECIPES:
        return list_recipes()
    for kind in [arguments.kind] if arguments.kind else KINDS:
        registry = getattr(config, kind.upper())
        rows = registry.summary()
        show(kind)
        width = max(len(name) for name, *_ in rows)
        for name, line, paper in rows:
            cited = f"  [arXiv:{paper}]" if paper and paper not in line else ""
            if kind == "methods":
                target = registry.get(name)
                cited += f"  ({target.family}; needs {target.needs})"
            show(f"  {name:<{width}}  {line}{cited}")
    return 0


def list_recipes() -> int:
    from ssl_zoo import config

    found = config.recipes()
    width = max(map(len, found))
    for name, path in found.items():
        lines = takewhile(lambda line: line[:1] == "#", path.read_text("utf-8").splitlines())
        sentence, *_ = re.split(r"[.:;](?= |$)", " ".join(line[1:].strip() for line in lines))
        show(f"{name:<{width}}  {sentence}")
    return 0
