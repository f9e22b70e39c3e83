"""The weight gradient by patches against autograd's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssl_zoo import convolution
from ssl_zoo.backbones import Timm
from ssl_zoo.convolution import speed_up_convolutions, weight_gradient

CASES = [  # side, kernel, stride, padding
    (4, 3, 1, 1),
    (1, 3, 1, 1),
    (7, 3, 2, 1),
    (5, 1, 2, 0),
    (8, 4, 4, 0),
    (5, (3, 1), (2, 1), (1, 0)),
]


def convolution_and_input(side, kernel, stride, padding) -> tuple[nn.Conv2d, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, kernel, stride, padding, bias=False)
    x = torch.randn(6, 3, side, side)
    return layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weight_gradient_equals_autograds(case):
    layer, x = convolution_and_input(*case)
    y = layer(x)
    grad = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, layer.weight, grad)
    found = weight_gradient(x, grad, layer.weight.shape, layer.stride, layer.padding)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layer_in_bf16_gives_the_same_output_and_gradients(case, monkeypatch):
    layer, x = convolution_and_input(*case)
    fast = speed_up_convolutions(copy.deepcopy(layer))
    used: list[torch.Size] = []

    def watched(x, *rest):
        used.append(x.shape)
        return weight_gradient(x, *rest)

    monkeypatch.setattr(convolution, "weight_gradient", watched)
    results = []
    for module in (layer, fast):
        images = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = module(images)
        y.float().square().sum().backward()
        results.append((y, images.grad, module.weight.grad))
    assert used == [x.shape]
    (y, of_x, of_w), (fast_y, fast_of_x, fast_of_w) = results
    assert fast_y.dtype == torch.bfloat16 and torch.equal(fast_y, y)
    assert fast_of_w.dtype == torch.float32 and fast_of_w.stride() == fast.weight.stride()
    # bf16 keeps 8 bits: a hundredth of the largest entry.
    torch.testing.assert_close(fast_of_x, of_x, rtol=0, atol=0.01 * of_x.abs().max().item())
    torch.testing.assert_close(fast_of_w, of_w, rtol=0, atol=0.01 * of_w.abs().max().item())


@pytest.mark.parametrize(
    ("make", "precision"),
    [
        (lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False), torch.float32),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, bias=True), torch.bfloat16),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False, groups=2), torch.bfloat16),
        (lambda: nn.Conv2d(4, 4, 3, padding="same", bias=False), torch.bfloat16),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False, padding_mode="reflect"), torch.bfloat16),
        (lambda: nn.Conv2d(4, 4, 3, padding=2, bias=False, dilation=2), torch.bfloat16),
    ],
    ids=["fp32", "bias", "groups", "same", "reflect", "dilated"],
)
def test_other_layers_are_torchs_own(make, precision, monkeypatch):
    monkeypatch.setattr(convolution._Convolve, "apply", None)
    layer = make()
    fast, x = speed_up_convolutions(copy.deepcopy(layer)), torch.randn(2, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        assert torch.equal(fast(x), layer(x))


def test_large_maps_are_torchs_own(monkeypatch):
    monkeypatch.setattr(convolution._Convolve, "apply", None)
    layer = speed_up_convolutions(nn.Conv2d(3, 4, 3, padding=1, bias=False))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 3, 5, 5)).shape == (2, 4, 5, 5)


def test_a_backbone_trains_to_the_same_gradients():
    torch.manual_seed(0)
    options = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16], "zero_init_last": False}
    fast = Timm(name="resnet18", options=options)
    plain = copy.deepcopy(fast)
    for child in plain.modules():
        if isinstance(child, convolution.Conv2d):
            child.__class__ = nn.Conv2d
    assert list(fast.state_dict()) == list(plain.state_dict())
    x = torch.randn(16, 3, 32, 32)
    for model in (fast, plain):
        with torch.autocast("cpu", torch.bfloat16):
            features = model(x)
        features.float().square().mean().backward()
    for (name, a), b in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert F.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0) > 0.999, name
