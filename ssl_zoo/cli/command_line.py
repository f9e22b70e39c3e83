"""The command line: one module a command, imported when it is asked for."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable

from ssl_zoo.system.files import user_path
from ssl_zoo.system.text import show

COMMANDS = {
    "train": "train one config",
    "ablate": "run a grid of arms and report",
    "evaluate": "evaluate a trained backbone",
    "transfer": "train a backbone for detection, segmentation or keypoints, and judge it",
    "import": "published weights, for runs to start from",
    "export": "a backbone for timm, torchvision, transformers, detectron2 or ONNX",
    "compare": "whether one arm is better than another",
    "leaderboard": "networks under one protocol, in one table",
    "embed": "features of a folder's images, in a file",
    "index": "an index over such a file",
    "search": "which images of an index are most like one",
    "duplicates": "which images of an index are nearly alike",
    "list": "what is registered: name, one line, paper; and the recipes",
    "show": "a config as it is run, each line with where it comes from",
    "new": "write a method, memory, evaluation or data set of one's own, to be changed",
    "data": "get, look at, check or pack a data set",
}
FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


class Parser(argparse.ArgumentParser):
    """Options are spelled out: an abbreviation would be another option's tomorrow."""

    def __init__(self, **settings):
        super().__init__(**settings, allow_abbrev=False)


def add_config(parser: argparse.ArgumentParser) -> None:
    """CONFIG and its overrides."""
    a_config = "a YAML file, or a recipe"
    parser.add_argument("config", type=user_path, metavar="CONFIG", help=a_config)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, YAML")


def at_least(least: int) -> Callable[[str], int]:
    """An argument's type: a whole number that is not smaller."""

    def integer(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {least} on")
        return int(text)

    return integer


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 (failed), 2 (wrong input), 130 (stopped)."""
    arguments = parsed(list(sys.argv[1:] if argv is None else argv))
    # torch and friends take seconds to import: not before the arguments are known to be good.
    from ssl_zoo.engine.stop import Interrupted, NonFiniteLoss

    try:
        load_plugins(arguments.plugin)
        return arguments.command(arguments)
    except (Interrupted, KeyboardInterrupt) as stop:
        show(str(stop) or "stopped", sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # of `ssl-zoo list | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, NonFiniteLoss) as error:
        if arguments.traceback:
            raise
        show(f"error: {str(error) or type(error).__name__}", sys.stderr)
        return FAILED if isinstance(error, NonFiniteLoss) else USER_ERROR


def load_plugins(paths: list) -> None:
    from ssl_zoo import experiment  # noqa: F401  (registers ours, whose names are taken then)
    from ssl_zoo.system import plugins

    plugins.load(paths)


def parsed(argv: list[str]) -> argparse.Namespace:
    """The arguments of one command; `command` is the function that runs it."""
    about = "Self-supervised learning from registered parts that YAML assembles."
    parser = Parser(prog="ssl-zoo", description=about)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = Parser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where an error came from")
    own = "a Python file that registers parts of your own; repeatable [$SSL_ZOO_PLUGINS]"
    common.add_argument(
        "--plugin", action="append", default=[], type=user_path, metavar="FILE", help=own
    )
    for name, summary in COMMANDS.items():
        if argv[:1] == [name]:  # parsers are cheap; what commands import is not
            module = importlib.import_module(f"ssl_zoo.cli.{name}_command")
            module.add(commands, common, name, summary)
        else:
            commands.add_parser(name, help=summary)
    arguments, rest = parser.parse_known_args(argv)
    # argparse ends a list of positionals at the first option; overrides may come after one.
    if rest and (not hasattr(arguments, "overrides") or any(word[0] == "-" for word in rest)):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments
