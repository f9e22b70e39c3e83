"""ssl-zoo search: which images of an index are most like one."""

import argparse

from ssl_zoo.cli.command_line import at_least
from ssl_zoo.system.files import check_target, user_path
from ssl_zoo.system.text import one_line, show

ACROSS = 6  # pictures of a row of the sheet


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Prints the images of an index that are most like IMAGE, the nearest first, "
        "with their cosine similarities. IMAGE goes through the network that made the index.",
        epilog="example:\n"
        "  ssl-zoo search photographs.index beach.jpg -k 20 --sheet like_the_beach.png\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("index", type=user_path, metavar="INDEX")
    parser.add_argument("image", type=user_path, metavar="IMAGE")
    parser.add_argument("-k", type=at_least(1), default=10, metavar="N", help="images [10]")
    parser.add_argument("--sheet", type=user_path, metavar="FILE.png", help="writes the pictures")
    moved = "where the run or checkpoint lies now, if it has moved"
    parser.add_argument("--run", type=user_path, metavar="RUN_OR_CHECKPOINT", help=moved)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.set_defaults(command=search_index)


def search_index(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from ssl_zoo import api
    from ssl_zoo.search.image_index import ImageIndex
    from ssl_zoo.search.sheet import Picture, write_sheet

    check_target("--sheet", arguments.sheet)
    index = ImageIndex.load(arguments.index)
    run = arguments.run or Path(index.about["run"])
    try:
        embedder = api.load(run, network=index.about["network"], device=arguments.device)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; --run says where the network lies now") from error
    index.check(embedder)
    matches = index.nearest(embedder.embed([arguments.image])[0], arguments.k)
    if arguments.k > len(index):
        show(f"{arguments.index} has no more than {len(index)} images")
    for path, similarity in matches:
        show(f"{similarity:.4f}  {one_line(path)}")
    if arguments.sheet is not None:
        asked = Picture(arguments.image, ("asked for", arguments.image.name))
        found = [Picture(path, (f"{similarity:.4f}", path.name)) for path, similarity in matches]
        starts = range(0, len(found), ACROSS)
        write_sheet([[asked], *(found[i : i + ACROSS] for i in starts)], arguments.sheet)
        show(arguments.sheet)
    return 0
