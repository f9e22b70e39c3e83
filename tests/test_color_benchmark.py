"""benchmarks/color.py against encoders that know everything and nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import TinyNet

from ssl_zoo.methods.colorization import Colorization
from ssl_zoo.ops.color import rgb_to_lab

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import color


def test_retrieval_finds_pairs_and_nothing_by_ties():
    images, z = torch.rand(40, 3, 4, 4), torch.randn(40, 8)
    paired = SimpleNamespace(encoder=lambda x: torch.cat([z, 3 * z], dim=1))
    assert color.retrieval(paired, images) == {"top-1, %": 100, "top-10, %": 100}
    shifted = SimpleNamespace(encoder=lambda x: torch.cat([z, z.roll(1, dims=0)], dim=1))
    assert color.retrieval(shifted, images)["top-1, %"] == 0
    same = SimpleNamespace(encoder=lambda x: torch.ones(40, 16))
    assert color.retrieval(same, images) == {"top-1, %": 0, "top-10, %": 0}


@pytest.fixture
def method():
    made = Colorization(TinyNet(in_chans=3, width=4), hidden_features=6)
    made.weight.copy_(torch.rand_like(made.weight) + 0.5)
    return made.eval()


def test_one_answer_is_the_best_that_is_the_same_for_all_pixels(method, monkeypatch):
    images = torch.rand(20, 3, 8, 8)
    answer = torch.zeros(len(method.bins), requires_grad=True)
    closest, z = method.encode(rgb_to_lab(images)[:, 1:])
    weight = method.weight[closest[:, :1]]

    optimizer = torch.optim.LBFGS([answer], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -(weight * z * answer.log_softmax(0)[closest]).sum(dim=1).mean()
        value.backward()
        return value

    optimizer.step(loss)
    monkeypatch.setattr(
        method.encoder, "forward", lambda x: answer.detach()[:, None, None].expand(len(x), -1, 8, 8)
    )
    found = color.predicted_colors(method, images)
    assert found["of one answer"] == pytest.approx(loss().item(), rel=1e-3)
    assert found["loss"] == pytest.approx(found["of one answer"], rel=1e-3)


def test_an_answer_of_the_right_colors_is_right(method, monkeypatch):
    images = torch.rand(4, 3, 8, 8)
    closest, z = method.encode(rgb_to_lab(images)[:, 1:])
    right = torch.full((4, len(method.bins), 8, 8), -30.0).scatter(1, closest, z.log())
    monkeypatch.setattr(method.encoder, "forward", lambda x: right)
    found = color.predicted_colors(method, images)
    assert found["top-1, %"] == 100 and found["loss"] < found["of one answer"]
    commonest = closest[:, 0].flatten().bincount().max() / closest[:, 0].numel()
    assert found["of the commonest color, %"] == pytest.approx(100 * commonest.item())
