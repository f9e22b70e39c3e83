"""ssl-zoo ablate: a grid of arms, compared."""

import argparse

from ssl_zoo.system.files import check_target, user_path

TWINS = """also two twins of one point: one starts from weights that differ by one unit in the last
place, the other has another data.seed, so their differences to it show how much of a difference is
nothing; the point is the better side of the grid's first planned contrast, else the first point"""


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Runs every arm, sweep value and seed of a grid file, paired by seed, and "
        "writes table.md, table.csv, figure.png and report.html. Finished runs are kept, "
        "interrupted ones go on, a failing one does not stop the rest.",
    )
    parser.add_argument("grid", type=user_path, metavar="GRID", help="configs/ablation/*.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every arm")
    parser.add_argument("--base", type=user_path, help="another base config than the grid's")
    parser.add_argument("--out", type=user_path, help="study folder [runs/ablation/<grid's name>]")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="these arms only")
    in_place = "seeds 0 to N - 1 in place of the grid's"
    parser.add_argument("--seeds", type=int, metavar="N", help=in_place)
    side_by_side = "runs side by side; auto: as a short measurement says, or one a GPU [auto]"
    parser.add_argument("--jobs", default="auto", type=_jobs, metavar="N", help=side_by_side)
    parser.add_argument("--aa", action="store_true", help=TWINS)
    parser.add_argument("--report-only", action="store_true", help="of what is there; run nothing")
    one_file = "write what the report is made of into one small file, e.g. results/demo.json"
    parser.add_argument("--keep", type=user_path, metavar="FILE", help=one_file)
    parser.set_defaults(command=ablate)


def _jobs(text: str) -> int | str:
    return text if text == "auto" else int(text)


def ablate(arguments: argparse.Namespace) -> int:
    from ssl_zoo.study.launch import run_study

    check_target("--keep", arguments.keep)
    names = ("out", "overrides", "only", "report_only", "base", "jobs", "seeds", "aa", "keep")
    return run_study(arguments.grid, **{name: getattr(arguments, name) for name in names})
