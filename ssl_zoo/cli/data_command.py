"""ssl-zoo data: obtain a data set, look at views, pack a folder."""

import argparse
from pathlib import Path

from ssl_zoo.cli.command_line import add_config


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(name, help=summary, description=summary + ".")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    get = actions.add_parser("get", parents=[common], help="obtain a data set")
    get.add_argument(
        "name", metavar="NAME", help="fashion_mnist, textures, cifar10, cifar100 or stl10"
    )
    get.add_argument("--root", type=Path, help="folder [$SSL_ZOO_DATA, or ./data]")
    get.add_argument(
        "--packages",
        nargs="+",
        metavar="NAME",
        help="of textures: any of ufoai, openarena, nexuiz [ufoai openarena]",
    )
    get.set_defaults(command=get_data)
    show = actions.add_parser("show", parents=[common], help="a PNG of images and a config's views")
    add_config(show)
    show.add_argument("--out", type=Path, default=Path("views.png"), help="file [views.png]")
    show.add_argument("--samples", type=int, default=8, help="rows [8]")
    show.set_defaults(command=show_views)
    pack = actions.add_parser(
        "pack",
        parents=[common],
        help="decode a folder set once, into files that are memory-mapped",
        description="Writes train.pack and test.pack: the images of the config's data.dataset, "
        "decoded, the shorter side at most --size pixels. Train on them with "
        "data.dataset='{type: Packed, path: FOLDER}'. A finished pack is kept.",
    )
    add_config(pack)
    pack.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    pack.add_argument("--size", type=int, default=256, help="pixels of the shorter side [256]")
    pack.add_argument("--splits", nargs="+", default=["train", "test"], choices=["train", "test"])
    pack.set_defaults(command=pack_folder)


def get_data(arguments: argparse.Namespace) -> int:
    from ssl_zoo.data import fetch

    folder = fetch.get(arguments.name, arguments.root, packages=arguments.packages)
    print(f"{arguments.name} is in {folder}")
    return 0


def show_views(arguments: argparse.Namespace) -> int:
    from ssl_zoo.data import view_grid
    from ssl_zoo.experiment import views_needed

    if arguments.samples < 1:
        raise ValueError(f"--samples {arguments.samples}: expected at least 1")
    sections = _sections(arguments)
    needed = views_needed(sections["method"])
    data = sections["data"](run_seed=sections["seed"], views_needed=needed)
    for line in data.splits.found():
        print(line)
    view_grid(data, arguments.out, arguments.samples)
    print(arguments.out)
    return 0


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
    print(f"train with data.dataset='{{type: Packed, path: {arguments.out}}}'")
    return 0


def _sections(arguments: argparse.Namespace) -> dict:
    from ssl_zoo import config
    from ssl_zoo.experiment import parse

    return parse(config.load(arguments.config, arguments.overrides)).arguments()
