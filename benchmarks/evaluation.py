"""What evaluation costs: the kNN search, the features, the linear probes.

python benchmarks/evaluation.py --out results/speed_evaluation.json
python benchmarks/evaluation.py [--rounds N] [--only search extraction probes]

Search: 10,000 queries against 60,000 x 512, k 200, with faiss as the vote uses it and with a
blocked matrix product and topk in torch. Extraction: images of a network's own input size through
it, without loading. Probes: 36 of 54,000 x 512 features in one pass, and one after the other.
Contenders of one table are measured in turn; figures are medians.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from common import Measured, Table, interleaved, seconds
from torch import Tensor
from torch.nn import functional as F

from ssl_zoo.backbones import Timm
from ssl_zoo.backbones.cpu import speed_up
from ssl_zoo.evaluation import features, knn, linear
from ssl_zoo.ops.kmeans import faiss_threads
from ssl_zoo.system.hardware import keep_freed_memory

BANK, QUERIES, WIDTH, K, CLASSES = 60_000, 10_000, 512, 200, 10
BATCH = 256
PROBES = list(itertools.product([10 ** (i / 3 - 2) for i in range(12)], [0.0, 1e-5, 1e-4]))
DEMO = {"in_chans": 1, "options": {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}}
NETWORKS = {  # arguments, shape of an image, images a round
    "ResNet-18, 32 x 32": ({"small_images": True}, (3, 32, 32), 512),
    "ResNet-10 of half the width, 28 x 28 gray": (DEMO, (1, 28, 28), 8192),
}


def search(rounds: int) -> Table:
    bank, queries = (F.normalize(torch.randn(n, WIDTH), dim=1) for n in (BANK, QUERIES))
    index, _ = knn.build_index(bank, "flat", K)
    every = torch.get_num_threads()

    def with_faiss(threads: int, block: int) -> Callable[[], float]:
        def measure() -> float:
            torch.set_num_threads(threads)
            with faiss_threads():
                taken = seconds(lambda: [index.search(q.numpy(), K) for q in queries.split(block)])
            torch.set_num_threads(every)
            return taken

        return measure

    def in_torch(block: int) -> float:
        return seconds(lambda: [(q @ bank.T).topk(K) for q in queries.split(block)])

    contenders = {
        f"faiss, {threads} of {every} threads, blocks of {block}": with_faiss(threads, block)
        for threads, block in sorted(
            {(1, knn.QUERIES_AT_ONCE), (every, 500), (every, knn.QUERIES_AT_ONCE)}
        )
    }
    contenders[f"torch, {every} threads, blocks of 500"] = lambda: in_torch(500)
    measured = interleaved(contenders, rounds)
    rows = [[name, statistics.median(times)] for name, times in measured.items()]
    about = f"{QUERIES:,} queries, a bank of {BANK:,} x {WIDTH}, k {K}."
    return Table("kNN's search", {"by": "", "s": ".2f"}, rows, about, f"{rounds} rounds")


def extraction(rounds: int) -> Table:
    def contender(network: Timm, images: Tensor, precision: str):
        nothing = torch.zeros(len(images), dtype=torch.int64)  # labels, and positions
        batches = list(zip(*(x.split(BATCH) for x in (images, nothing, nothing)), strict=True))

        def measure() -> float:
            taken = seconds(lambda: features.extract(network, batches, "cpu", precision))
            return len(images) / taken

        return measure

    rows = []
    for name, (arguments, shape, count) in NETWORKS.items():
        contiguous, network = (speed_up(Timm(name="resnet18", **arguments)) for _ in range(2))
        network.to(memory_format=torch.channels_last)
        images = torch.randn(count, *shape)
        contenders = {
            "contiguous, fp32": contender(contiguous, images, "fp32"),
            "channels last, fp32": contender(network, images, "fp32"),
            "channels last, bf16": contender(network, images, "bf16"),
        }
        for how, rates in interleaved(contenders, rounds).items():
            rows.append([name, how, statistics.median(rates)])
    columns = {"network": "", "how": "", "images/s": ",.0f"}
    return Table("Features", columns, rows, f"Batch {BATCH}.", f"{rounds} rounds")


def probes(rounds: int) -> Table:
    x, y = torch.randn(BANK * 9 // 10, WIDTH), torch.randint(CLASSES, (BANK * 9 // 10,))

    def epoch(pairs: list[tuple[float, float]]) -> None:
        trained = linear.Probes(WIDTH, CLASSES, *zip(*pairs, strict=True))
        trained.fit(x, y, epochs=1, batch_size=256, momentum=0.9, seed=0)

    measured = interleaved(
        {
            f"{len(PROBES)} probes in one pass": lambda: seconds(lambda: epoch(PROBES)),
            f"{len(PROBES)} passes of one probe": lambda: seconds(
                lambda: [epoch([pair]) for pair in PROBES]
            ),
        },
        rounds,
    )
    rows = [[name, statistics.median(times)] for name, times in measured.items()]
    about = f"An epoch of {len(x):,} x {WIDTH}, batch 256, {CLASSES} classes."
    return Table("Linear probes", {"": "", "s": ".2f"}, rows, about, f"{rounds} rounds")


PARTS = {"search": search, "extraction": extraction, "probes": probes}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up [3]")
    parser.add_argument("--out", type=Path, help="a result file, JSON")
    arguments = parser.parse_args(argv)
    measured = Measured("evaluation.py", sys.argv[1:] if argv is None else argv)
    torch.manual_seed(0)
    keep_freed_memory()  # as `ssl-zoo evaluate` and the trainer do
    for name in arguments.only:
        measured.add(name, PARTS[name](arguments.rounds))
    measured.finish(arguments.out)


if __name__ == "__main__":
    main()
