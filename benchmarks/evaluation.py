"""What evaluation costs: the kNN search, the features, the linear probes.

python benchmarks/evaluation.py [--out FILE] [--rounds N] [--only search extraction probes]

Search: 10,000 queries against 60,000 x 512, k 200, with faiss as the vote uses it and with a
blocked matrix product and topk in torch. Extraction: images of a network's own input size through
it, without loading. Probes: 36 of 54,000 x 512 features in one pass, and one after the other.
Contenders of one table are measured in turn; figures are medians.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from common import interleaved, machine, seconds, table
from torch import Tensor
from torch.nn import functional as F

from ssl_zoo.backbones import Timm
from ssl_zoo.backbones.cpu import speed_up
from ssl_zoo.evaluation import features, knn, linear
from ssl_zoo.ops.kmeans import faiss_threads
from ssl_zoo.system.hardware import keep_freed_memory

BANK, QUERIES, WIDTH, K, CLASSES = 60_000, 10_000, 512, 200, 10
PROBES = list(itertools.product([10 ** (i / 3 - 2) for i in range(12)], [0.0, 1e-5, 1e-4]))
DEMO = {"in_chans": 1, "options": {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}}
NETWORKS = {  # arguments, shape of an image, images a round
    "ResNet-18, 3x3 stem, 32 x 32": ({"small_images": True}, (3, 32, 32), 512),
    "demo's ResNet-10, 28 x 28": (DEMO, (1, 28, 28), 8192),
}


def search(rounds: int) -> str:
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
    return table(
        [[name, f"{statistics.median(times):.2f}"] for name, times in measured.items()],
        [f"{QUERIES:,} queries, {BANK:,} x {WIDTH}, k {K}", "s"],
    )


def extraction(rounds: int) -> str:
    def contender(network: Timm, images: Tensor, size: int, precision: str):
        batches = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in images.split(size)]

        def measure() -> float:
            taken = seconds(lambda: features.extract(network, batches, "cpu", precision))
            return len(images) / taken

        return measure

    rows = []
    for name, (arguments, shape, count) in NETWORKS.items():
        contiguous, network = (speed_up(Timm(name="resnet18", **arguments)) for _ in range(2))
        network.to(memory_format=torch.channels_last)
        images = torch.randn(count, *shape)
        settings = [(contiguous, "contiguous, fp32", 512, "fp32")] + [
            (network, f"channels last, {precision}", size, precision)
            for precision in ("fp32", "bf16")
            for size in (64, 128, 256, 512)
        ]
        contenders = {
            (what, size): contender(net, images, size, precision)
            for net, what, size, precision in settings
        }
        for (what, size), rates in interleaved(contenders, rounds).items():
            rows.append([name, what, size, f"{statistics.median(rates):,.0f}"])
    return table(rows, ["network", "how", "batch", "images/s"])


def probes(rounds: int) -> str:
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
    return table(
        [[name, f"{statistics.median(times):.2f}"] for name, times in measured.items()],
        [f"one epoch of {len(x):,} x {WIDTH}, batch 256, {CLASSES} classes", "s"],
    )


def main() -> None:
    parts = {"search": search, "extraction": extraction, "probes": probes}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the tables there as well")
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up [5]")
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    keep_freed_memory()  # as `ssl-zoo evaluate` and the trainer do
    threads = torch.get_num_threads()
    title = f"{machine()}, {threads} threads; medians of {arguments.rounds} rounds"
    text = "\n\n".join([title, *(parts[name](arguments.rounds) for name in arguments.only)]) + "\n"
    print(text, end="")
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
