"""ssl-zoo data: obtain or compose a data set, look at views, check and pack a folder."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from ssl_zoo.cli.command_line import FAILED, add_config
from ssl_zoo.system.files import check_target, user_path
from ssl_zoo.system.text import show

LISTED = 10  # lines of a list on the screen


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(name, help=summary, description=summary + ".")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    get = actions.add_parser("get", parents=[common], help="obtain a data set")
    get.add_argument(
        "name",
        metavar="NAME",
        help="fashion_mnist, textures, cifar10, cifar100, stl10; tree_crowns; scene_parts",
    )
    get.add_argument("--root", type=user_path, help="folder [$SSL_ZOO_DATA, or ./data]")
    get.add_argument(
        "--packages",
        nargs="+",
        metavar="NAME",
        help="of textures: any of ufoai, openarena, nexuiz [ufoai openarena]",
    )
    get.set_defaults(command=get_data)
    show = actions.add_parser("show", parents=[common], help="a PNG of images and a config's views")
    add_config(show)
    show.add_argument("--out", type=user_path, default=Path("views.png"), help="file [views.png]")
    show.add_argument("--samples", type=int, default=8, help="rows [8]")
    show.set_defaults(command=show_views)
    check = actions.add_parser(
        "check",
        parents=[common],
        help="read a whole set beforehand: what is damaged, tiny or there twice",
        description="Decodes every image of a config's data.dataset, in all its splits, and lists "
        "what cannot be decoded, is cut short, is very small, or has the contents of another. The "
        "status is 1 if something cannot be decoded.",
    )
    add_config(check)
    check.add_argument("--workers", type=int, metavar="N", help="processes [the cores there are]")
    check.add_argument(
        "--smallest", type=int, default=16, metavar="PIXELS", help="of the shorter side [16]"
    )
    check.add_argument("--out", type=user_path, metavar="FILE", help="takes the lists, uncut")
    check.set_defaults(command=check_images)
    pack = actions.add_parser(
        "pack",
        parents=[common],
        help="decode a folder set once, into files that are memory-mapped",
        description="Writes train.pack and test.pack: the images of the config's data.dataset, "
        "decoded, the shorter side at most --size pixels. Train on them with "
        "data.dataset='{type: Packed, path: FOLDER}'. A finished pack is kept.",
    )
    add_config(pack)
    pack.add_argument("--out", type=user_path, required=True, metavar="FOLDER")
    pack.add_argument("--size", type=int, default=256, help="pixels of the shorter side [256]")
    pack.add_argument("--splits", nargs="+", default=["train", "test"], choices=["train", "test"])
    pack.set_defaults(command=pack_folder)
    compose = actions.add_parser(
        "compose",
        parents=[common],
        help="scenes with boxes, masks and a semantic map, of stamps, photographs and textures",
        description="Writes training and test scenes to a new folder, and scenes.png to look at. "
        "The same numbers give the same scenes. Their parts: ssl-zoo data get scene_parts.",
    )
    compose.add_argument("--out", type=user_path, required=True, metavar="FOLDER")
    compose.add_argument("--layout", required=True, choices=["coco", "voc", "cityscapes"])
    compose.add_argument("--train", type=int, default=300, metavar="N", help="scenes [300]")
    compose.add_argument("--test", type=int, default=100, metavar="N", help="scenes [100]")
    compose.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(320, 240),
        metavar=("WIDTH", "HEIGHT"),
        help="pixels [320 240]",
    )
    compose.add_argument("--seed", type=int, default=0, help="[0]")
    compose.add_argument("--root", type=user_path, help="of the parts [$SSL_ZOO_DATA, or ./data]")
    compose.set_defaults(command=compose_scenes)


def get_data(arguments: argparse.Namespace) -> int:
    from ssl_zoo.data import fetch
    from ssl_zoo.transfer import scenes, tree_crowns  # noqa: F401, they are sources too

    folder = fetch.get(arguments.name, arguments.root, packages=arguments.packages)
    show(f"{arguments.name} is in {folder}")
    return 0


def show_views(arguments: argparse.Namespace) -> int:
    from ssl_zoo.data import view_grid
    from ssl_zoo.experiment import views_needed

    if arguments.samples < 1:
        raise ValueError(f"--samples {arguments.samples}: expected at least 1")
    sections = _sections(arguments)
    needed = views_needed(sections["method"])
    check_target("--out", arguments.out)
    data = sections["data"](run_seed=sections["seed"], views_needed=needed)
    for line in data.splits.found():
        show(line)
    view_grid(data, arguments.out, arguments.samples)
    show(arguments.out)
    return 0


def check_images(arguments: argparse.Namespace) -> int:
    from ssl_zoo.data import inspection
    from ssl_zoo.system.files import write_text
    from ssl_zoo.system.hardware import cores

    check_target("--out", arguments.out)
    processes = cores() if arguments.workers is None else arguments.workers
    if processes < 0:
        raise ValueError(f"--workers {processes}: expected at least 0")
    dataset = _sections(arguments)["data"].kwargs["dataset"]
    if not getattr(dataset.target, "sized", True):
        raise ValueError(f"data.dataset is {dataset.type}: a stream has no end to be read until")
    splits: dict = {}
    for name in ("pretrain", "train", "test"):
        if name in splits:  # pre-training mostly uses the training images
            continue
        try:
            split = dataset(split=name)
        except FileNotFoundError as error:
            if name != "test":
                raise
            show(f"no test images, which pre-training can do without: {error}")
        else:
            splits[split.split] = split
    for name, split in splits.items():
        show(split.found or f"{name}: {len(split)} images")
    found = inspection.inspect(splits, arguments.smallest, processes, _progress)
    for kind, lines in found.items():
        more = [f"... {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        show("\n  ".join([f"{kind}: {len(lines)}", *lines[:LISTED], *more]))
    if not found:
        show("nothing is damaged, tiny or there twice")
    if arguments.out is not None:
        lists = ("\n  ".join([f"{kind}: {len(lines)}", *lines]) for kind, lines in found.items())
        write_text(arguments.out, "".join(f"{text}\n" for text in lists))
    return FAILED if found.keys() & {inspection.UNDECODABLE, inspection.DAMAGED} else 0


def pack_folder(arguments: argparse.Namespace) -> int:
    from ssl_zoo.data import ImageFolder
    from ssl_zoo.data.datasets import packed
    from ssl_zoo.system.hardware import cores

    dataset = _sections(arguments)["data"].kwargs["dataset"]
    if not (isinstance(dataset.target, type) and issubclass(dataset.target, ImageFolder)):
        raise ValueError(f"data.dataset is {dataset.type}: only folders of images can be packed")
    for split in arguments.splits:
        path = arguments.out / f"{split}.pack"
        packed.pack(dataset(split=split), path, arguments.size, workers=cores())
    show(f"train with data.dataset='{{type: Packed, path: {arguments.out}}}'")
    return 0


def compose_scenes(arguments: argparse.Namespace) -> int:
    from ssl_zoo.transfer.scenes import composing

    folder = composing.compose_scenes(
        arguments.out,
        arguments.layout,
        train=arguments.train,
        test=arguments.test,
        size=tuple(arguments.size),
        seed=arguments.seed,
        root=arguments.root,
        shown=_progress,
    )
    show(f"{folder}; look at {folder / composing.SHEET}")
    return 0


def _progress(items: Iterable, name: str, total: int) -> Iterable:
    """The items, with a bar on a terminal."""
    from rich.progress import track

    from ssl_zoo.system.text import PlainConsole

    console = PlainConsole(stderr=True)
    off = not console.is_terminal
    return track(items, name, total, console=console, transient=True, disable=off)


def _sections(arguments: argparse.Namespace) -> dict:
    from ssl_zoo import config
    from ssl_zoo.experiment import parse

    return parse(config.load(arguments.config, arguments.overrides)).arguments()
