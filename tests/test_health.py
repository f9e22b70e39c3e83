"""Figures of collapse: their values at both ends and in between, and the words for them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from ssl_zoo.ops import health


def test_embedding_std_is_one_on_the_sphere_and_zero_where_all_are_equal():
    z = torch.randn(4000, 32)
    assert health.embedding_std(z).item() == pytest.approx(1.0, abs=0.02)
    assert health.embedding_std(z[:1].repeat(100, 1)).item() == pytest.approx(0.0, abs=1e-6)


def test_embedding_std_is_its_equation_and_knows_no_lengths():
    z = torch.randn(20, 5) + 0.5
    unit = [row / row.square().sum().sqrt() for row in z]
    total = 0.0
    for d in range(5):
        column = [row[d].item() for row in unit]
        mean = sum(column) / 20
        total += math.sqrt(sum((x - mean) ** 2 for x in column) / 20)
    assert health.embedding_std(z).item() == pytest.approx(math.sqrt(5) * total / 5, rel=1e-5)
    lengths = torch.rand(20, 1) + 0.1
    torch.testing.assert_close(health.embedding_std(lengths * z), health.embedding_std(z))


def test_assignment_entropy_is_balance_over_images():
    balanced = F.one_hot(torch.arange(12) % 4, 4).float()
    assert health.assignment_entropy(balanced).item() == pytest.approx(1.0)
    assert health.assignment_entropy(balanced[:1].repeat(9, 1)).item() == 0.0
    uniform = torch.full((9, 4), 0.25)
    assert health.assignment_entropy(uniform).item() == pytest.approx(1.0)
    half = F.one_hot(torch.arange(12) % 2, 4).float()
    assert health.assignment_entropy(half).item() == pytest.approx(math.log(2) / math.log(4))


def test_assignment_sharpness_is_certainty_of_each_image():
    balanced = F.one_hot(torch.arange(12) % 4, 4).float()
    assert health.assignment_sharpness(balanced).item() == pytest.approx(1.0)
    assert health.assignment_sharpness(torch.full((9, 4), 0.25)).item() == pytest.approx(
        0, abs=1e-6
    )
    between = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    expected = 1 - (math.log(2) / math.log(4)) / 2
    assert health.assignment_sharpness(between).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "figure", [health.embedding_std, health.assignment_entropy, health.assignment_sharpness]
)
def test_a_figure_gives_no_gradient_and_is_float32_from_bf16(figure):
    x = torch.rand(8, 4, dtype=torch.bfloat16).softmax(dim=1).requires_grad_()
    value = figure(x)
    assert value.dtype == torch.float32 and value.dim() == 0 and not value.requires_grad


def test_the_verdict_names_what_is_low_with_its_figure_and_meaning():
    low = {"embedding_std": 0.03, "assignment_entropy": 0.5, "loss": 0.0}
    words = health.collapse(low)
    assert "embedding_std is 0.030, below 0.1" in words
    assert health.MEANING["embedding_std"] in words
    assert "assignment_entropy" not in words
    both = health.collapse(low | {"assignment_entropy": 0.0, "assignment_sharpness": 0.0})
    assert all(meaning in both for meaning in health.MEANING.values())


def test_the_verdict_is_silent_on_health_and_on_what_a_method_does_not_log():
    assert health.collapse({"embedding_std": 0.1, "assignment_entropy": 0.9}) == ""
    assert health.collapse({"loss": 0.0}) == ""


def test_every_limit_has_its_meaning():
    assert health.LOWEST.keys() == health.MEANING.keys()
