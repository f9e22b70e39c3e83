"""What DINO and its descendants put on a backbone, and what keeps their teacher from collapse."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, ConfigError, at_least
from ssl_zoo.ops.sinkhorn import sinkhorn
from ssl_zoo.system import distributed


@HEADS.register_module()
class DINOHead(nn.Module):
    """An MLP to a unit vector, and its cosines with K prototypes (DINO, arXiv:2104.14294).

    Args:
        out_features: K.
        hidden_features: width of the hidden layers.
        bottleneck_features: width of the layer before the prototypes.
        depth: linear layers up to the bottleneck.
        batch_norm: a BatchNorm after each hidden layer (DINO's ResNet-50).
        learn_scale: prototypes learn a length each, and scores are products with them instead of
            cosines (DINO's ViT-S).
    """

    def __init__(
        self,
        in_features: int,
        *,
        out_features: int = 65536,
        hidden_features: int = 2048,
        bottleneck_features: int = 256,
        depth: int = 3,
        batch_norm: bool = False,
        learn_scale: bool = False,
    ):
        super().__init__()
        self.validate(depth=depth, out_features=out_features)
        widths = [in_features, *[hidden_features] * (depth - 1), bottleneck_features]
        layers: list[nn.Module] = []
        for i in range(depth):
            layers.append(nn.Linear(widths[i], widths[i + 1]))
            nn.init.trunc_normal_(layers[-1].weight, std=0.02)
            nn.init.zeros_(layers[-1].bias)
            if i < depth - 1:
                layers += [nn.BatchNorm1d(widths[i + 1])] if batch_norm else []
                layers.append(nn.GELU())
        self.layers = nn.Sequential(*layers)
        self.last = WeightNormLinear(bottleneck_features, out_features, learn_scale)
        self.out_features = out_features

    @staticmethod
    def validate(*, depth: int = 1, out_features: int = 2, **_) -> None:
        at_least("depth", depth, 1)
        at_least("out_features", out_features, 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.last(F.normalize(self.layers(features), dim=-1))


class WeightNormLinear(nn.Module):
    """A linear layer with weight normalisation (arXiv:1602.07868): rows g v / |v|."""

    def __init__(self, in_features: int, out_features: int, learn_scale: bool):
        super().__init__()
        self.v = nn.Linear(in_features, out_features, bias=False).weight  # [K, D]
        self.g = nn.Parameter(torch.ones(out_features, 1)) if learn_scale else 1.0

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.g * F.normalize(self.v, dim=1))


class FrozenStart:
    """Takes every DINOHead's prototypes out of a run's first optimiser steps.

    Args:
        encoder: the heads are somewhere in it.
        steps: how many steps; may be 0.

    Raises:
        ConfigError: steps, but no DINOHead.
    """

    def __init__(self, encoder: nn.Module, steps: int):
        self.heads = [m for m in encoder.modules() if isinstance(m, DINOHead)]
        if steps and not self.heads:
            raise ConfigError(
                "frozen_steps",
                "no head has a last layer to freeze",
                found=str(steps),
                expected="0, or a head of type DINOHead",
            )
        self.steps = steps

    def __call__(self, steps_done: Tensor) -> None:
        """To be called in `after_backward`."""
        if self.steps and steps_done < self.steps:
            for head in self.heads:
                for p in head.last.parameters():
                    p.grad = None
        else:
            self.steps = 0  # the GPU's step count is asked no more


class Centre(nn.Module):
    """The running mean of a teacher's scores, over all ranks (arXiv:2104.14294, equation 4).

    c <- m c + (1 - m) mean_i g_t(x_i). Taken off the scores, it keeps one output from winning for
    every image; the low temperature keeps all outputs from being alike.

    Args:
        momentum: m.
    """

    def __init__(self, out_features: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("c", torch.zeros(out_features))

    def forward(self, scores: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
        """p_t = softmax((g_t - c) / t), [..., K], whichever rows are counted."""
        return ((scores - self.c) / temperature).softmax(dim=-1)

    @torch.no_grad()
    def update(self, scores: Tensor) -> None:
        """With this rank's scores [N, K]."""
        self.c.lerp_(distributed.mean(scores.mean(dim=0)), 1 - self.momentum)


class SinkhornCentre(nn.Module):
    """Used as `Centre` is; prototypes are balanced within each batch instead, three times over.

    DINOv2's (arXiv:2304.07193, section 4).
    """

    def forward(self, scores: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
        """[..., K]; rows that are not `counted`, [...] bool, have no say in the balance."""
        if counted is not None:  # not 0: where no rank counts a row, all count alike
            counted = counted.flatten().float().clamp(min=torch.finfo(torch.float32).tiny)
        return sinkhorn(scores.flatten(0, -2), temperature, weight=counted).view_as(scores)

    def update(self, scores: Tensor) -> None:
        """Nothing is remembered."""
