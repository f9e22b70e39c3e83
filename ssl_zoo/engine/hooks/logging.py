"""Numbers to files: metrics.jsonl while training, result.json at the end."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict

import torch
from torch import Tensor

from ssl_zoo.engine.hooks.base import Hook
from ssl_zoo.engine.schedules import Schedules
from ssl_zoo.evaluation.monitor import KNNMonitor
from ssl_zoo.ops import health
from ssl_zoo.system import distributed
from ssl_zoo.system.files import write_text


class MetricsLogger(Hook):
    """After the first step and every `log_every` steps, a line: means since the line before.

    Means are taken on the device, once a line, and only then does the host wait for it.
    """

    def __init__(self, schedules: Schedules) -> None:
        self.schedules = schedules
        self.seen: dict[str, list[Tensor]] = defaultdict(list)
        self.mark = (0, 0.0)  # steps and seconds at the last line
        self.warned = False

    def before_train(self, trainer) -> None:
        self.mark = (trainer.step, trainer.seconds)

    def after_step(self, trainer, out: dict[str, Tensor]) -> None:
        for name, value in out.items():
            if value.dim() == 0:
                self.seen[name].append(value)
        if trainer.step % trainer.log_every == 0 or trainer.step in (1, trainer.total_steps):
            self._line(trainer)

    def _line(self, trainer) -> None:
        own = torch.stack([torch.stack(v).float().mean() for v in self.seen.values()])
        means = dict(zip(self.seen, distributed.mean(own).tolist(), strict=True))
        trainer.check_finite()
        trainer.clock()
        steps, seconds = trainer.step - self.mark[0], trainer.seconds - self.mark[1]
        rate = steps * trainer.data.batch_size / max(seconds, 1e-9)
        if distributed.is_main():
            with trainer.paused(memory=False):
                telemetry = trainer.method.telemetry(trainer.labels)
            lr = trainer.optimizer.param_groups[0]["lr"]
            scheduled = self.schedules.current()
            trainer.record("train", **means, lr=lr, **scheduled, images_per_s=rate, **telemetry)
        self._warn(trainer, means)
        trainer.status |= {"loss": means["loss"], "images_per_s": rate}
        self.seen.clear()
        self.mark = (trainer.step, trainer.seconds)

    def _warn(self, trainer, means: dict[str, float]) -> None:
        """Says that the representation has collapsed, once a sitting."""
        wrong = health.verdict(means)
        if wrong and not self.warned:
            self.warned = True
            trainer.say(f"{trainer.name}: collapse at step {trainer.step}? {wrong}")


class ResultWriter(Hook):
    """result.json: the run's closing figures, written last, so its presence means 'finished'."""

    def after_train(self, trainer) -> None:
        if not distributed.is_main():
            return
        lines = [line for line in trainer.recorded() if line["kind"] == "train"]
        if not lines:
            trainer.say(
                f"{trainer.name}: metrics.jsonl has no line of training (was it removed?); "
                "result.json has no loss, accuracy or speed"
            )
        last = lines[-1] if lines else {}
        rates = [line["images_per_s"] for line in lines]
        knn = next((hook.latest for hook in trainer.hooks if isinstance(hook, KNNMonitor)), None)
        result = {
            "knn": knn,
            "pretext_top1": last.get("top1"),
            "loss": last.get("loss"),
            "images_per_s": statistics.median(rates) if rates else None,
            "peak_memory_gb": trainer.peak_memory.peak() / 1e9,
            "seconds": trainer.seconds,
            "steps": trainer.step,
            "epochs": trainer.epoch,
            "precision": trainer.precision,
            "torch": torch.__version__,
        }
        write_text(trainer.folder / "result.json", json.dumps(result, indent=2))
