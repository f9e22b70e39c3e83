"""benchmarks/floor.py: what it counts. That it runs is in test_benchmarks.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import floor  # noqa: E402


def counted(module: nn.Module, *shape: int) -> floor.Network:
    return floor.inspect(module, torch.zeros(shape, device=floor.DEVICE), "fp32")


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2}])
def test_flops_of_a_convolution_by_hand(options):
    conv = nn.Conv2d(4, 6, 3, **options).to(floor.DEVICE)
    images = torch.zeros(2, 4, 11, 9, device=floor.DEVICE)
    (layer,) = counted(nn.Sequential(conv), 2, 4, 11, 9).layers
    n, channels, height, width = conv(images).shape
    taps = 3 * 3 * 4 // options.get("groups", 1)
    assert layer.output == (n, channels, height, width)
    assert layer.flops == 2 * n * channels * height * width * taps


def test_flops_of_resnet18_are_those_that_torch_counts():
    model = timm.create_model("resnet18").to(floor.DEVICE)
    network = counted(model, 1, 3, 224, 224)
    assert network.flops / 2 == pytest.approx(1.82e9, rel=5e-3)  # multiply-adds, as published
    assert len(network.layers) == 21 and len(network.norms) == 20
    images = torch.zeros(2, 3, 224, 224, device=floor.DEVICE)
    with FlopCounterMode(display=False) as forward:
        out = model(images).sum()
    with FlopCounterMode(display=False) as backward:
        out.backward()
    assert forward.get_total_flops() == 2 * network.flops
    assert backward.get_total_flops() == 2 * network.backward_flops


def test_phases_add_up_to_the_step(tmp_path):
    net = floor.NETS["demo"]
    trainer = floor.make(net.config, [*net.overrides, *floor.TOY], "fp32", str(tmp_path))
    laps = floor.watched(trainer, 3)
    assert len(laps) == 3
    for lap in laps:
        assert set(lap) == {*floor.PHASES, "step"}
        assert min(lap.values()) > 0
        assert sum(lap[name] for name in floor.PHASES) == pytest.approx(lap["step"])
