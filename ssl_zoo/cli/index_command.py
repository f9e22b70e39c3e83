"""ssl-zoo index: an index over the features that `ssl-zoo embed` wrote."""

import argparse

from ssl_zoo.system.files import user_path
from ssl_zoo.system.text import show


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Makes a folder for `ssl-zoo search` and `ssl-zoo duplicates`, of a file that "
        "`ssl-zoo embed` wrote. It remembers which network made the features.",
    )
    parser.add_argument("file", type=user_path, metavar="FILE")
    parser.add_argument("--out", type=user_path, metavar="INDEX", help="folder [FILE's name.index]")
    kinds = "flat is exact; ivf and hnsw are approximate, for millions of images [flat]"
    parser.add_argument("--kind", default="flat", choices=["flat", "ivf", "hnsw"], help=kinds)
    parser.set_defaults(command=make_index)


def make_index(arguments: argparse.Namespace) -> int:
    from ssl_zoo.data.files import counted
    from ssl_zoo.search.image_index import ImageIndex

    out = arguments.out or arguments.file.with_suffix(".index")
    index = ImageIndex.over(arguments.file, arguments.kind)
    written = index.save(out)
    what = f"{counted(len(index), 'image')}, {index.about['index']}"
    show(f"{out}: {what}{'' if written else '; there already'}")
    return 0
