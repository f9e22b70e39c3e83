"""MoCo v2 through ssl_zoo and through its peers: images a second, end to end, and peak memory.

python benchmarks/peers.py --out results/speed_peers.json     # a quarter of an hour on 2 cores
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
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from common import ROOT, Measured, Table, ratio, spread
from peer_workers import CONTENDERS, Task
from PIL import Image

OURS = "ssl_zoo"
NOTES = {
    "plain": "torchvision's transforms on PIL images, the key encoder and the queue in a loop",
    "lightly": "its documented plain PyTorch example; on gray images torchvision's views",
    "fair": "FAIR's builder and loop, one process with gloo, `.cuda()` made to do nothing",
    "stable_pretraining": "its MoCov2 under Lightning, which runs the key encoder on both views, "
    "and scores queries against a queue that holds their own keys already",
    "solo_learn": "its MoCoV2Plus under Lightning, symmetric: an image is two queries and two "
    "keys, twice the work",
}
ELSEWHERE = {"stable_pretraining", "solo_learn"}  # not installed beside ssl_zoo
Rounds = dict[tuple[str, str], list[dict]]  # (contender, precision) -> what it said of each round
# `workers`, of the peers' data loaders: of 0, 1 and 2 what suited the plain loop on two cores.
# `precisions`: six processes of a ResNet-50 at 224 would take more than 24 GB.
SIZES: dict[str, dict] = {
    "small": {
        "title": "ResNet-10 of half the width, 28 x 28 gray",
        "model": "resnet18",
        "options": {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]},
        "small_images": False,
        "channels": 1,
        "side": 28,
        "batch": 128,
        "queue": 4096,
        "workers": 0,
        "precisions": ["fp32", "bf16"],
    },
    "conv4": {
        "title": "four convolutions, 28 x 28 gray",
        "model": "conv4",
        "options": {},
        "small_images": False,
        "channels": 1,
        "side": 28,
        "batch": 128,
        "queue": 4096,
        "workers": 0,
        "precisions": ["fp32", "bf16"],
    },
    "tiny": {
        "title": "ResNet-10 of a quarter of the width, 28 x 28 gray",
        "model": "resnet18",
        "options": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
        "small_images": False,
        "channels": 1,
        "side": 28,
        "batch": 128,
        "queue": 4096,
        "workers": 0,
        "precisions": ["fp32", "bf16"],
    },
    "resnet18": {
        "title": "ResNet-18, 32 x 32",
        "model": "resnet18",
        "options": {},
        "small_images": True,
        "channels": 3,
        "side": 32,
        "batch": 256,
        "queue": 65536,
        "workers": 0,
        "precisions": ["fp32", "bf16"],
    },
    "resnet50": {
        "title": "ResNet-50, 224 x 224 from JPEG files",
        "model": "resnet50",
        "options": {},
        "small_images": False,
        "channels": 3,
        "side": 224,
        "batch": 32,
        "queue": 65536,
        "workers": 1,
        "precisions": ["bf16"],
    },
}

SIZES_SHOWN = ["resnet18", "small", "conv4", "resnet50"]
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
) -> Rounds:
    """Builds all, then lets them take turns; the first round is thrown away.

    Args:
        note: told of those who break, and are left out.
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


def contender_rows(said: Rounds) -> list[list]:
    """Of one size, the fastest first; as CONTENDER_COLUMNS, without the size."""
    best = [best_peer(said, precision) for precision in ("fp32", "bf16")]
    rows = []
    for (contender, precision), answers in said.items():
        speeds = [speed(answer) for answer in answers]
        times = [ratio(speeds, peer) if peer else None for peer in best]
        peak = max(answer["peak_gb"] for answer in answers)
        rows.append([contender, precision, *spread(speeds), *times, peak])
    return sorted(rows, key=lambda row: (row[1], row[2]), reverse=True)


CONTENDER_COLUMNS = {
    "network and images": "",
    "contender": "",
    "precision": "",
    "images/s": ".1f",
    "lowest": ".1f",
    "highest": ".1f",
    "to best fp32 peer": ".2f",
    "to best bf16 peer": ".2f",
    "peak GB": ".2f",
}


def summary_row(said: Rounds) -> list:
    """Ours in its faster precision, and the best peer in each; as SUMMARY_COLUMNS, without size."""
    ours = [[speed(a) for a in answers] for (name, _), answers in said.items() if name == OURS]
    best = [best_peer(said, precision) for precision in ("fp32", "bf16")]
    ours = max(ours, key=statistics.median, default=None)
    medians = [statistics.median(speeds) if speeds else None for speeds in (ours, *best)]
    return [*medians, *(ratio(ours, peer) if ours and peer else None for peer in best)]


SUMMARY_COLUMNS = {
    "network and images": "",
    "ssl_zoo, images/s": ".1f",
    "best peer, fp32": ".1f",
    "best peer, bf16": ".1f",
    "times the one": ".2f",
    "times the other": ".2f",
}


def main(argv: list[str] | None = None) -> None:
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
    add("--precisions", nargs="+", choices=["fp32", "bf16"], help="[both; bf16 for ResNet-50]")
    add("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    add("--rounds", type=int, default=3, help="after one that is thrown away [3]")
    add("--seconds", type=float, default=4, help="of a round; at least one step [4]")
    add("--batch", type=int, help="another batch size than the recipe's")
    add("--workers", type=int, help="data workers of the peers [0; 1 for ResNet-50]")
    add("--data", type=Path, default=ROOT / "data" / "benchmarks", help="where images are kept")
    add("--fair", help="a clone of facebookresearch/moco")
    add("--peer-python", nargs="+", default=[], metavar="NAME=PATH", help="a peer's interpreter")
    add("--out", type=Path, help="a result file, JSON")
    add("--short", action="store_true", help="three minutes: small batch, three contenders")
    arguments = parser.parse_args(argv)
    if arguments.short:
        arguments.sizes, arguments.only = ["small", "resnet18"], ["ssl_zoo", "plain", "lightly"]
        arguments.rounds, arguments.seconds, arguments.batch = 2, 2, 128
    pythons = dict(item.split("=", 1) for item in arguments.peer_python)
    missing = ELSEWHERE - set(pythons) | (set() if arguments.fair else {"fair"})
    present = [name for name in arguments.only if name not in missing]
    absent = [name for name in arguments.only if name in missing]
    measured = Measured("peers.py", sys.argv[1:] if argv is None else argv)
    whole: list[list] = []
    summary: list[list] = []
    notes = [f"{name}: {NOTES[name]}." for name in present if name in NOTES]
    notes += [f"Not installed and not measured: {', '.join(absent)}."] if absent else []
    with tempfile.TemporaryDirectory() as scratch:
        for size in arguments.sizes:
            title = SIZES[size]["title"]
            said, of_size = run(size, present, arguments, pythons, Path(scratch))
            rows = [[title, *row] for row in contender_rows(said)]
            print(f"\n{Table(title, CONTENDER_COLUMNS, rows, of_size)}\n", flush=True)
            whole += rows
            summary.append([title, *summary_row(said)])
            notes.append(f"{title}: {of_size}")
    medians = f"{arguments.rounds} rounds"
    measured.add(
        "contenders", Table("Contenders", CONTENDER_COLUMNS, whole, " ".join(notes), medians)
    )
    measured.add("summary", Table("Against the best peer", SUMMARY_COLUMNS, summary, "", medians))
    measured.finish(arguments.out)


def run(
    size: str,
    names: Sequence[str],
    arguments: argparse.Namespace,
    pythons: dict[str, str],
    scratch: Path,
) -> tuple[Rounds, str]:
    """What contenders said at one size, and what is to be said of it."""
    recipe = {**SIZES[size], "data": str(prepare(size, arguments.data.resolve()))}
    precisions = recipe.pop("precisions")
    del recipe["title"]
    if arguments.batch:
        recipe["batch"] = arguments.batch
    if arguments.workers is not None:
        recipe["workers"] = arguments.workers
    tasks = [
        Task(
            contender=name,
            precision=precision,
            folder=tempfile.mkdtemp(dir=scratch),
            fair=arguments.fair,
            **recipe,
        )
        for precision in arguments.precisions or precisions
        for name in names
    ]
    notes: list[str] = []
    said = measure(tasks, pythons, arguments.rounds, arguments.seconds, notes.append)
    worst = max((answer["others"] for answers in said.values() for answer in answers), default=0)
    about = (
        f"batch {recipe['batch']}, K {recipe['queue']}, data workers of the peers "
        f"{recipe['workers']}; other processes had at most {worst:.0%} of the machine"
    )
    return said, "; ".join([about, *notes]) + "."


if __name__ == "__main__":
    main()
