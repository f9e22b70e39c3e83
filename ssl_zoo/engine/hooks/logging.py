"""Numbers to files: metrics.jsonl while training, result.json at the end."""

import statistics
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.core import Observer
from ssl_zoo.engine.hooks.base import Hook
from ssl_zoo.engine.hooks.scheduling import Schedules
from ssl_zoo.system import distributed


class MetricsLogger(Hook):
    """After the first step and every `log_every` steps, a line: means since the line before.

    Means are taken on the device, once a line, and only then does the host wait for it. What
    observers say goes into the line, what they warn of is said once.
    """

    def __init__(
        self,
        schedules: Schedules,
        observers: dict[str, Observer] | None = None,
        labels: Tensor | None = None,
    ) -> None:
        self.schedules, self.observers, self.labels = schedules, observers or {}, labels
        self.seen: dict[str, list[Tensor]] = defaultdict(list)
        self.mark: tuple[int, float] | None = None  # steps and seconds at the last line
        self.warned: set[str] = set()

    def before_train(self, trainer) -> None:
        self.mark = self.mark or (trainer.step, trainer.seconds)
        for values in self.seen.values():  # of an earlier sitting
            values[:] = [value.to(trainer.device) for value in values]
        self.compiles = trainer.settings.compile

    def after_step(self, trainer, batch, out: dict[str, Tensor]) -> None:
        for name, value in out.items():
            if value.dim() == 0:
                self.seen[name].append(value)
        for observer in self.observers.values():
            observer.after_step(trainer.method, batch, out)
        if self.compiles:
            self.compiles = False
            trainer.clock()
            took = trainer.seconds - self.mark[1]
            trainer.say(f"{trainer.name}: the first step, compilation included, took {took:.0f} s")
        if trainer.step % trainer.log_every == 0 or trainer.step in (1, trainer.total_steps):
            self._line(trainer)

    def _line(self, trainer) -> None:
        here = torch.stack([torch.stack(v).float().mean() for v in self.seen.values()])
        means = dict(zip(self.seen, distributed.mean(here).tolist(), strict=True))
        trainer.check_finite()
        trainer.clock()
        steps, seconds = trainer.step - self.mark[0], trainer.seconds - self.mark[1]
        rate = steps * trainer.data.batch_size / max(seconds, 1e-9)
        lr, observed = trainer.optimizer.param_groups[0]["lr"], {}
        if distributed.is_main():
            with trainer.paused(memory=False):
                for observer in self.observers.values():
                    observed |= observer.scalars(trainer.method, self.labels)
            scheduled = self.schedules.current(trainer)
            trainer.record("train", **means, lr=lr, **scheduled, images_per_s=rate, **observed)
        for name, observer in self.observers.items():
            if (warning := observer.warning(means)) and name not in self.warned:
                self.warned.add(name)
                trainer.say(f"{trainer.name}: step {trainer.step}: {warning}")
        shown = {"loss": f"loss {means['loss']:.3f}", "lr": f"lr {lr:.2g}"}
        trainer.status |= {**shown, "speed": f"{rate:.0f} images/s"}
        self.seen.clear()
        self.mark = (trainer.step, trainer.seconds)

    def state_dict(self) -> dict[str, Any]:
        """What the next line is made of: each rank's values since the last one."""
        seen = {name: torch.stack(values).cpu() for name, values in self.seen.items()}
        return {"seen": distributed.collect(seen), "mark": self.mark}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:  # checkpoints of 0.1 and before have none
            of_ranks = state["seen"]
            for name, values in of_ranks[distributed.rank() % len(of_ranks)].items():
                self.seen[name] = list(values.unbind())
            self.mark = state["mark"] and tuple(state["mark"])


class ResultWriter(Hook):
    """result.json: the run's closing figures, written last, so its presence means 'finished'."""

    def after_train(self, trainer) -> None:
        if not distributed.is_main():
            return
        lines = [line for line in trainer.folder.metrics() if line["kind"] == "train"]
        if not lines:
            problem = "metrics.jsonl has no line of training"
            trainer.say(f"{trainer.name}: {problem}; result.json has no loss, accuracy or speed")
        last = lines[-1] if lines else {}
        rates = [line["images_per_s"] for line in lines]
        trainer.folder.write_result(
            {
                **trainer.results,
                "pretext_top1": last.get("top1"),
                "loss": last.get("loss"),
                "images_per_s": statistics.median(rates) if rates else None,
                "peak_memory_gb": trainer.peak_memory.peak() / 1e9,
                "seconds": trainer.seconds,
                "steps": trainer.step,
                "epochs": trainer.epoch,
                "precision": trainer.precision,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
