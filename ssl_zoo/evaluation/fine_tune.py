"""Fine-tuning of all weights on all labels, with learning rates that fall with depth."""

from typing import Annotated, Any

import torch
from torch import nn

from ssl_zoo.config import (
    EVALUATIONS,
    ConfigError,
    NonNegativeFloat,
    Part,
    PositiveFloat,
    PositiveInt,
    Range,
)
from ssl_zoo.data import Splits, Views
from ssl_zoo.engine.schedules import Cosine
from ssl_zoo.evaluation.classifier import Classifier, TrainedClassifier, Tuned, check_lrs
from ssl_zoo.evaluation.features import Precision
from ssl_zoo.evaluation.linear import Share

Decay = Annotated[float, Range(0, 1, open_low=True)]


@EVALUATIONS.register_module()
class FineTune(TrainedClassifier):
    """All weights of a copy, fine-tuned on the training images, an lr a layer (arXiv:2106.08254).

    AdamW, without decay of norms and biases; lr rises in a warm-up and falls along half a cosine.
    There is no augmentation besides the views.

    Args:
        lrs: of the classifier; of several a held-out part of the training images selects.
        layer_decay: a layer's lr is that of the one above it times this; 1: all have one lr.
        batch_size: all the images, where they are fewer.
        held_out: this fraction of the training images selects lr, if there are several.
        views: of the training images; null: random crops of the clean images' size, and flips, then
            what the clean view does with colors.
        train_limit, test_limit: images used of the split; null: all.
        precision: of all passes.
    """

    kind = Tuned
    drop_last = True

    def __init__(
        self,
        *,
        lrs: list[PositiveFloat] = [1e-4, 3e-4, 1e-3],  # noqa: B006
        layer_decay: Decay = 0.75,
        weight_decay: NonNegativeFloat = 0.05,
        epochs: PositiveFloat = 50.0,
        warmup_epochs: NonNegativeFloat = 5.0,
        batch_size: PositiveInt = 256,
        held_out: Share = 0.1,
        views: Part[Views] | None = None,
        train_limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
        precision: Precision = "fp32",
    ):
        self.layer_decay, self.weight_decay = layer_decay, weight_decay
        super().__init__(
            lrs,
            Cosine(warmup_epochs=warmup_epochs),
            held_out=held_out,
            epochs=epochs,
            batch_size=batch_size,
            views=views,
            limits=(train_limit, test_limit),
            precision=precision,
        )

    @staticmethod
    def validate(*, lrs: list[float], epochs: float, warmup_epochs: float, **_) -> None:
        check_lrs(lrs)
        if warmup_epochs > epochs:
            found, expected = f"{warmup_epochs:g}", f"at most {epochs:g}, the epochs"
            problem = "the warm-up would not end"
            raise ConfigError("warmup_epochs", problem, found=found, expected=expected)

    def begin(self, backbone: nn.Module, splits: Splits, device: torch.device) -> None:
        self._layers(backbone)

    def _layers(self, backbone: nn.Module) -> list[list[nn.Parameter]]:
        """From the stem on; ValueError for a backbone that does not tell them, if it matters."""
        if hasattr(backbone, "layers"):
            return backbone.layers()
        if self.layer_decay == 1:
            return [list(backbone.parameters())]
        name = type(backbone).__name__
        problem = f"a backbone's layers(), which {name} does not have; layer_decay=1 needs none"
        raise ValueError(f"FineTune: layer_decay={self.layer_decay:g} needs {problem}")

    def optimizer(self, classifier: Classifier, lr: float) -> torch.optim.Optimizer:
        backbone = classifier.backbone
        layers, head = self._layers(backbone), list(classifier.head.parameters())
        if getattr(backbone, "head_joins_last", False):
            layers[-1] = [*layers[-1], *head]
        else:
            layers = [*layers, head]
        left_out = backbone.undecayed() if hasattr(backbone, "undecayed") else []
        undecayed = {id(parameter) for parameter in left_out}
        groups = []
        for depth, layer in enumerate(reversed(layers)):
            rate = lr * self.layer_decay**depth
            for weight_decay, decayed in ((self.weight_decay, True), (0.0, False)):
                parameters = [
                    p for p in layer if (p.ndim >= 2 and id(p) not in undecayed) == decayed
                ]
                if parameters:
                    group = {"params": parameters, "lr": rate, "weight_decay": weight_decay}
                    groups.append(group)
        return torch.optim.AdamW(groups, fused=True)

    def recipe(self) -> dict[str, Any]:
        return {
            "trained": "all weights of a copy",
            "optimizer": f"AdamW, weight decay {self.weight_decay:g}",
            "layer_decay": self.layer_decay,
            "schedule": f"{self.schedule.warmup_epochs:g} epochs of warm-up, then a cosine",
        }
