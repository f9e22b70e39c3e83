"""ssl-zoo leaderboard: networks under one protocol, in one table."""

import argparse
from pathlib import Path

from ssl_zoo.system.files import check_target, user_path
from ssl_zoo.system.text import show

WIDTH = 160  # of a file; rich would wrap the table at 80


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="A row for each network, a column for each protocol: of runs what was measured "
        "in training and by `ssl-zoo evaluate`, of other weights the latter. Numbers of two "
        "protocols are never in one column.",
        epilog="examples:\n"
        "  ssl-zoo leaderboard runs/*/seed0 --out table.md\n"
        "  ssl-zoo leaderboard runs/mine resnet50.safetensors --evaluate knn,linear "
        "--data CONFIG knn.k=20\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    paths = "folders of runs, checkpoints and other weights, files of `ssl-zoo evaluate --out`"
    parser.add_argument("paths", nargs="+", metavar="PATH", help=paths)
    parser.add_argument(
        "--evaluate",
        metavar="NAME[,...]",
        help="first judges what lacks these, as `ssl-zoo evaluate` does; NAME.key=value and "
        "data.key=value change them",
    )
    parser.add_argument(
        "--data", type=user_path, metavar="CONFIG", help="judge by the images of its section `data`"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--out", type=user_path, metavar="FILE", help=".md or .csv")
    parser.set_defaults(command=print_leaderboard, overrides=[])


def print_leaderboard(arguments: argparse.Namespace) -> int:
    from rich import box
    from rich.table import Table

    from ssl_zoo.config import ConfigError
    from ssl_zoo.study.leaderboard import Board, read
    from ssl_zoo.system.files import write_text
    from ssl_zoo.system.text import PlainConsole

    words = [text for text in arguments.paths if "=" in text and not user_path(text).exists()]
    paths = [user_path(text) for text in dict.fromkeys(arguments.paths) if text not in words]
    words += arguments.overrides
    check_target("--out", out := arguments.out, ".md", ".csv")
    if (words or arguments.data) and not arguments.evaluate:
        raise ConfigError(
            "--evaluate", "missing: what is to be judged anew?", expected="NAME[,...]"
        )
    entries = [read(path) for path in paths]
    if arguments.evaluate:
        names = arguments.evaluate.split(",")
        judge_lacking(paths, names, words, arguments.data, arguments.device)
        entries = [read(path) for path in paths]
    board = Board(entries)
    header, rows = board.cells()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, title in enumerate(header):
        table.add_column(title, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = PlainConsole()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    for note in board.notes():
        show(note)
    if out is not None:
        write_text(out, board.csv() if out.suffix == ".csv" else board.markdown())
    return 0


def judge_lacking(
    paths: list[Path], names: list[str], words: list[str], config: Path | None, device: str
) -> None:
    """Measures by these evaluations what has no result of them, and keeps that beside it."""
    from ssl_zoo.config import not_among
    from ssl_zoo.experiment.by_hand import asked, keep, results_of
    from ssl_zoo.system import distributed
    from ssl_zoo.weights.as_subject import subject_of

    of_data = [word for word in words if word.startswith("data.")]
    by_name = {name: [word for word in words if word.startswith(f"{name}.")] for name in names}
    unused = set(words).difference(of_data, *by_name.values())
    if "all" in names:  # `asked` knows which evaluations there are
        by_name["all"] += [word for word in words if word in unused]
    elif unused:
        raise not_among("", "no key of what is evaluated", min(unused), [*names, "data"])
    on = distributed.start(device)
    for path in paths:
        if path.suffix == ".json":
            continue
        subject = subject_of(path, on)
        results = (of.result for of in results_of(path))
        known = {r["hash"].partition("-")[0] for r in results if r["step"] == subject.step}
        for name in names:
            own = [word.removeprefix(f"{name}.") for word in by_name[name]]
            parts, _ = asked(subject, name, own + of_data, config)
            for each, result, outcome in subject.evaluate(parts, on, known):
                try:
                    keep(subject, each, result, outcome)
                except OSError as error:  # somebody else's folder
                    show(f"not kept beside {subject.path}, so not in the table: {error}")
                value = f"{result['metrics'][result['main']]:.2f}{result['unit']}"
                show(f"{path}: {each} {result['main']} {value}")
