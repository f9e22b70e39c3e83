"""Linear probes on the features of several layers: where in a network classes are told apart."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_zoo.config import EVALUATIONS
from ssl_zoo.data import Splits
from ssl_zoo.evaluation.base import Context, Outcome
from ssl_zoo.evaluation.features import Labeled
from ssl_zoo.evaluation.linear import Linear
from ssl_zoo.system import distributed


class LayerFeatures(nn.Module):
    """Features of a backbone's layers side by side, images [n, C, H, W] -> [n, F_1 + ... + F_L].

    Of a ViT each block's mean over patches, before any norm; else each map's mean over its cells,
    from the finest on.

    Attributes:
        names: of the layers, `block_1` or `stride_4`.
        widths: F_1, ..., F_L, once images have been seen.

    Raises:
        ValueError: a backbone that gives nothing but its features.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.widths: list[int] = []
        if hasattr(backbone, "last_blocks"):
            self.names = [f"block_{number}" for number in range(1, backbone.depth + 1)]
        elif hasattr(backbone, "feature_maps"):
            self.names = [f"stride_{level.stride}" for level in backbone.levels]
        else:
            needs = "a backbone with feature_maps (a timm CNN) or last_blocks (a timm ViT)"
            raise ValueError(f"LinearLayers needs {needs}; found {type(backbone).__name__}")

    def forward(self, images: Tensor) -> Tensor:
        if hasattr(self.backbone, "last_blocks"):
            blocks = self.backbone.last_blocks(images, self.backbone.depth)  # [n, P + L, F] each
            pooled = [x[:, self.backbone.num_prefix_tokens :].mean(dim=1) for x in blocks]
        else:
            pooled = [x.mean(dim=(2, 3)) for x in self.backbone.feature_maps(images)]
        self.widths = [x.shape[1] for x in pooled]
        return torch.cat(pooled, dim=1)


@EVALUATIONS.register_module()
class LinearLayers(Linear):
    """`Linear` on each of a backbone's layers, all extracted in one pass (arXiv:1610.01644).

    'top1' and 'top5' are of the layer that is best on the held-out training images; each layer's
    top-1 stands beside them by its name. The keys are `Linear`'s.
    """

    wants = "backbone"

    def begin(self, backbone: nn.Module, splits: Splits, device: torch.device) -> None:
        LayerFeatures(backbone)

    def evaluate(self, context: Context) -> Outcome:
        layers = LayerFeatures(context.backbone)
        seen = replace(context, backbone=layers, cache={})
        train = seen.features("train", self.precision, self.limits[0])
        test = seen.features("test", self.precision, self.limits[1])

        def judged() -> Outcome:
            of_layers = zip(*(split_layers(x, layers.widths) for x in (train, test)), strict=True)
            outcomes = [self.judge(*pair, device=context.device) for pair in of_layers]
            return best_layer(dict(zip(layers.names, outcomes, strict=True)))

        with distributed.borrowed_threads():
            return distributed.attempt(judged)


def split_layers(of: Labeled, widths: list[int]) -> list[Labeled]:
    """Each layer's features, of all side by side."""
    return [of._replace(features=x) for x in of.features.split(widths, dim=1)]


def best_layer(outcomes: dict[str, Outcome]) -> Outcome:
    """That of the layer with the best held-out top-1, of equals the first; all layers in it."""

    def held_out(name: str) -> float:
        return max(probe["held_out_top1"] or 0.0 for probe in outcomes[name].details["probes"])

    best = max(outcomes, key=held_out)
    outcome = outcomes[best]
    layers = {
        name: {"held_out_top1": held_out(name), "lr": of.details["lr"], **of.metrics}
        for name, of in outcomes.items()
    }
    top1 = {name: of["top1"] for name, of in layers.items()}
    lines = [
        f"  {name:<10} held out {of['held_out_top1']:.2f}%  top1 {of['top1']:.2f}%"
        for name, of in layers.items()
    ]
    selected = f"selected: {best}, on the held-out training images"
    return outcome._replace(
        metrics=outcome.metrics | top1,
        protocol={**outcome.protocol, "layers": list(outcomes)},
        details={"layer": best, "layers": layers, **outcome.details},
        remarks=(selected, *lines, *outcome.remarks[:1]),
    )
