"""ssl-zoo compare: whether one arm is better than another."""

import argparse

from ssl_zoo.system.text import show


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Compares two arms by the runs of one seed each that both have: the mean\n"
        "difference with its 95% t interval, the exact two-sided sign-flip p, and a sentence.\n"
        "A and B: folders of a run, an arm or a study, or a kept study's file;\n"
        "'STUDY:ARM, POINT' is one arm of a study at one point of its sweep.\n"
        "B may be a baseline that A's study has measured: 'random backbone'.\n"
        "Of two whole studies, the arms that both have are compared.",
        epilog="examples:\n"
        "  ssl-zoo compare 'runs/ablation/fig3:MoCo, 4096' 'runs/ablation/fig3:MoCo, 32'\n"
        "  ssl-zoo compare runs/ablation/fig3/moco/4096 runs/ablation/fig3/moco/32 unseen\n"
        "  ssl-zoo compare 'runs/ablation/fig3:MoCo, 4096' 'random backbone'\n"
        "  ssl-zoo compare runs/today runs/yesterday knn.top5\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    metric = "an evaluation, or NAME.metric [the main evaluation's main metric]"
    parser.add_argument("metric", nargs="?", default="", metavar="METRIC", help=metric)
    parser.set_defaults(command=compare)


def compare(arguments: argparse.Namespace) -> int:
    from ssl_zoo.study.sides import compare_paths
    from ssl_zoo.study.verdict import smallest_p

    for compared in compare_paths(arguments.a, arguments.b, arguments.metric):
        found = compared.comparison
        show(f"{compared.title}: {found.sentence}")
        if found.spreads:
            show(f"  {found.spreads}")
            if found.over_classes is None:
                show("  over classes: not known; no rows of this metric are kept")
        seeds = f"{found.seeds} seed{'s' * (found.seeds > 1)}"
        show(f"  {seeds} can show p {smallest_p(found.seeds):.2g} at best; p is not corrected")
        if compared.configs is not None:
            show("  configs differ in:" if compared.configs else "  configs are the same")
        for line in compared.configs or ():
            show(f"    {line}")
    return 0
