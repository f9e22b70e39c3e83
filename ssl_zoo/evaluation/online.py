"""A linear classifier that learns beside the method."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ssl_zoo.config import EVALUATIONS, NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from ssl_zoo.core import Batch
from ssl_zoo.data import Splits
from ssl_zoo.engine.precision import autocast
from ssl_zoo.evaluation.base import Context, Evaluation, Outcome, Rows, top1_and_top5
from ssl_zoo.evaluation.features import Labeled, Precision, check_usable
from ssl_zoo.system import distributed


@EVALUATIONS.register_module()
class OnlineProbe(Evaluation):
    """A linear layer trained step by step on the features that the backbone has just then.

    It sees view 0 of each batch in evaluation mode, detached, standardized by running statistics,
    and starts at zero, so it draws nothing. Cheaper than a probe after training, and of another
    meaning: it learns from augmented images, while the features move. In short runs it stays far
    below the others for both reasons.

    Args:
        lr, momentum, weight_decay: of SGD, whose lr does not fall.
        test_limit: test images used; null: all.
        precision: of the backbone's pass, in learning and in judging.
    """

    wants = "run"

    def __init__(
        self,
        *,
        lr: PositiveFloat = 0.1,
        momentum: UnitInterval = 0.9,
        weight_decay: NonNegativeFloat = 0.0,
        test_limit: PositiveInt | None = None,
        precision: Precision = "fp32",
    ):
        self.settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.test_limit, self.precision = test_limit, precision

    def check(self, splits: Splits) -> None:
        check_usable("OnlineProbe", test_split=splits.split("test"))
        labels = splits.split("pretrain").labels
        if labels is None or not (labels >= 0).any():
            raise ValueError("OnlineProbe needs labels, and no image of the training set has one")

    def begin(self, backbone: nn.Module, splits: Splits, device: torch.device) -> None:
        width, classes = backbone.num_features, splits.split("pretrain").num_classes
        self.device = device
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(width, affine=False), nn.Linear(width, classes)
        ).to(device)
        for p in self.classifier.parameters():
            nn.init.zeros_(p)
        self.optimizer = torch.optim.SGD(self.classifier.parameters(), **self.settings)

    def after_step(self, backbone: nn.Module, batch: Batch) -> None:
        with autocast(self.device, self.precision):
            h = backbone(batch.views[0])
        # Of all ranks, so that all learn the same.
        h, y = distributed.gather(h.float()), distributed.gather(batch.label)  # [N, F], [N]
        h, y = h[y >= 0], y[y >= 0]
        if len(y) < 2:  # no variance
            return
        with torch.enable_grad():
            loss = F.cross_entropy(self.classifier.train()(h), y)
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            return
        if state["settings"] != self.settings:
            trained = f"OnlineProbe was trained with {state['settings']}"
            raise ValueError(f"{trained}; expected these settings, found {self.settings}")
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])

    def evaluate(self, context: Context) -> Outcome:
        test = context.features("test", self.precision, self.test_limit)
        return distributed.attempt(lambda: self._judge(test))

    @torch.no_grad()
    def _judge(self, test: Labeled) -> Outcome:
        check_usable("OnlineProbe", test_split=test)
        p = self.classifier.eval()(test.features.to(self.device)).softmax(1).cpu()  # [m, C]
        best = p.topk(min(5, p.shape[1]), dim=1)
        protocol = {
            "trained": "beside the method, on view 0 of each batch",
            **self.settings,
            "test": f"test split, clean views, {len(test.labels)} images",
            "precision": self.precision,
        }
        rows = Rows.of(test, best.indices[:, 0], best.values[:, 0])
        return Outcome(top1_and_top5(best.indices == test.labels[:, None]), protocol, rows)
