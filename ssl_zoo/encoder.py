"""The map from images to embeddings, and its slow copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ssl_zoo.batchnorm import split_batchnorm


class Encoder(nn.Module):
    """A backbone and a head: images [N, C, H, W] -> embeddings [N, D].

    The head's BatchNorms are split into the backbone's `bn_groups`, since on G processes they
    would be.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = split_batchnorm(head, backbone.bn_groups)
        self.out_features: int = head.out_features

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


class MomentumEncoder(nn.Module):
    """A copy of an encoder that follows it slowly, and never by gradient.

    It starts equal to the encoder, head included. BatchNorm runs on batch statistics, as in the
    online encoder; its running statistics are its own.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    @torch.no_grad()
    def follow(self, online: nn.Module, momentum: float) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q (arXiv:1911.05722, equation 2)."""
        keys, queries = list(self.encoder.parameters()), list(online.parameters())
        torch._foreach_lerp_(keys, queries, 1.0 - momentum)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and every submodule's own mode again outside."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training
