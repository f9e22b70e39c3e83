"""The faster layers against torch's and timm's own."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models import resnet
from torch import nn
from torch.nn import functional as F

from ssl_zoo.backbones import Timm
from ssl_zoo.backbones.cpu import convolution, elementwise, speed_up
from ssl_zoo.backbones.cpu.convolution import _window, convolve, input_gradient, weight_gradient
from ssl_zoo.config import BACKBONES, bind
from ssl_zoo.experiment import seeded

CASES = [  # side, kernel, stride, padding
    (4, 3, 1, 1),
    (1, 3, 1, 1),  # one position of nine meets the image
    (2, 3, 2, 1),  # four do
    (7, 3, 2, 1),
    (1, 7, 2, 3),
    (2, 3, 1, 2),
    (4, 3, 3, 0),  # the last row and column are nobody's
    (5, 1, 2, 0),
    (4, 1, 1, 0),
    (2, 1, 1, 1),  # a border of zeros
    (8, 4, 4, 0),
    (5, (3, 1), (2, 1), (1, 0)),
]


@pytest.fixture(params=[True, False], ids=["amx", "no amx"])
def amx(request, monkeypatch) -> bool:
    monkeypatch.setattr(convolution, "_amx", lambda: request.param)
    return request.param


def convolution_and_input(side, kernel, stride, padding) -> tuple[nn.Conv2d, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, kernel, stride, padding, bias=False)
    x = torch.randn(6, 3, side, side)
    return layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


def plain(module: nn.Module) -> nn.Module:
    """A copy with torch's and timm's own layers."""
    module = copy.deepcopy(module)
    for child in module.modules():
        if type(child).__module__ in (convolution.__name__, elementwise.__name__):
            child.__class__ = type(child).__base__
    return module


# ------------------------------------------------------------------------------ convolution


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_three_passes_equal_torchs_in_fp32(case, amx):
    layer, x = convolution_and_input(*case)
    x.requires_grad_()
    y = layer(x)
    grad = torch.randn_like(y)
    of_x, of_weight = torch.autograd.grad(y, (x, layer.weight), grad)
    rows, columns, window = _window(x.shape[2:], layer.kernel_size, layer.stride, layer.padding)
    weight = layer.weight.detach()[:, :, rows, columns]
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(convolve(x.detach(), weight, window), y, **close)
    torch.testing.assert_close(input_gradient(grad, weight, x.shape, window), of_x, **close)
    used = weight_gradient(x.detach(), grad, window)
    torch.testing.assert_close(used, of_weight[:, :, rows, columns], **close)
    of_weight[:, :, rows, columns] = 0
    assert not of_weight.any()  # what is left out has no gradient


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layer_in_bf16_gives_the_outputs_and_gradients_of_fp32(case, amx, monkeypatch):
    layer, x = convolution_and_input(*case)
    fast = speed_up(copy.deepcopy(layer))
    used: list[torch.Size] = []

    def watched(x, *rest):
        used.append(x.shape)
        return weight_gradient(x, *rest)

    monkeypatch.setattr(convolution, "weight_gradient", watched)
    results = []
    # Against fp32: torch's own bf16 weight gradient of 7 x 7 on a map of 1 x 1 is not even finite.
    for module, bf16 in ((layer, False), (fast, True)):
        images = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = module(images)
        y.float().square().sum().backward()
        results.append((y, images.grad, module.weight.grad))
    assert used == [x.shape]
    assert results[1][0].dtype == torch.bfloat16
    for expected, found in zip(*results, strict=True):
        # bf16 keeps 8 bits, of the weights, the images and the result.
        atol = 0.02 * expected.abs().max().item()
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=atol)


def test_kernel_positions_that_meet_nothing_are_left_out_in_fp32_too(monkeypatch):
    layer, x = convolution_and_input(1, 3, 1, 1)
    fast = speed_up(copy.deepcopy(layer))
    shapes: list[torch.Size] = []
    conv2d = torch.conv2d

    def watched(x, weight, *rest):
        shapes.append(weight.shape)
        return conv2d(x, weight, *rest)

    monkeypatch.setattr(torch, "conv2d", watched)
    y = fast(x)
    assert shapes == [(5, 3, 1, 1)]
    torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-6)
    y.square().sum().backward()
    layer(x).square().sum().backward()
    torch.testing.assert_close(fast.weight.grad, layer.weight.grad, rtol=1e-5, atol=1e-6)


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
def test_other_layers_are_torchs(make, precision, monkeypatch):
    monkeypatch.setattr(convolution._Convolve, "apply", None)
    layer = make()
    fast, x = speed_up(copy.deepcopy(layer)), torch.randn(2, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        assert torch.equal(fast(x), layer(x))


@pytest.mark.parametrize("bf16", [False, True])
def test_an_image_smaller_than_the_kernel_is_refused_as_by_torch(bf16):
    layer = speed_up(nn.Conv2d(3, 4, 5, bias=False))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"),
    ):
        layer(torch.randn(2, 3, 4, 4))


def test_1_x_1_is_a_matrix_product_on_any_map_where_amx_multiplies(amx, monkeypatch):
    used: list[torch.Size] = []
    monkeypatch.setattr(convolution, "convolve", lambda x, *rest: used.append(x.shape) or x)
    layer = speed_up(nn.Conv2d(3, 4, 1, bias=False))
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 3, 9, 9))
    assert len(used) == amx


def test_large_maps_are_torchs(monkeypatch):
    monkeypatch.setattr(convolution._Convolve, "apply", None)
    layer = speed_up(nn.Conv2d(3, 4, 3, padding=1, bias=False))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 3, 5, 5)).shape == (2, 4, 5, 5)


# ------------------------------------------------------------------------------------- ReLU


def every_bf16() -> torch.Tensor:
    """[65536]: each number, infinity and NaN there is."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)


@pytest.mark.parametrize("inplace", [False, True])
def test_relu_equals_torchs_on_every_bf16_value(inplace):
    fast, x = speed_up(nn.ReLU(inplace)), every_bf16()
    given = x.clone()
    y = fast(given)
    torch.testing.assert_close(y, F.relu(x), rtol=0, atol=0, equal_nan=True)
    assert (y is given) == inplace
    assert not y.isnan().logical_xor(x.isnan()).any()  # no NaN is lost


@pytest.mark.parametrize("inplace", [False, True])
def test_relus_gradient_equals_torchs(inplace):
    x = every_bf16()[: 2**16 : 7]
    x = x[x.isfinite()].view(-1, 1)
    grads = []
    for layer in (nn.ReLU(inplace), speed_up(nn.ReLU(inplace))):
        leaf = x.clone().requires_grad_()
        layer(leaf * 1).mean(dim=1).square().sum().backward()  # mean: an expanded gradient
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_relu_of_a_view_and_in_fp32_is_torchs(monkeypatch):
    monkeypatch.setattr(elementwise._Rectify, "apply", None)
    fast = speed_up(nn.ReLU(inplace=True))
    x = torch.tensor([[-1.0, 2.0], [3.0, -4.0]])
    assert fast(x.clone()).tolist() == [[0, 2], [3, 0]]
    whole = x.bfloat16()
    fast(whole[0])
    assert whole.tolist() == [[0, 2], [3, -4]]


# --------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"channels": [16, 16, 16, 16]}),
        ("resnet50", {"channels": [8, 8, 8, 8]}),
        ("seresnet50", {"channels": [16, 16, 16, 16]}),  # attention in its blocks
    ],
)
def test_a_network_trains_to_the_same_gradients(name, options, amx):
    torch.manual_seed(0)
    options = {"layers": [1, 2, 1, 1], "zero_init_last": False, **options}
    fast = speed_up(Timm(name=name, options=options))
    slow = plain(fast)
    assert list(fast.state_dict()) == list(slow.state_dict())
    kinds = {type(m) for m in slow.modules()}
    assert kinds & {resnet.BasicBlock, resnet.Bottleneck} and nn.ReLU in kinds
    x = torch.randn(16, 3, 32, 32)
    for model in (fast, slow):
        with torch.autocast("cpu", torch.bfloat16):
            # Not in training: statistics of so small a batch blow rounding up to any size.
            features = model.eval()(x)
        features.float().square().mean().backward()
        with torch.autocast("cpu", torch.bfloat16):
            model.train()(x)  # moves BatchNorm's running statistics
    for (key, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert F.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0) > 0.999, key
    for a, b in zip(fast.buffers(), slow.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("block", [resnet.BasicBlock, resnet.Bottleneck])
@pytest.mark.parametrize("downsample", [False, True])
def test_a_blocks_sum_is_timms_to_the_bit(block, downsample, monkeypatch):
    """With torch's own convolutions; the order in which gradients are added is the only freedom."""
    torch.manual_seed(0)
    width = 8 * block.expansion
    other = nn.Conv2d(width, width, 1, bias=False) if downsample else None
    slow = block(width, 8, downsample=other, drop_path=nn.Identity()).bfloat16()
    fast = speed_up(copy.deepcopy(slow))
    results = []
    for module in (slow, fast):
        x = torch.randn(4, width, 6, 6, generator=torch.Generator().manual_seed(1)).bfloat16()
        y = module(x.requires_grad_())
        y.float().square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_resnet_in_fp32_is_timms_to_the_bit():
    torch.manual_seed(0)
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    fast = speed_up(Timm(name="resnet18", options=options))
    x = torch.randn(2, 3, 96, 96)  # no map so small that positions are left out
    assert torch.equal(fast(x), plain(fast)(x))


def test_a_run_on_a_cpu_has_these_layers_and_on_a_gpu_torchs():
    block = {"type": "Timm", "name": "resnet18", "options": {"layers": [1, 1, 1, 1]}}
    on_cpu, on_gpu = (
        seeded(0, bind(BACKBONES, block), torch.device(kind)) for kind in ("cpu", "cuda")
    )
    assert type(on_cpu.model.act1) is elementwise.ReLU and type(on_gpu.model.act1) is nn.ReLU
    for a, b in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        assert torch.equal(a, b)
