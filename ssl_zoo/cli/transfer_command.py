"""ssl-zoo transfer: a backbone, trained for detection, segmentation or keypoints, and judged."""

import argparse
import re
from pathlib import Path

from ssl_zoo.cli.evaluate_command import add_device_and_out, begun, judge
from ssl_zoo.system.files import user_path

RECIPES = "transfer"  # where those by name are


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Trains a detector or a segmentation model from a backbone and judges it on\n"
        "the recipe's test pictures. Interrupted, the same command goes on. What is trained,\n"
        "predictions and pictures lie below evaluations/by_hand/ of the run, or FILE.evaluations/\n"
        "beside weights, or runs/transfer/ for a config.",
        epilog="examples:\n"
        "  ssl-zoo transfer voc0712_c4 RUN dataset.root=/data     # a recipe of configs/transfer\n"
        "  ssl-zoo transfer voc0712_c4 moco.safetensors seed=1    # ssl-zoo import made the file\n"
        "  ssl-zoo transfer own.yaml RUN --init random --out random.json\n"
        "  torchrun --nproc-per-node=8 --no-python ssl-zoo transfer coco_fpn_2x RUN "
        "model.norm=synced\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "recipe", type=user_path, metavar="RECIPE", help="a YAML file, or one of configs/transfer"
    )
    parser.add_argument(
        "path",
        type=user_path,
        metavar="RUN_OR_WEIGHTS",
        help="or a checkpoint, or a config, whose random weights are meant",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe")
    parser.add_argument(
        "--init",
        metavar="HOW",
        help="the same network from other weights: random, supervised (those that timm has "
        "published for it), or another run's or file's",
    )
    add_device_and_out(parser)
    parser.set_defaults(command=transfer_run)


def transfer_run(arguments: argparse.Namespace) -> int:
    from ssl_zoo.engine.stop import Interrupted
    from ssl_zoo.system import distributed
    from ssl_zoo.weights.as_subject import subject_of
    from ssl_zoo.weights.starts import started

    device = begun(arguments)
    parts = recipe(arguments.recipe, arguments.overrides)
    subject = subject_of(arguments.path, device)
    # Random weights, too, keep what is trained: it has to outlive an interruption.
    of_config = Path("runs", RECIPES, subject.path.stem)
    subject.trained_in = of_config if subject.untrained else distributed.attempt(subject.beside)
    if arguments.init is not None:
        subject = started(subject, arguments.init, device)
    try:
        judge(subject, parts, device, arguments.out)
    except Interrupted as stop:
        raise Interrupted(f"{stop}\nThe same command goes on from there.") from None
    return 0


def recipe(path: Path, overrides: list[str]) -> dict:
    """The block of the evaluation that a recipe is, by its name."""
    from ssl_zoo import config
    from ssl_zoo.config import EVALUATIONS, ConfigError, Part
    from ssl_zoo.config.binding import convert
    from ssl_zoo.evaluation.monitor import Monitored, check_blocks

    below = Path(RECIPES) / path
    found = config.find(path)
    written = config.load(found if found.is_file() else below, overrides)
    with written.located():
        part = convert(Part[EVALUATIONS, Monitored], written.data, "")
        if not part.target.own_data:
            expected = "type: Transfer; `ssl-zoo evaluate` is for others"
            raise ConfigError("type", "no transfer", found=part.type, expected=expected)
        parts = {re.sub(r"[^A-Za-z0-9_-]", "_", path.stem): part}
        check_blocks(parts)
    return parts
