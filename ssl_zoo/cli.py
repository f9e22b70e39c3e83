"""The commands: ssl-zoo train | ablate | evaluate | list | data; tools/*.py are their faces."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ssl_zoo.registry import (
    BACKBONES,
    DATASETS,
    HEADS,
    LOSSES,
    MEMORY,
    METHODS,
    OPTIMIZERS,
    SCHEDULES,
    TRANSFORMS,
)

KINDS = {
    "methods": METHODS,
    "heads": HEADS,
    "memory": MEMORY,
    "backbones": BACKBONES,
    "losses": LOSSES,
    "datasets": DATASETS,
    "transforms": TRANSFORMS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
}
FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 (failed), 2 (wrong input), 130 (stopped)."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse ends a list of positionals at the first option; overrides may come after one.
    if rest and (not hasattr(arguments, "overrides") or any(word[0] == "-" for word in rest)):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    # torch and friends take seconds to import: not before the arguments are known to be good.
    from ssl_zoo.hooks import Interrupted
    from ssl_zoo.trainer import NonFiniteLoss

    try:
        return arguments.command(arguments)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ImportError, NonFiniteLoss) as error:
        if arguments.traceback:
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        return FAILED if isinstance(error, NonFiniteLoss) else USER_ERROR


def _message(error: Exception) -> str:
    return str(error) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ssl-zoo",
        description="Self-supervised learning from registered parts that YAML assembles.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        parents=[common],
        help="train one config",
        description="Trains one config into a run folder: config.yaml (resolved, re-runnable),\n"
        "environment.json, metrics.jsonl, log.txt, checkpoints/, and result.json when finished.",
        epilog="examples:\n"
        "  ssl-zoo train configs/fashion_mnist/moco_v2.yaml\n"
        "  ssl-zoo train CONFIG method.memory.size=4096 seed=1 --out runs/k4096\n"
        "  ssl-zoo train CONFIG method.memory='{type: EndToEnd, symmetric: true}'\n"
        "  torchrun --nproc-per-node=2 tools/train.py CONFIG\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, YAML values")
    train.add_argument("--out", type=Path, help="run folder [runs/<config's name>/seed<seed>]")
    train.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint, if any"
    )
    train.add_argument("--check", action="store_true", help="only check the config; reads no data")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    train.set_defaults(command=_train)

    ablate = commands.add_parser(
        "ablate",
        parents=[common],
        help="run a grid of arms and report",
        description="Runs every arm, sweep value and seed of a grid file, paired by seed, and "
        "writes table.md, table.csv, figure.png and report.html. Finished runs are kept, "
        "interrupted ones go on, a failing one does not stop the rest.",
    )
    ablate.add_argument(
        "grid", type=Path, metavar="GRID", help="a grid file, configs/ablation/*.yaml"
    )
    ablate.add_argument("overrides", nargs="*", metavar="key=value", help="for every arm")
    ablate.add_argument("--base", type=Path, help="another base config than the grid's")
    ablate.add_argument("--out", type=Path, help="study folder [runs/ablation/<grid's name>]")
    ablate.add_argument("--only", nargs="+", metavar="ARM", help="these arms only")
    ablate.add_argument(
        "--report-only", action="store_true", help="report on what is there; run nothing"
    )
    ablate.set_defaults(command=_ablate)

    evaluate = commands.add_parser("evaluate", help="evaluate a trained backbone")
    protocols = evaluate.add_subparsers(required=True, metavar="PROTOCOL")
    knn = protocols.add_parser(
        "knn", parents=[common], help="weighted k-nearest-neighbour vote (arXiv:1805.01978)"
    )
    knn.add_argument("path", type=Path, metavar="RUN_OR_CHECKPOINT")
    knn.add_argument("--k", type=int, default=200, help="neighbours that vote [200]")
    knn.add_argument("--temperature", type=float, default=0.07, help="of the vote [0.07]")
    knn.add_argument(
        "--index", default="flat", choices=["flat", "ivf", "hnsw"], help="faiss index [flat]"
    )
    knn.add_argument("--bank-limit", type=int, help="training images used [all]")
    knn.add_argument("--query-limit", type=int, help="test images used [all]")
    knn.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    knn.set_defaults(command=_evaluate_knn)

    listing = commands.add_parser(
        "list", parents=[common], help="what is registered: name, one line, paper"
    )
    listing.add_argument("kind", nargs="?", choices=list(KINDS), help="one kind only")
    listing.set_defaults(command=_list)

    data = commands.add_parser("data", help="get a data set, or look at a config's views")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    get = actions.add_parser(
        "get", parents=[common], help="obtain a data set, saying where it is looked for"
    )
    get.add_argument("name", metavar="NAME", help="fashion_mnist, cifar10, cifar100 or stl10")
    get.add_argument("--root", type=Path, help="folder [$SSL_ZOO_DATA, or ./data]")
    get.set_defaults(command=_data_get)
    show = actions.add_parser(
        "show", parents=[common], help="write a PNG: images and the views a config makes of them"
    )
    show.add_argument("config", type=Path, metavar="CONFIG")
    show.add_argument("overrides", nargs="*", metavar="key=value")
    show.add_argument("--out", type=Path, default=Path("views.png"), help="file [views.png]")
    show.add_argument("--samples", type=int, default=8, help="rows [8]")
    show.set_defaults(command=_data_show)
    return parser


def _train(arguments: argparse.Namespace) -> int:
    from ssl_zoo import build, checkpoint, config, distributed
    from ssl_zoo.hooks import Interrupted

    cfg = config.load(arguments.config, arguments.overrides)
    resolved = build.parse(cfg).spelled_out()
    if arguments.check:
        print(f"{arguments.config}: ok")
        return 0
    folder = arguments.out or run_folder(arguments.config, resolved["seed"])
    device = distributed.start(arguments.device)
    # One rank looks and writes; all ranks act on what it found.
    found = distributed.attempt(lambda: _open_folder(folder, resolved, arguments.resume, device))
    if found == "finished":
        distributed.stop()
        return 0
    try:
        trainer = build.trainer(cfg, device, folder)
        if found:
            checkpoint.restore(trainer, folder / "checkpoints" / found)
        trainer.forget_after_step()
        trainer.say(
            f"{trainer.name}: {'from step ' + str(trainer.step) if found else 'starting'}, "
            f"{trainer.total_steps} steps of {trainer.data.batch_size} images on {device}"
        )
        if not found and (remark := trainer.method.remark(trainer.data.batch_size)):
            trainer.say(f"{trainer.name}: {remark}")
        trainer.fit()
        trainer.say(f"{trainer.name}: finished; results in {folder}")
    except Interrupted as stop:
        raise Interrupted(f"{stop}\nThe same command with --resume goes on from there.") from None
    except Exception as error:
        if distributed.is_main():
            text = f"{_message(error)}\n\n{traceback.format_exc()}"
            (folder / "error.txt").write_text(text, encoding="utf-8")
        raise
    distributed.stop()  # not after an error: the other ranks may sit in a collective
    return 0


def _open_folder(folder: Path, resolved: dict, resume: bool, device) -> str:
    """Makes a run folder ready; returns 'finished', a checkpoint's name to resume from, or ''.

    Raises:
        FileExistsError: the folder holds another run, or this one and `resume` was not asked for.
    """
    from ssl_zoo import checkpoint, config
    from ssl_zoo.files import write_text

    written, finished = folder / "config.yaml", (folder / "result.json").exists()
    saved = checkpoint.saved(folder)
    changed = config.differences(config.load(written).data, resolved) if written.exists() else []
    if finished or saved:
        if changed:
            changes = "\n  ".join(changed)
            raise FileExistsError(
                f"{folder} holds a run of another config:\n  {changes}\nGive another --out."
            )
        if not resume:
            raise FileExistsError(
                f"{folder} holds a run already: --resume goes on, --out names another folder."
            )
    elif changed:  # nothing worth keeping was saved under the other config
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    if finished:
        print(f"finished already: {folder}")
        return "finished"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    config.dump(resolved, written)
    write_text(folder / "environment.json", json.dumps(environment(device), indent=2))
    return saved[-1].name if saved else ""


def run_folder(path: Path, seed: int) -> Path:
    """runs/<name>/seed<seed>; the name is the path below a folder `configs`, if there is one."""
    parts = path.with_suffix("").parts
    below = parts[parts.index("configs") + 1 :] if "configs" in parts else parts[-1:]
    return Path("runs", *below, f"seed{seed}")


def environment(device) -> dict:
    """What a number depends on besides the config."""
    import torch

    from ssl_zoo import distributed

    versions = {"python": platform.python_version()}
    for package in (
        "ssl_zoo",
        "torch",
        "torchvision",
        "timm",
        "mmengine-lite",
        "faiss-cpu",
        "numpy",
    ):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "versions": versions,
        "git_commit": _git_commit(),
        "device": f"{device}: {name}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": distributed.world(),
        "platform": platform.platform(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")),
        platform.processor(),
    )


def _git_commit() -> str | None:
    """Commit of the package's checkout, with '+' if it has uncommitted changes."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def _ablate(arguments: argparse.Namespace) -> int:
    from ssl_zoo import ablation

    return ablation.ablate(
        arguments.grid,
        out=arguments.out,
        overrides=arguments.overrides,
        only=arguments.only,
        report_only=arguments.report_only,
        base=arguments.base,
    )


def _evaluate_knn(arguments: argparse.Namespace) -> int:
    from ssl_zoo import build, distributed
    from ssl_zoo.evaluation import knn

    device = distributed.start(arguments.device)
    data, backbone, source = build.trained_backbone(arguments.path)
    result = knn.evaluate(
        backbone.to(device),
        data,
        device,
        k=arguments.k,
        temperature=arguments.temperature,
        index=arguments.index,
        bank_limit=arguments.bank_limit,
        query_limit=arguments.query_limit,
    )
    print(
        f"kNN top-1 {result['top1']:.2f}%  top-5 {result['top5']:.2f}%"
        f"  ({source['path']}, step {source['step']})"
    )
    print("protocol: " + ", ".join(f"{name} {value}" for name, value in result["protocol"].items()))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from ssl_zoo import build  # noqa: F401  (registers everything)

    for kind in [arguments.kind] if arguments.kind else KINDS:
        rows = KINDS[kind].summary()
        print(kind)
        width = max(len(name) for name, *_ in rows)
        for name, line, paper in rows:
            cited = f"  [arXiv:{paper}]" if paper and paper not in line else ""
            print(f"  {name:<{width}}  {line}{cited}")
    return 0


def _data_get(arguments: argparse.Namespace) -> int:
    from ssl_zoo.data import fetch

    print(f"{arguments.name} is in {fetch.get(arguments.name, arguments.root)}")
    return 0


def _data_show(arguments: argparse.Namespace) -> int:
    from ssl_zoo import build, config
    from ssl_zoo.data import view_grid

    cfg = config.load(arguments.config, arguments.overrides)
    parts = build.parse(cfg).kwargs
    view_grid(parts["data"](seed=parts.get("seed", 0)), arguments.out, arguments.samples)
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
