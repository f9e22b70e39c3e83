"""MoCo v2 through ssl_zoo and through its peers: images a second, end to end, and peak memory.

python benchmarks/peers.py
python benchmarks/peers.py --short
python benchmarks/peers.py --sizes small --only ssl_zoo plain --rounds 3

Every contender trains the same network on the same images with the same views, batch, queue and
SGD, in a process of its own (peer_workers.py). All are built first; then they take turns, and those
that wait do nothing, so a slow minute of the machine hits all alike.

`--fair PATH` names a clone of facebookresearch/moco. `--peer-python NAME=PATH` names the
interpreter of a virtual environment that holds a peer, so its requirements never meet ours:

    python -m venv peer && peer/bin/pip install stable-pretraining
    python benchmarks/peers.py --peer-python stable_pretraining=peer/bin/python
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from common import ROOT, provenance, ratio, spread, table
from peer_workers import CONTENDERS, Task
from PIL import Image

OURS = "ssl_zoo"
NOTES = {
    "plain": "torchvision's transforms on PIL images, the key encoder and the queue in a loop.",
    "lightly": "its documented plain PyTorch example; on gray images torchvision's views.",
    "fair": "FAIR's builder and loop, one process with gloo, `.cuda()` made to do nothing.",
    "stable_pretraining": "its MoCov2 under Lightning, which runs the key encoder on both views, "
    "and scores queries against a queue that holds their own keys already.",
    "solo_learn": "its MoCoV2Plus under Lightning, symmetric: an image is two queries and two "
    "keys, twice the work.",
}
ELSEWHERE = {"stable_pretraining", "solo_learn"}  # not installed beside ssl_zoo
Rounds = dict[tuple[str, str], list[dict]]  # (contender, precision) -> what it said of each round
SIZES: dict[str, dict] = {
    "small": {
        "title": "Small net (ResNet-10 of half the width) at 28x28, one channel",
        "model": "resnet18",
        "options": {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]},
        "small_images": False,
        "channels": 1,
        "side": 28,
        "batch": 128,
        "queue": 4096,
    },
    "conv4": {
        "title": "Four convolutions (MAML's network, arXiv:1703.03400) at 28x28, one channel",
        "model": "conv4",
        "options": {},
        "small_images": False,
        "channels": 1,
        "side": 28,
        "batch": 128,
        "queue": 4096,
    },
    "tiny": {
        "title": "Tiny net (ResNet-10 of a quarter of the width) at 28x28, one channel",
        "model": "resnet18",
        "options": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
        "small_images": False,
        "channels": 1,
        "side": 28,
        "batch": 128,
        "queue": 4096,
    },
    "resnet18": {
        "title": "ResNet-18 (3x3 stem, no max-pool) at 32x32",
        "model": "resnet18",
        "options": {},
        "small_images": True,
        "channels": 3,
        "side": 32,
        "batch": 256,
        "queue": 65536,
    },
    "resnet50": {
        "title": "ResNet-50 at 224x224, from JPEG files",
        "model": "resnet50",
        "options": {},
        "small_images": False,
        "channels": 3,
        "side": 224,
        "batch": 32,
        "queue": 65536,
    },
}

SIZES_SHOWN = ["conv4", "small", "resnet18", "resnet50"]
IMAGES = {
    "conv4": "gray28.npy",
    "small": "gray28.npy",
    "tiny": "gray28.npy",
    "resnet18": "rgb32.npy",
    "resnet50": "jpeg",
}


# Data.


def fashion_mnist() -> np.ndarray:
    """[60000, 28, 28] uint8."""
    sys.path.insert(0, str(ROOT))
    from ssl_zoo.data.datasets.fashion_mnist import FashionMNIST

    return FashionMNIST("pretrain").images[:, 0].numpy()


def prepare(size: str, folder: Path) -> Path:
    """The images of a size, made once: a file or folder below `folder`."""
    path = folder / IMAGES[size]
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f"half-{path.name}"  # a broken attempt leaves nothing that looks whole
    if path.name == "gray28.npy":
        np.save(half, fashion_mnist())
    elif path.name == "rgb32.npy":
        large = [np.asarray(Image.fromarray(x).resize((32, 32))) for x in fashion_mnist()]
        np.save(half, np.repeat(np.stack(large)[..., None], 3, axis=3))
    else:
        shutil.rmtree(half, ignore_errors=True)
        jpeg_files(half)
    return half.rename(path)


def jpeg_files(folder: Path, count: int = 512) -> None:
    """Photographs of 500 x 375, ImageNet's usual size, cut at random out of scikit-learn's two."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images  # 427 x 640
    random = np.random.default_rng(0)
    (folder / "train" / "all").mkdir(parents=True)
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        top, left = (random.integers(0, n - m + 1) for n, m in ((427, 375), (640, 500)))
        cut = photograph[top : top + 375, left : left + 500]
        Image.fromarray(cut).save(folder / "train" / "all" / f"{i:04}.jpg", quality=90)


# Processes.


class Worker:
    """A contender in its process; silent until asked for a round.

    Raises:
        RuntimeError: it ended; with the end of its log.
    """

    def __init__(self, task: Task, python: str):
        self.log = Path(task.folder) / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, str(ROOT / "benchmarks/peer_workers.py"), json.dumps(asdict(task))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.read()  # built, and one step done

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text().strip().splitlines()[-15:]
            status = self.process.wait()
            killed = "killed; is memory enough for all at once?" if status < 0 else ""
            raise RuntimeError("\n".join([*tail, killed]).strip() or "ended without a word")
        return json.loads(line)

    def round(self, seconds: float) -> dict:
        with contextlib.suppress(BrokenPipeError):  # it is gone: reading tells
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def measure(
    tasks: list[Task],
    pythons: dict[str, str],
    rounds: int,
    seconds: float,
    note: Callable[[str], None],
    keep: Callable[[dict], None] = lambda line: None,
) -> Rounds:
    """Builds all, then lets them take turns; the first round is thrown away.

    Args:
        note: told of those who break, and are left out.
        keep: told of each round at once.
    """
    workers: dict[tuple[str, str], Worker] = {}
    said: Rounds = {}
    try:
        for task in tasks:
            name = (task.contender, task.precision)
            try:
                workers[name] = Worker(task, pythons.get(task.contender, sys.executable))
            except RuntimeError as error:
                note(f"{task.contender}, {task.precision} did not run: {last_line(error)}")
                print(error, file=sys.stderr)
        for number in range(rounds + 1):
            for name, worker in list(workers.items()):
                try:
                    answer = worker.round(seconds)
                except RuntimeError as error:
                    note(f"{', '.join(name)} broke in round {number}: {last_line(error)}")
                    worker.close()
                    del workers[name]
                    said.pop(name, None)
                    continue
                if number > 0:
                    said.setdefault(name, []).append(answer)
                    keep({"contender": name[0], "precision": name[1], "round": number, **answer})
                print(
                    f"round {number}: {', '.join(name)}: {speed(answer):.1f} images/s"
                    f" ({answer['steps']} steps, {answer['peak_gb']:.2f} GB)",
                    flush=True,
                )
    finally:
        for worker in workers.values():
            worker.close()
    return said


def last_line(error: Exception) -> str:
    return str(error).splitlines()[-1]


def speed(answer: dict) -> float:
    return answer["images"] / answer["seconds"]


# Tables.


def best_peer(said: Rounds, precision: str) -> list[float] | None:
    """Images/s of each round of the fastest peer in this precision."""
    peers = [
        [speed(answer) for answer in answers]
        for (contender, kind), answers in said.items()
        if contender != OURS and kind == precision
    ]
    return max(peers, key=statistics.median, default=None)


def size_table(said: Rounds, precisions: list[str]) -> str:
    best = {p: best_peer(said, p) for p in precisions}
    rows = []
    for (contender, precision), answers in said.items():
        speeds = [speed(answer) for answer in answers]
        rows.append(
            [
                contender,
                precision,
                f"{statistics.median(speeds):.1f}",
                spread(speeds),
                *("" if best[p] is None else f"{ratio(speeds, best[p]):.2f}" for p in precisions),
                f"{max(answer['peak_gb'] for answer in answers):.2f}",
            ]
        )
    rows.sort(key=lambda row: (precisions.index(row[1]), -float(row[2])))
    header = ["contender", "precision", "images/s", "lowest to highest"]
    header += [f"to best {p} peer" for p in precisions]
    return table(rows, [*header, "peak GB"])


def best_workers(size: str, make, pythons: dict[str, str], seconds: float) -> tuple[int, str]:
    """How many data workers suit the peers here, tried on the plain loop; and what was seen."""
    medians = {}
    for workers in (0, 1, 2):
        said = measure([make("plain", "fp32", workers)], pythons, 2, seconds, note=print)
        medians[workers] = statistics.median(speed(a) for a in said["plain", "fp32"])
    seen = ", ".join(f"{n}: {value:.1f}" for n, value in medians.items())
    return max(medians, key=medians.__getitem__), seen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--sizes",
        nargs="+",
        choices=SIZES,
        default=SIZES_SHOWN,
        metavar="SIZE",
        help=f"of {', '.join(SIZES)} [{' '.join(SIZES_SHOWN)}]",
    )
    add("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    add("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=10, help="of a round; at least one step [10]")
    add("--batch", type=int, help="another batch size than the recipe's")
    add("--workers", type=int, help="data workers of the peers [the best of 0, 1 and 2]")
    add("--data", type=Path, default=ROOT / "data" / "benchmarks", help="where images are kept")
    add("--fair", help="a clone of facebookresearch/moco")
    add("--peer-python", nargs="+", default=[], metavar="NAME=PATH", help="a peer's interpreter")
    add("--out", type=Path, help="a file for the table; all rounds go to a .jsonl file beside it")
    add("--short", action="store_true", help="three minutes: small batch, three contenders")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.sizes, arguments.only = ["small", "resnet18"], ["ssl_zoo", "plain", "lightly"]
        arguments.rounds, arguments.seconds, arguments.workers = 2, 2, 0
        arguments.batch = 128
    pythons = dict(item.split("=", 1) for item in arguments.peer_python)
    text = [f"# MoCo v2 through ssl_zoo and its peers\n\n{provenance(shown_command())}"]
    with tempfile.TemporaryDirectory() as scratch:
        for size in arguments.sizes:
            text.append(run(size, arguments, pythons, Path(scratch)))
            print("\n" + text[-1] + "\n", flush=True)
            if arguments.out:
                arguments.out.write_text("\n\n".join(text) + "\n", encoding="utf-8")


def shown_command() -> str:
    return " ".join(["python benchmarks/peers.py", *sys.argv[1:]])


def run(size: str, arguments: argparse.Namespace, pythons: dict[str, str], scratch: Path) -> str:
    """The section of one size."""
    recipe = {**SIZES[size], "data": str(prepare(size, arguments.data.resolve()))}
    title = recipe.pop("title")
    if arguments.batch:
        recipe["batch"] = arguments.batch
    notes: list[str] = []

    def make(contender: str, precision: str, workers: int) -> Task:
        return Task(
            contender=contender,
            precision=precision,
            workers=workers,
            folder=tempfile.mkdtemp(dir=scratch),
            fair=arguments.fair,
            **recipe,
        )

    if arguments.workers is None:
        workers, seen = best_workers(size, make, pythons, arguments.seconds)
        notes.append(f"Data workers of the peers: {workers} (images/s of plain, fp32, {seen}).")
    else:
        workers = arguments.workers
        notes.append(f"Data workers of the peers: {workers}, as asked.")
    missing = {name for name in arguments.only if name in ELSEWHERE and name not in pythons}
    if arguments.fair is None and "fair" in arguments.only:
        missing.add("fair")
    for name in sorted(missing):
        notes.append(f"{name}: not installed, not measured.")
    present = [name for name in arguments.only if name not in missing]
    tasks = [
        make(name, precision, workers) for precision in arguments.precisions for name in present
    ]

    def keep(line: dict) -> None:
        if arguments.out:
            with arguments.out.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"size": size, **line}) + "\n")

    said = measure(tasks, pythons, arguments.rounds, arguments.seconds, notes.append, keep)
    worst = max((answer["others"] for answers in said.values() for answer in answers), default=0)
    notes.append(f"Other processes had at most {worst:.0%} of the machine in any round.")
    notes += [f"{name}: {text}" for name, text in NOTES.items() if name in present]
    about = f"Batch {recipe['batch']}, K {recipe['queue']}, {arguments.rounds} rounds."
    listed = "\n".join(f"- {text}" for text in notes)
    return "\n\n".join([f"## {title}", about, size_table(said, arguments.precisions), listed])


if __name__ == "__main__":
    main()
