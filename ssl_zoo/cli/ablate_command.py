"""ssl-zoo ablate: a grid of arms, compared."""

import argparse
from pathlib import Path


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Runs every arm, sweep value and seed of a grid file, paired by seed, and "
        "writes table.md, table.csv, figure.png and report.html. Finished runs are kept, "
        "interrupted ones go on, a failing one does not stop the rest.",
    )
    parser.add_argument("grid", type=Path, metavar="GRID", help="configs/ablation/*.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every arm")
    parser.add_argument("--base", type=Path, help="another base config than the grid's")
    parser.add_argument("--out", type=Path, help="study folder [runs/ablation/<grid's name>]")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="these arms only")
    in_place = "seeds 0 to N - 1 in place of the grid's"
    parser.add_argument("--seeds", type=int, metavar="N", help=in_place)
    side_by_side = "runs side by side; auto: as a short measurement says, or one a GPU [auto]"
    parser.add_argument("--jobs", default="auto", type=_jobs, metavar="N", help=side_by_side)
    parser.add_argument("--report-only", action="store_true", help="of what is there; run nothing")
    parser.set_defaults(command=ablate)


def _jobs(text: str) -> int | str:
    return text if text == "auto" else int(text)


def ablate(arguments: argparse.Namespace) -> int:
    from ssl_zoo.study.launch import run_study

    names = ("out", "overrides", "only", "report_only", "base", "jobs", "seeds")
    return run_study(arguments.grid, **{name: getattr(arguments, name) for name in names})
