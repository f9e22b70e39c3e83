"""ssl-zoo train: one config into a run folder."""

import argparse
from pathlib import Path

from ssl_zoo.cli.command_line import add_config
from ssl_zoo.system.files import user_path
from ssl_zoo.system.text import show


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Trains one config into a run folder: config.yaml (resolved, re-runnable),\n"
        "environment.json, metrics.jsonl, log.txt, checkpoints/, evaluations/, and result.json\n"
        "when finished.",
        epilog="examples:\n"
        "  ssl-zoo train fashion_mnist/moco_v2       # configs/fashion_mnist/moco_v2.yaml\n"
        "  ssl-zoo train CONFIG method.memory.size=4096 seed=1 --out runs/k4096\n"
        "  ssl-zoo train CONFIG method.memory='{type: MemoryBank}'\n"
        "  ssl-zoo train CONFIG train.epochs=20 --resume      # go on, longer than was planned\n"
        "  ssl-zoo train CONFIG --resume --changed-data       # with images removed or added\n"
        "  torchrun --nproc-per-node=2 --no-python ssl-zoo train CONFIG\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    parser.add_argument(
        "--out", type=user_path, help="run folder [runs/<config's name>/seed<seed>]"
    )
    parser.add_argument("--resume", action="store_true", help="from the newest checkpoint, if any")
    parser.add_argument(
        "--changed-data",
        action="store_true",
        help="with --resume: go on though the images have changed; says what is carried over",
    )
    parser.add_argument("--check", action="store_true", help="only check the config; reads no data")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    skipped = "do not measure what evaluations compare with (raw pixels, untrained weights)"
    parser.add_argument("--no-baselines", action="store_true", help=skipped)
    parser.set_defaults(command=train)


def train(arguments: argparse.Namespace) -> int:
    from ssl_zoo import config
    from ssl_zoo.engine.stop import Interrupted
    from ssl_zoo.experiment import parse, resolve, train_into
    from ssl_zoo.runs import RunFolder
    from ssl_zoo.system import distributed

    cfg = config.load(arguments.config, arguments.overrides)
    if arguments.check:
        parse(cfg)
        show(f"{arguments.config}: ok")
        return 0
    out = arguments.out
    if out is None:
        out = run_path(config.find(arguments.config), resolve(cfg).arguments()["seed"])
    how = {"resume": arguments.resume, "changed_data": arguments.changed_data}
    try:
        train_into(
            RunFolder(out), cfg, arguments.device, **how, baselines=not arguments.no_baselines
        )
    except Interrupted as stop:
        raise Interrupted(f"{stop}\nThe same command with --resume goes on from there.") from None
    distributed.leave()  # not after an error: the other ranks may sit in a collective
    return 0


def run_path(path: Path, seed: int) -> Path:
    """runs/<name>/seed<seed>; the name is the path below a folder `configs`, if there is one."""
    parts = path.with_suffix("").parts
    below = parts[parts.index("configs") + 1 :] if "configs" in parts else parts[-1:]
    return Path("runs", *below, f"seed{seed}")
