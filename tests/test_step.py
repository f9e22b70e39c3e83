"""The fast paths of a step against the plain ones."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from ssl_zoo import precision
from ssl_zoo.backbones import Timm
from ssl_zoo.memory_use import keep_freed_memory
from ssl_zoo.method import Method
from ssl_zoo.optimizers import SGD, AdamW
from ssl_zoo.precision import choose


class Squares(Method):
    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.encoder = backbone

    def forward(self, images):
        return self.encoder(images).square().mean()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD, lambda ps: torch.optim.SGD(ps, lr=1e-3, momentum=0.9, foreach=False)),
        (AdamW, lambda ps: torch.optim.AdamW(ps, lr=1e-3, foreach=False)),
    ],
    ids=["SGD", "AdamW"],
)
def test_optimizers_equal_torchs_plain_loops_on_a_channels_last_network(ours, theirs):
    # torch's fused SGD on a CPU goes wrong where a gradient's memory is laid out otherwise than
    # its parameter's, so the layouts that autograd makes are what is tested.
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "zero_init_last": False}
    network = Timm(name="resnet18", options=options)
    method = Squares(network).to(memory_format=torch.channels_last)
    reference = copy.deepcopy(method)
    optimizers = [
        ours(method, lr=1e-3, weight_decay=0.01),
        theirs(reference.param_groups(0.01, ours is SGD)),
    ]
    for _ in range(3):
        images = torch.randn(4, 3, 32, 32)
        for model, optimizer in zip((method, reference), optimizers, strict=True):
            for half in images.chunk(2):  # accumulated
                model(half).backward()
            optimizer.step()
            optimizer.zero_grad()
    # Three steps move a parameter by 3e-3; rounding is amplified where a gradient is near zero.
    torch.testing.assert_close(
        list(method.parameters()), list(reference.parameters()), rtol=0, atol=1e-4
    )


def test_auto_is_bf16_where_the_cpu_multiplies_in_it_and_says_so(monkeypatch):
    cpu = torch.device("cpu")
    for flags, expected in (
        ({"avx512_bf16", "fma"}, ("bf16", "auto: avx512_bf16")),
        ({"avx512_bf16", "amx_bf16"}, ("bf16", "auto: amx_bf16")),
        ({"avx512f"}, ("fp32", "auto: no bf16 units here")),
        (set(), ("fp32", "auto: no bf16 units here")),
    ):
        monkeypatch.setattr(precision, "_cpu_flags", lambda flags=flags: flags)
        assert choose(cpu, "auto") == expected
    assert choose(cpu, "fp32") == ("fp32", "as configured")


MAPPED = """
import sys, torch
from ssl_zoo.memory_use import keep_freed_memory

def resident():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmRSS"))
    return int(line.split()[1]) * 1024

if sys.argv[1] == "keep":
    assert keep_freed_memory()
size = 200_000_000
torch.ones(size, dtype=torch.uint8)
print(resident() // size)
"""


def test_freed_memory_is_kept():

    if not keep_freed_memory():
        pytest.skip("malloc is not glibc's")
    kept, returned = (
        int(subprocess.check_output([sys.executable, "-c", MAPPED, word], text=True))
        for word in ("keep", "return")
    )
    assert kept == returned + 1
