"""Whether a change of structure changed a number: short runs of many methods, compared.

    python benchmarks/golden.py record before.json --checkout ../before
    python benchmarks/golden.py record after.json
    python benchmarks/golden.py compare before.json after.json

Sixty steps of fourteen small configs (two of them in bf16), one on two ranks, one accumulated, one
resumed in the middle. All that is logged is kept, and a kNN vote and linear probes, but for times
and memory. One thread a process: sums in another order are other sums. Numbers are those of one
machine and one torch, so the files are not committed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
COMMON = [
    "data.dataset.limit=1920",
    "data.batch_size=32",
    "data.workers=0",
    "train.epochs=1",
    "train.log_every=10",
    "train.precision=fp32",
    "evaluations.knn.every_epochs=0.5",
    "evaluations.knn.k=20",
    "checkpoint.every_epochs=0.5",
]
DEMO = ["backbone.bn_groups=4", "method.loss.temperature=0.1"]
# (config below configs/fashion_mnist, what it sets besides)
CASES: dict[str, tuple[str, list[str]]] = {
    "moco": ("demo", [*DEMO, "method.memory.size=512"]),
    "end to end": ("demo", [*DEMO, "method.memory={type: EndToEnd}"]),
    "memory bank": ("demo", [*DEMO, "method.memory={type: MemoryBank, num_negatives: 512}"]),
    "simclr": ("simclr", []),
    "byol": ("byol", []),
    "swav": (
        "swav",
        ["method.queue_size=64", "method.queue_from_step=10", "method.frozen_steps=60"],
    ),
    "dino": ("dino", ["method.frozen_steps=10"]),
    "ibot": ("ibot", ["method.frozen_steps=60"]),
    "deepcluster": ("deepcluster", ["method.clusters=20"]),
    "pirl": ("pirl", []),
    "mae": ("mae", []),
    "cpc": ("cpc", []),
    "moco, bf16": ("demo", [*DEMO, "method.memory.size=512", "train.precision=bf16"]),
    "dino, bf16": ("dino", ["method.frozen_steps=10", "train.precision=bf16"]),
    "moco, two ranks": ("demo", [*DEMO, "method.memory.size=512", "backbone.bn_groups=2"]),
    "moco, accumulated": ("demo", [*DEMO, "method.memory.size=512", "train.accumulate=2"]),
    "moco, resumed": ("demo", [*DEMO, "method.memory.size=512"]),
}
NOT_COMPARED = {"seconds", "images_per_s", "peak_memory_gb", "torch", "protocol", "hash", "folder"}


def spelled(overrides: list[str], old: bool, case: str) -> list[str]:
    """Overrides in the names of before evaluations were registered parts, for such a checkout."""
    if not old:
        return overrides
    found = [text.replace("evaluations.knn.", "knn.") for text in overrides]
    return [*found, "data.views.count=1"] if case == "memory bank" else found


def run(checkout: Path, case: str, folder: Path) -> dict:
    old = not (checkout / "ssl_zoo" / "evaluation" / "base.py").exists()
    name, overrides = CASES[case]
    paths = {"PYTHONPATH": str(checkout), "SSL_ZOO_DATA": str(ROOT / "data")}
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    here = {"cwd": checkout, "env": os.environ | paths | threads, "check": True}
    here |= {"stdout": subprocess.DEVNULL}
    python = [sys.executable]
    if "two ranks" in case:
        python += ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
        python += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    train = [*python, "tools/train.py", f"configs/fashion_mnist/{name}.yaml"]
    train += [*spelled([*COMMON, *overrides], old, case), "--out", str(folder)]
    train += ["--device", "cpu"]
    subprocess.run(train, **here)
    if "resumed" in case:  # as if it had been killed in the second half
        (folder / "result.json").unlink()
        for late in (*folder.glob("checkpoints/step_*60.pt"), *folder.glob("checkpoints/best.pt")):
            late.unlink()
        subprocess.run([*train, "--resume"], **here)
    linear = folder / "linear.json"
    settings = (
        ["--lr", "0.1", "1", "10", "--epochs", "5"] if old else ["lrs=[0.1, 1.0, 10.0]", "epochs=5"]
    )
    command = [sys.executable, "tools/evaluate.py", "linear", str(folder), *settings]
    subprocess.run([*command, "--out", str(linear), "--device", "cpu"], **here)
    return {**logged(folder), "linear": probes(json.loads(linear.read_text()))}


def logged(folder: Path) -> dict[str, list]:
    """{what and where: values} of a run's metrics, in the order of the steps."""
    found: dict[str, list] = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        kind = {"knn": "evaluation"}.get(line["kind"], line["kind"])
        if kind == "baseline":  # before, their names were shorter
            of = line.get("baseline", line["name"])
            kind = f"baseline {'pixels' if 'pixels' in of else 'random'}"
        for key, value in line.items():
            if key in NOT_COMPARED or not isinstance(value, int | float):
                continue
            found.setdefault(f"{kind} {key}", []).append([line["step"], value])
    return {name: sorted(values) for name, values in sorted(found.items())}


def probes(result: dict) -> list:
    linear = result.get("linear", result)
    linear = linear.get("metrics", linear)
    return [linear["top1"], linear["top5"]]


def record(out: Path, checkout: Path, only: list[str]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(2) as pool:
        jobs = {
            case: pool.submit(run, checkout, case, Path(work, case.replace(" ", "-")))
            for case in only or CASES
        }
        numbers = {}
        for case, job in jobs.items():
            numbers[case] = job.result()
            print(f"{case}: {sum(map(len, numbers[case].values()))} numbers", flush=True)
        shutil.rmtree(work, ignore_errors=True)
    machine = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    out.write_text(json.dumps({"machine": machine, "cases": numbers}, indent=1))


def compare(before: Path, after: Path) -> int:
    """Prints a row a case; 1 if any number differs, or is in one file alone."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    failed = old["machine"] != new["machine"]
    if failed:
        print(f"of different machines: {old['machine']}, {new['machine']}")
    print("| case | numbers | equal | largest difference | only in one |")
    print("|---|---|---|---|---|")
    for case in dict.fromkeys([*old["cases"], *new["cases"]]):
        one, other = (cases["cases"].get(case, {}) for cases in (old, new))
        alone = sorted(one.keys() ^ other.keys())
        both = [name for name in one if name in other]
        alone += [name for name in both if len(one[name]) != len(other[name])]
        pairs = [pair for name in both for pair in zip(one[name], other[name], strict=False)]
        equal = sum(a == b or (a != a and b != b) for a, b in pairs)
        gaps = [abs(_last(a) - _last(b)) for a, b in pairs]
        failed |= equal < len(pairs) or bool(alone)
        row = [case, str(len(pairs)), str(equal), f"{max(gaps, default=0):.2g}", ", ".join(alone)]
        print(f"| {' | '.join(row)} |")
        for name in both:
            different = [(a, b) for a, b in zip(one[name], other[name], strict=False) if a != b]
            if different:
                print(f"    {name}: {different[0][0]} -> {different[0][1]}")
    return int(failed)


def _last(value) -> float:
    return float(value[-1] if isinstance(value, list) else value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    recording = commands.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--checkout", type=Path, default=ROOT)
    recording.add_argument("--only", nargs="+", choices=CASES, default=[])
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "compare":
        return compare(arguments.before, arguments.after)
    record(arguments.out, arguments.checkout.resolve(), arguments.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
