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

from ssl_zoo.config import (
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
    from ssl_zoo.engine.hooks import Interrupted
    from ssl_zoo.engine.trainer import NonFiniteLoss

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

    _add_evaluate(commands, common)

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
    pack = actions.add_parser(
        "pack",
        parents=[common],
        help="decode a folder set once, into files that are memory-mapped",
        description="Writes train.pack and test.pack: the images of the config's data.dataset, "
        "decoded, the shorter side at most --size pixels. Train on them with "
        "data.dataset='{type: Packed, path: FOLDER}'. An interrupted pack leaves nothing behind; "
        "a finished one is kept.",
    )
    pack.add_argument("config", type=Path, metavar="CONFIG")
    pack.add_argument("overrides", nargs="*", metavar="key=value")
    pack.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    pack.add_argument("--size", type=int, default=256, help="pixels of the shorter side [256]")
    pack.add_argument("--splits", nargs="+", default=["train", "test"], choices=["train", "test"])
    pack.set_defaults(command=_data_pack)
    return parser


def _add_evaluate(commands, common: argparse.ArgumentParser) -> None:
    """The protocols share the features' options, and `all` shares the features themselves."""
    features = argparse.ArgumentParser(add_help=False)
    features.add_argument(
        "path",
        type=Path,
        metavar="RUN_OR_CHECKPOINT",
        help="or a config, for the random weights that its runs start from",
    )
    features.add_argument(
        "--train-limit", "--bank-limit", type=int, metavar="N", help="training images used [all]"
    )
    features.add_argument(
        "--test-limit", "--query-limit", type=int, metavar="N", help="test images used [all]"
    )
    features.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "bf16", "fp16"],
        help="of the backbone's pass; below fp32 numbers move [fp32]",
    )
    features.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    features.add_argument(
        "--out", type=Path, metavar="FILE", help="write the results there as JSON as well"
    )

    knn = argparse.ArgumentParser(add_help=False)
    knn.add_argument("--k", type=int, default=200, help="neighbours that vote [200]")
    knn.add_argument("--temperature", type=float, default=0.07, help="of the vote [0.07]")
    knn.add_argument(
        "--index", default="flat", choices=["flat", "ivf", "hnsw"], help="faiss index [flat]"
    )

    linear = argparse.ArgumentParser(add_help=False)
    linear.add_argument(
        "--lr", type=float, nargs="+", metavar="LR", help="learning rates [31 from 0.001 to 100]"
    )
    linear.add_argument(
        "--weight-decay",
        type=float,
        nargs="+",
        default=[0.0],
        metavar="WD",
        help="each with every learning rate [0]",
    )
    linear.add_argument("--epochs", type=int, default=100, help="of every probe [100]")
    linear.add_argument(
        "--standardize", action="store_true", help="bring features to mean 0 and variance 1"
    )
    linear.add_argument("--seed", type=int, default=0, help="order, and what is held out [0]")

    evaluate = commands.add_parser("evaluate", help="evaluate a trained backbone")
    protocols = evaluate.add_subparsers(required=True, metavar="PROTOCOL")
    for name, options, summary in (
        ("knn", [knn], "weighted k-nearest-neighbour vote (arXiv:1805.01978)"),
        ("linear", [linear], "linear probes on clean features, the best learning rate of many"),
        ("all", [knn, linear], "all of them, on features extracted once"),
    ):
        protocol = protocols.add_parser(
            name, parents=[common, features, *options], help=summary, description=summary + "."
        )
        protocol.set_defaults(command=_evaluate, protocols=name)


def _train(arguments: argparse.Namespace) -> int:
    from ssl_zoo import config
    from ssl_zoo.engine import checkpoint
    from ssl_zoo.engine.hooks import Interrupted
    from ssl_zoo.experiment import build
    from ssl_zoo.system import distributed

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
            f"{trainer.total_steps} steps of {trainer.data.batch_size} images on {device} "
            f"in {trainer.precision} ({trainer.precision_reason})"
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
    from ssl_zoo import config
    from ssl_zoo.engine import checkpoint
    from ssl_zoo.system.files import write_text

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

    from ssl_zoo.system import distributed

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
    from ssl_zoo.study import ablation

    return ablation.ablate(
        arguments.grid,
        out=arguments.out,
        overrides=arguments.overrides,
        only=arguments.only,
        report_only=arguments.report_only,
        base=arguments.base,
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    from ssl_zoo.config import at_least
    from ssl_zoo.evaluation import knn, linear
    from ssl_zoo.evaluation.features import check_labels, extract_splits
    from ssl_zoo.experiment import build
    from ssl_zoo.system import distributed
    from ssl_zoo.system.files import write_text
    from ssl_zoo.system.hardware import keep_freed_memory

    at_least("--train-limit", arguments.train_limit, 1)
    at_least("--test-limit", arguments.test_limit, 1)
    if (out := arguments.out) is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ValueError(f"--out {out}: expected a file in a folder that exists")
    votes, probes = (arguments.protocols in (name, "all") for name in ("knn", "linear"))
    if votes:
        vote = {name: getattr(arguments, name) for name in ("k", "temperature", "index")}
        knn.check_protocol(arguments.k, arguments.temperature, arguments.train_limit)
    if probes:
        probe = {name: getattr(arguments, name) for name in ("epochs", "standardize", "seed")}
        probe |= {"lrs": arguments.lr or linear.LRS, "weight_decays": arguments.weight_decay}
        linear.check_protocol(**probe)
    keep_freed_memory()
    device = distributed.start(arguments.device)
    data, backbone, source = build.trained_backbone(arguments.path, device)
    # What a protocol would refuse is refused before the features are paid for.
    for split in ("train", "test"):
        check_labels("evaluation", split, data.split(split).labels)
    if votes:
        images = len(data.split("train"))
        bank = min(images, arguments.train_limit or images)
        knn.check_protocol(arguments.k, arguments.temperature, bank)
    features = extract_splits(
        backbone.to(device),
        data,
        device,
        train_limit=arguments.train_limit,
        test_limit=arguments.test_limit,
        precision=arguments.precision,
    )
    results = {"source": source}

    def write() -> None:
        if arguments.out is not None and distributed.is_main():
            write_text(arguments.out, json.dumps(results, indent=2) + "\n")

    if votes:
        results["knn"] = knn.of_features(features, **vote)
        _report("kNN", results["knn"], source)
        write()  # the probes take longer, and may be interrupted
    if probes:
        results["linear"] = linear.of_features(features, device, **probe)
        _report("linear", results["linear"], source)
        _report_probes(results["linear"])
        write()
    distributed.stop()
    return 0


def _report(name: str, result: dict, source: dict) -> None:
    from ssl_zoo.system import distributed

    if distributed.is_main():
        print(
            f"{name} top-1 {result['top1']:.2f}%  top-5 {result['top5']:.2f}%"
            f"  ({source['path']}, step {source['step']})"
        )
        said = (f"{name} {value}" for name, value in result["protocol"].items())
        print("protocol: " + ", ".join(said))


def _report_probes(result: dict) -> None:
    from ssl_zoo.system import distributed

    if distributed.is_main():
        print(f"selected: lr {result['lr']:g}, weight decay {result['weight_decay']:g}; held out:")
        for probe in result["probes"]:
            top1 = probe["held_out_top1"]
            shown = "diverged" if top1 is None else f"{top1:.2f}%"
            print(f"  lr {probe['lr']:<10g} weight decay {probe['weight_decay']:<8g} {shown}")
        tried = {probe["lr"] for probe in result["probes"]}
        if len(tried) > 1 and result["lr"] in (min(tried), max(tried)):
            print("the selected lr is at the end of those tried: a wider --lr may do better")


def _list(arguments: argparse.Namespace) -> int:
    from ssl_zoo.experiment import build  # noqa: F401

    for kind in [arguments.kind] if arguments.kind else KINDS:
        rows = KINDS[kind].summary()
        print(kind)
        width = max(len(name) for name, *_ in rows)
        for name, line, paper in rows:
            cited = f"  [arXiv:{paper}]" if paper and paper not in line else ""
            if kind == "methods":
                target = METHODS.get(name)
                cited += f"  ({target.family}; needs {target.needs})"
            print(f"  {name:<{width}}  {line}{cited}")
    return 0


def _data_get(arguments: argparse.Namespace) -> int:
    from ssl_zoo.data import fetch

    print(f"{arguments.name} is in {fetch.get(arguments.name, arguments.root)}")
    return 0


def _data_show(arguments: argparse.Namespace) -> int:
    from ssl_zoo import config
    from ssl_zoo.config import at_least
    from ssl_zoo.data import view_grid
    from ssl_zoo.experiment import build

    at_least("--samples", arguments.samples, 1)
    cfg = config.load(arguments.config, arguments.overrides)
    parts = build.parse(cfg).kwargs
    view_grid(parts["data"](seed=parts.get("seed", 0)), arguments.out, arguments.samples)
    print(arguments.out)
    return 0


def _data_pack(arguments: argparse.Namespace) -> int:
    from ssl_zoo import config
    from ssl_zoo.data import ImageFolder
    from ssl_zoo.data.datasets import packed
    from ssl_zoo.experiment import build
    from ssl_zoo.system.hardware import cores

    cfg = config.load(arguments.config, arguments.overrides)
    dataset = build.parse(cfg).kwargs["data"].kwargs["dataset"]
    if not (isinstance(dataset.target, type) and issubclass(dataset.target, ImageFolder)):
        raise ValueError(
            f"data.dataset is {dataset.type}: only folders of images can be packed "
            "(ImageFolder, ImageNet)"
        )
    for split in arguments.splits:
        path = arguments.out / f"{split}.pack"
        packed.pack(dataset(split=split), path, arguments.size, workers=cores())
    print(f"train with data.dataset='{{type: Packed, path: {arguments.out}}}'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
