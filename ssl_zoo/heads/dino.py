"""What DINO and its descendants put on a backbone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, AtLeastTwo, ConfigError, PositiveInt


@HEADS.register_module()
class DINOHead(nn.Module):
    """An MLP to a unit vector, and its cosines with K prototypes (DINO, arXiv:2104.14294).

    Args:
        out_features: K.
        bottleneck_features: width of the layer before the prototypes.
        depth: linear layers up to the bottleneck.
        batch_norm: a BatchNorm after each hidden layer (DINO's ResNet-50).
        learn_scale: scores are products with prototypes that learn their length (DINO's ViT-S).
    """

    def __init__(
        self,
        in_features: int,
        *,
        out_features: AtLeastTwo = 65536,
        hidden_features: PositiveInt = 2048,
        bottleneck_features: PositiveInt = 256,
        depth: PositiveInt = 3,
        batch_norm: bool = False,
        learn_scale: bool = False,
    ):
        super().__init__()
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

    def forward(self, features: Tensor) -> Tensor:
        return self.last(F.normalize(self.layers(features), dim=-1))


class WeightNormLinear(nn.Module):
    """A linear layer with weight normalization (arXiv:1602.07868): rows g v / |v|."""

    def __init__(self, in_features: int, out_features: int, learn_scale: bool):
        super().__init__()
        self.v = nn.Linear(in_features, out_features, bias=False).weight  # [K, D]
        self.g = nn.Parameter(torch.ones(out_features, 1)) if learn_scale else 1.0

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.g * F.normalize(self.v, dim=1))


class FrozenStart:
    """Takes the prototypes of every DINOHead in `encoder` out of a run's first `steps` updates."""

    def __init__(self, encoder: nn.Module, steps: int):
        self.heads = [m for m in encoder.modules() if isinstance(m, DINOHead)]
        if steps and not self.heads:
            key, problem = "frozen_steps", "no head has a last layer to freeze"
            raise ConfigError(key, problem, found=str(steps), expected="0, or a DINOHead")
        self.steps = steps

    def __call__(self, steps_done: Tensor) -> None:
        """To be called in `after_backward`."""
        if self.steps and steps_done < self.steps:
            for head in self.heads:
                for p in head.last.parameters():
                    p.grad = None
        else:
            self.steps = 0  # the GPU's step count is asked no more
