"""Layers that normalize are known by their class."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_zoo.backbones import Timm
from ssl_zoo.heads import MLP
from ssl_zoo.ops.norms import norms_of

# What is one-dimensional beside norms and biases: what scales a residual branch.
SCALES = ("gamma", "ls1", "ls2", "scale")


@pytest.mark.parametrize(
    ("name", "options", "kinds"),
    [
        ("resnet18", {}, {"BatchNorm2d"}),
        ("resnet18", {"norm_layer": "groupnorm"}, {"GroupNorm"}),
        ("efficientnet_b0", {}, {"BatchNormAct2d"}),
        ("convnext_atto", {}, {"LayerNorm2d"}),
        ("convnextv2_atto", {}, {"LayerNorm2d", "GlobalResponseNorm"}),
        ("vit_tiny_patch16_224", {}, {"LayerNorm"}),
        ("vit_tiny_patch16_224", {"norm_layer": "rmsnorm"}, {"RmsNorm"}),
        ("resnetv2_50d_evos", {}, {"EvoNorm2dS0"}),
    ],
)
def test_every_norm_of_a_model_is_found(name, options, kinds):
    with torch.device("meta"):
        network = Timm(name=name, options=options)
    norms = [norm for _, norm in norms_of(network)]
    assert {type(norm).__name__ for norm in norms} == kinds
    inside = {id(p) for norm in norms for p in norm.parameters()}
    others = {n: p for n, p in network.named_parameters() if id(p) not in inside and p.ndim == 1}
    assert all(n.endswith(("bias", *SCALES)) for n in others)
    assert not any(p.ndim == 2 for norm in norms for p in norm.parameters())


def test_split_and_joined_batchnorm_are_norms_too():
    network = Timm(name="resnet18", options={"layers": [1, 1, 1, 1]}, bn_groups=2)
    assert len(list(norms_of(network))) == 1 + 4 * 2 + 3  # stem, two a block, shortcuts
    joined = nn.SyncBatchNorm.convert_sync_batchnorm(MLP(4, out_features=4, batch_norm=True))
    assert [type(norm) for _, norm in norms_of(joined)] == [nn.SyncBatchNorm]
