"""ssl-zoo evaluate: a trained backbone, by any registered evaluation."""

import argparse
import json
from pathlib import Path

from ssl_zoo.system.files import check_target, user_path
from ssl_zoo.system.text import show


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Evaluates a backbone: NAME is an evaluation of the run's config, or the type "
        "of a registered one; all: those of the config, or else kNN and linear probes. "
        "`ssl-zoo list evaluations` lists them.",
        epilog="examples:\n"
        "  ssl-zoo evaluate knn runs/digits/moco_v2/seed0 k=20\n"
        "  ssl-zoo evaluate linear RUN lrs='[0.1, 1, 10]' epochs=50 --out linear.json\n"
        "  ssl-zoo evaluate knn RUN data.dataset.root=/moved/here\n"
        "  ssl-zoo evaluate knn RUN network=teacher              # one of the method's networks\n"
        "  ssl-zoo evaluate knn RUN data='{dataset: {type: CIFAR10}}'\n"
        "  ssl-zoo evaluate linear RUN --data CONFIG             # images of another config\n"
        "  ssl-zoo evaluate all CONFIG          # of the random weights that its runs start from\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="or all")
    parser.add_argument("path", type=user_path, metavar="RUN_OR_CHECKPOINT", help="or a config")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="its keys (for all: NAME.key=value), and data.key=value",
    )
    parser.add_argument(
        "--data", type=user_path, metavar="CONFIG", help="judge by the images of its section `data`"
    )
    add_device_and_out(parser)
    parser.set_defaults(command=evaluate)


def add_device_and_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument(
        "--out", type=user_path, metavar="FILE", help="results as JSON; rows beside it"
    )


def evaluate(arguments: argparse.Namespace) -> int:
    from ssl_zoo.experiment.by_hand import asked
    from ssl_zoo.system import distributed
    from ssl_zoo.weights.as_subject import subject_of

    device = begun(arguments)
    subject = subject_of(arguments.path, device)
    parts, left_out = asked(subject, arguments.name, arguments.overrides, arguments.data)
    if left_out and distributed.is_main():
        show(f"left out, as they learn beside a run: {', '.join(left_out)}")
    judge(subject, parts, device, arguments.out)
    return 0


def begun(arguments: argparse.Namespace):
    """The device that was asked for; ValueError for an `--out` that could not be written."""
    from ssl_zoo.system import distributed
    from ssl_zoo.system.hardware import keep_freed_memory

    check_target("--out", arguments.out)
    keep_freed_memory()
    return distributed.start(arguments.device)


def judge(subject, parts: dict, device, out: Path | None) -> None:
    """Evaluates; prints each result, and keeps it beside what was judged and in a file."""
    from ssl_zoo.experiment.by_hand import keep
    from ssl_zoo.system import distributed
    from ssl_zoo.system.files import write_text

    results = {"source": {"path": str(subject.path), "step": subject.step}}
    for name, result, outcome in subject.evaluate(parts, device):
        results[name] = result
        if distributed.is_main():
            _print(name, result, outcome, results["source"])
            try:
                keep(subject, name, result, outcome)
            except OSError as error:  # somebody else's folder
                show(f"not kept beside {subject.path}: {error}")
            if out is not None:  # now: the next may take long, or be interrupted
                write_text(out, json.dumps(results, indent=2) + "\n")
                if outcome.rows is not None:
                    write_text(out.with_suffix(f".{name}.csv"), outcome.rows.csv())
    distributed.leave()


def _print(name: str, result: dict, outcome, source: dict) -> None:
    metrics = "  ".join(f"{n} {v:.2f}{result['unit']}" for n, v in result["metrics"].items())
    show(f"{name}: {metrics}  ({result['network']} of {source['path']}, step {source['step']})")
    said = ", ".join(f"{n} {v}" for n, v in result["protocol"].items())
    show("\n".join([f"protocol {result['hash']}: {said}", *outcome.remarks]))
