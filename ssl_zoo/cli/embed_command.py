"""ssl-zoo embed: the features of a folder's images, in a file."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ssl_zoo.cli.command_line import at_least
from ssl_zoo.system.files import user_path
from ssl_zoo.system.text import show

LISTED = 10  # images that cannot be read, on the screen
LINE_EVERY_S = 30.0


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Writes the features of every image below FOLDER to a file, with the images' "
        "paths. What a kill cuts short goes on with the same command. Images that cannot be read "
        "are left out and listed.",
        epilog="examples:\n"
        "  ssl-zoo embed runs/moco photographs --out photographs.npy   # paths: .npy.json\n"
        "  ssl-zoo embed CHECKPOINT photographs --out photographs.parquet network=teacher\n"
        "  torchrun --nproc-per-node=2 --no-python ssl-zoo embed RUN photographs --out p.npy\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=user_path, metavar="RUN_OR_CHECKPOINT")
    parser.add_argument("folder", type=user_path, metavar="FOLDER")
    named = "network=NAME, one of the method's [the one that its paper evaluates]"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=named)
    parser.add_argument(
        "--out", type=user_path, required=True, metavar="FILE", help=".npy or .parquet"
    )
    batch = "images at a time [256 on a CPU, 512 on a GPU]"
    parser.add_argument("--batch-size", type=at_least(1), metavar="N", help=batch)
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "bf16", "fp16"],
        help="of the network's pass; what is written is float32 [fp32]",
    )
    parser.add_argument(
        "--workers", type=_workers, default="auto", metavar="N", help="processes that read [auto]"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.set_defaults(command=embed_folder)


def embed_folder(arguments: argparse.Namespace) -> int:
    from ssl_zoo import api
    from ssl_zoo.engine.stop import Interrupted
    from ssl_zoo.search.folder import embed_images
    from ssl_zoo.system import distributed
    from ssl_zoo.system.hardware import keep_freed_memory

    keep_freed_memory()
    network = _network(arguments.overrides)
    embedder = api.load(arguments.path, network=network, device=arguments.device)
    try:
        with _progress() as told:
            header = embed_images(
                embedder,
                arguments.folder,
                arguments.out,
                batch_size=arguments.batch_size,
                workers=arguments.workers,
                precision=arguments.precision,
                told=told,
            )
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command goes on from here") from None
    main = distributed.is_main()
    distributed.leave()
    if main:
        _tell(arguments.out, header)
    return 0


def _tell(out: Path, header: dict) -> None:
    from ssl_zoo.data.files import counted

    unreadable = list(header["unreadable"].values())
    if unreadable:
        more = [f"... {len(unreadable) - LISTED} more"] if len(unreadable) > LISTED else []
        count = f"left out, {counted(len(unreadable), 'image')} that cannot be read"
        show("\n  ".join([f"{count}:", *unreadable[:LISTED], *more]))
    show(f"{out}: of {header['network']} of {header['run']}")


def _workers(text: str) -> int | str:
    return text if text == "auto" else at_least(0)(text)


def _network(overrides: list[str]) -> str | None:
    from ssl_zoo.config import not_among

    words = dict(text.partition("=")[::2] for text in overrides)
    for key in words:
        if key != "network":
            raise not_among("", "no key of embed", key, ["network"])
    return words.get("network")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Takes (images done, of how many): a bar on a terminal, else a line every half minute."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from ssl_zoo.system import distributed
    from ssl_zoo.system.text import PlainConsole

    console, printed = PlainConsole(stderr=True), time.monotonic()
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left")
    off = not (console.is_terminal and distributed.is_main())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=off)
    task = bar.add_task("", total=None)

    def told(done: int, total: int) -> None:
        nonlocal printed
        bar.update(task, completed=done, total=total)
        if bar.disable and time.monotonic() - printed > LINE_EVERY_S:
            printed = time.monotonic()
            show(f"{done:,} of {total:,} images", sys.stderr)

    with bar:
        yield told
