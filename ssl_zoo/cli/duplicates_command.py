"""ssl-zoo duplicates: which images of an index are nearly alike."""

import argparse

from ssl_zoo.system.files import user_path
from ssl_zoo.system.text import one_line, show

LISTED = 20  # groups on the screen
ACROSS, DOWN = 8, 20  # pictures of a group on a sheet, groups of a sheet


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Groups images whose features are nearly the same. Each image's number is its "
        "cosine similarity with the nearest of its group; the most alike come first. Which "
        "threshold tells copies from what is merely similar depends on the network: look at the "
        "sheets.",
        epilog="example:\n"
        "  ssl-zoo duplicates photographs.index --threshold 0.99 --out duplicates\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("index", type=user_path, metavar="INDEX")
    least = "least similarity of two images of a group [0.98]"
    parser.add_argument("--threshold", type=_similarity, default=0.98, metavar="T", help=least)
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FOLDER",
        help="takes all groups: groups.csv, and sheets of pictures, a row a group",
    )
    parser.set_defaults(command=find_duplicates)


def find_duplicates(arguments: argparse.Namespace) -> int:
    from ssl_zoo.data.files import counted
    from ssl_zoo.search.image_index import ImageIndex

    index = ImageIndex.load(arguments.index)
    groups = index.groups(arguments.threshold)
    images = counted(sum(map(len, groups)), "image")
    of = f"of {counted(len(index), 'image')}, {arguments.threshold:g} alike or more"
    show(f"{counted(len(groups), 'group')} with {images} {of}")
    for number, group in enumerate(groups[:LISTED], start=1):
        show(f"{number}:")
        for path, similarity in group:
            show(f"  {similarity:.4f}  {one_line(path)}")
    if len(groups) > LISTED:
        show(f"... {len(groups) - LISTED} more; --out FOLDER takes all")
    if arguments.out is not None:
        _write(groups, arguments.out)
    return 0


def _write(groups: list, out) -> None:
    from ssl_zoo.search.sheet import Picture, write_sheet
    from ssl_zoo.system.files import write_text
    from ssl_zoo.system.text import csv_text

    out.mkdir(parents=True, exist_ok=True)
    lines = [
        (number, match.similarity, match.path)
        for number, group in enumerate(groups, start=1)
        for match in group
    ]
    if (table := out / "groups.csv").exists():
        for old in out.glob("sheet_*.png"):  # of another threshold
            old.unlink()
    write_text(table, csv_text([("group", "similarity", "path"), *lines]))
    for page, start in enumerate(range(0, len(groups), DOWN), start=1):
        rows = []
        for number, group in enumerate(groups[start : start + DOWN], start=start + 1):
            row = [Picture(m.path, (f"{number}: {m.similarity:.4f}", m.path.name)) for m in group]
            more = [Picture(None, (f"{number}: {len(group) - ACROSS} more",))]
            rows.append(row[:ACROSS] + (more if len(group) > ACROSS else []))
        write_sheet(rows, out / f"sheet_{page:03d}.png")
    show(out)


def _similarity(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a similarity above 0, at most 1")
    return value
