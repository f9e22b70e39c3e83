"""The kNN monitor: what the representation is worth, while it is being learned."""

from __future__ import annotations

from typing import Any, Literal

from ssl_zoo.config import above, at_least
from ssl_zoo.engine.hooks.base import Hook
from ssl_zoo.evaluation import knn
from ssl_zoo.evaluation.features import check_labels
from ssl_zoo.system import distributed


class KNNMonitor(Hook):
    """Weighted kNN vote (arXiv:1805.01978) on frozen features, every few epochs and at the end.

    Training does not notice: random numbers, BatchNorm statistics and module modes are the same
    before and after. Every rank extracts its share of the features; rank 0 searches them.

    Args:
        every_epochs: epochs between two evaluations, fractions allowed; None: only at the end.
        k, temperature, index: see `ssl_zoo.evaluation.knn.vote`.
        bank_limit, query_limit: images used of the training and of the test split; None: all.
        precision: of the backbone's pass. An untrained network's features are nearly all alike, and
            bf16 rounds away what they differ in.
        baselines: before the first step, measure raw pixels and the untrained backbone as well.

    Attributes:
        latest, best: {'top1', 'top5', 'protocol'} of the last and of the highest top-1 evaluation,
            or None before the first.
    """

    def __init__(
        self,
        *,
        every_epochs: float | None = 1.0,
        k: int = 200,
        temperature: float = 0.07,
        index: Literal["flat", "ivf", "hnsw"] = "flat",
        bank_limit: int | None = None,
        query_limit: int | None = None,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        baselines: bool = True,
    ):
        self.every_epochs, self.baselines = every_epochs, baselines
        self.protocol = {
            "k": k,
            "temperature": temperature,
            "index": index,
            "bank_limit": bank_limit,
            "query_limit": query_limit,
            "precision": precision,
        }
        self.latest: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        self.evaluated_at = 0  # the step of `latest`; 0 before the first

    @staticmethod
    def validate(
        *, every_epochs=1.0, k=200, temperature=0.07, bank_limit=None, query_limit=None, **others
    ):
        above("every_epochs", every_epochs, 0)
        at_least("query_limit", query_limit, 1)
        knn.check_protocol(k, temperature, bank_limit)

    def before_train(self, trainer) -> None:
        # Rank 0's word counts: folders need not be shared between machines.
        lines = distributed.broadcast(trainer.recorded() if distributed.is_main() else None)
        for line in lines:
            if line["kind"] == "knn":
                self._keep(line, line["step"])
                trainer.status["knn"] = line["top1"]
        # What the last evaluation would refuse is refused before the first step.
        labels = {name: trainer.data.split(name).labels for name in ("train", "test")}
        for name, known in labels.items():
            check_labels("kNN", name, known)
        knn.check_protocol(self.protocol["k"], self.protocol["temperature"], len(labels["train"]))
        if trainer.step == 0 and self.baselines:
            done = {line["name"] for line in lines if line["kind"] == "baseline"}
            for name, backbone in (
                ("pixels", knn.Pixels()),
                ("random", trainer.method.encoder.backbone),
            ):
                if name not in done:
                    self._evaluate(trainer, backbone, "baseline", name=name)

    def after_step(self, trainer, out) -> None:
        due = trainer.step == trainer.total_steps
        if self.every_epochs is not None:
            due |= trainer.step % trainer.steps_in(self.every_epochs) == 0
        if due:
            self._monitor(trainer)

    def after_train(self, trainer) -> None:
        self._monitor(trainer)  # for a sitting that starts after the last step

    def _monitor(self, trainer) -> None:
        if self.evaluated_at == trainer.step:
            return
        trainer.check_finite()
        result = self._evaluate(trainer, trainer.method.encoder.backbone, "knn")
        self._keep(result, trainer.step)
        trainer.status["knn"] = result["top1"]

    def _evaluate(self, trainer, backbone, kind: str, **names) -> dict[str, Any]:
        with trainer.paused():
            result = knn.evaluate(backbone, trainer.data, trainer.device, **self.protocol)
        if distributed.is_main():
            trainer.record(kind, **names, **result)
        return result

    def _keep(self, result: dict[str, Any], step: int) -> None:
        result = {name: result[name] for name in ("top1", "top5", "protocol")}
        self.latest, self.evaluated_at = result, step
        if self.best is None or result["top1"] > self.best["top1"]:
            self.best = result
