"""What the losses cost beside the network they train.

python benchmarks/losses.py

prints, for N = 256 queries and K = 65536 keys of 128 dimensions, the median seconds of each loss's
forward and backward pass, and their share of MoCo's passes through a ResNet-18 at 32 x 32 (query
forward and backward, key forward), measured in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ssl_zoo.backbones import Timm
from ssl_zoo.backbones.cpu import speed_up
from ssl_zoo.losses import NCE, InfoNCE, Margin
from ssl_zoo.memory import Lookup

N, K, D, ROUNDS = 256, 65536, 128, 5
LOSSES: dict[str, nn.Module] = {
    "InfoNCE": InfoNCE(temperature=0.2),
    "NCE": NCE(50_000, temperature=0.07),
    "Margin": Margin(margin=0.4),
}


def seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def loss_pass(loss: nn.Module, queue: torch.Tensor, index: torch.Tensor) -> None:
    q, k = (F.normalize(torch.randn(N, D), dim=1) for _ in range(2))
    loss(Lookup(q.requires_grad_(), k, queue, index)).loss.backward()


def network_pass(query: nn.Module, key: nn.Module, images: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            key(images)
        out = query(images)
    out.float().square().mean().backward()
    query.zero_grad()


def main() -> None:
    torch.manual_seed(0)
    queue, index = F.normalize(torch.randn(K, D), dim=1), torch.arange(K)
    query, key = (
        speed_up(Timm(name="resnet18", small_images=True)).to(memory_format=torch.channels_last)
        for _ in range(2)
    )
    images = torch.randn(N, 3, 32, 32)
    times: dict[str, list[float]] = {name: [] for name in ("network, bf16", *LOSSES)}
    for _ in range(ROUNDS):
        times["network, bf16"].append(seconds(lambda: network_pass(query, key, images)))
        for name, loss in LOSSES.items():
            times[name].append(seconds(lambda loss=loss: loss_pass(loss, queue, index)))
    network = statistics.median(times["network, bf16"])
    print(f"N {N}, K {K}, D {D}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:<14} {median:7.3f} s  {median / network:6.1%} of the network's pass")


if __name__ == "__main__":
    main()
