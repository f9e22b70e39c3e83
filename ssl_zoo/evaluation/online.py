"""A linear classifier that learns beside the method."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import EVALUATIONS, NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from ssl_zoo.core import Batch
from ssl_zoo.data import Splits
from ssl_zoo.evaluation.base import Context, Evaluation, Outcome, Rows
from ssl_zoo.evaluation.features import check_labeled, check_labels
from ssl_zoo.system import distributed


@EVALUATIONS.register_module()
class OnlineProbe(Evaluation):
    """A linear layer trained step by step on the features that the backbone has just then.

    It sees view 0 of each batch in evaluation mode, detached, and has an optimizer and a state of
    its own; it starts at zero, so it draws nothing. Cheaper than a probe after training, and of
    another meaning: its features were augmented, and moved while it learned.

    Args:
        lr, momentum, weight_decay: of SGD. Features come standardized by running statistics.
        query_limit: test images used; null: all.
        precision: of the backbone's pass.
    """

    wants = "run"

    def __init__(
        self,
        *,
        lr: PositiveFloat = 0.1,
        momentum: UnitInterval = 0.9,
        weight_decay: NonNegativeFloat = 0.0,
        query_limit: PositiveInt | None = None,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    ):
        self.settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.query_limit, self.precision = query_limit, precision
        self.classifier: nn.Module | None = None

    def check(self, splits: Splits) -> None:
        check_labels("OnlineProbe", "test", splits.split("test").labels)
        if not (splits.split("pretrain").labels >= 0).any():
            raise ValueError("OnlineProbe needs labels, and no image of the training set has one")

    def begin(self, backbone: nn.Module, splits: Splits, device: torch.device) -> None:
        width, classes = backbone.num_features, splits.split("pretrain").num_classes
        norm = nn.BatchNorm1d(width, affine=False)
        linear = nn.utils.skip_init(nn.Linear, width, classes)
        for p in linear.parameters():
            nn.init.zeros_(p)
        self.classifier = nn.Sequential(norm, linear).to(device)
        self.optimizer = torch.optim.SGD(linear.parameters(), **self.settings)

    def after_step(self, backbone: nn.Module, batch: Batch) -> None:
        h = backbone(batch.views[0]).float()  # [N, F]
        h, y = distributed.gather(h), distributed.gather(batch.label)  # so all ranks learn the same
        h, y = h[y >= 0], y[y >= 0]
        if len(y) < 2:
            return
        with torch.enable_grad():
            loss = F.cross_entropy(self.classifier.train()(h), y)
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        if self.classifier is None:
            return {}
        return {
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.classifier.load_state_dict(state["classifier"])
            self.optimizer.load_state_dict(state["optimizer"])

    def evaluate(self, context: Context) -> Outcome:
        if self.classifier is None:
            raise ValueError(
                "OnlineProbe is trained beside a method; expected a run with it among its "
                "`evaluations`"
            )
        test = context.features("test", self.precision, self.query_limit)

        def on_main() -> Outcome:
            features, labels = test
            check_labeled("OnlineProbe", "test split", features, labels)
            rows, top5 = self._score(features, labels, context.device)
            hits = (rows.prediction == labels).float().mean().item()
            protocol = {
                "trained": "beside the method, on view 0 of each batch",
                **self.settings,
                "test": f"test split, clean views, {len(labels)} images",
                "precision": self.precision,
            }
            return Outcome({"top1": 100 * hits, "top5": top5}, protocol, rows)

        return distributed.attempt(on_main)

    @torch.no_grad()
    def _score(self, features: Tensor, labels: Tensor, device) -> tuple[Rows, float]:
        p = self.classifier.eval()(features.to(device)).softmax(1).cpu()  # [m, C]
        best = p.topk(min(5, p.shape[1]), dim=1)
        top5 = 100 * (best.indices == labels[:, None]).any(1).float().mean().item()
        rows = Rows(torch.arange(len(labels)), labels, best.indices[:, 0], best.values[:, 0])
        return rows, top5
