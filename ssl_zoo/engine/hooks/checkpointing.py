"""When to save, what to keep, and what a signal does."""

from __future__ import annotations

import shutil
import signal

from ssl_zoo.config import above, at_least
from ssl_zoo.engine import checkpoint
from ssl_zoo.engine.hooks.base import Hook
from ssl_zoo.evaluation.monitor import KNNMonitor
from ssl_zoo.system import distributed
from ssl_zoo.system.files import replacing

RANKS_ASK_EVERY = 20  # steps between two questions whether a rank was told to stop


class Interrupted(Exception):
    """The run was asked to stop, and has saved itself."""


class Checkpointing(Hook):
    """Saves every few epochs, at the end, and when the run is asked to stop.

    SIGINT and SIGTERM (Ctrl-C, a scheduler's preemption) finish the step (on several processes
    within 20 steps), save, and end the sitting with `Interrupted`; a second Ctrl-C ends it at once.
    A new file is complete on disk before an older one is removed.

    Args:
        every_epochs: fractions allowed.
        keep: the newest so many stay; the one with the best kNN top-1 stays as best.pt besides.
    """

    def __init__(self, *, every_epochs: float = 1.0, keep: int = 2):
        self.validate(every_epochs=every_epochs, keep=keep)
        self.every_epochs, self.keep = every_epochs, keep
        self.stop_asked = False
        self.handlers: dict = {}

    @staticmethod
    def validate(*, every_epochs: float = 1.0, keep: int = 1) -> None:
        above("every_epochs", every_epochs, 0)
        at_least("keep", keep, 1)

    def before_train(self, trainer) -> None:
        self.every = trainer.steps_in(self.every_epochs)
        if distributed.is_main():
            for left in (trainer.folder / "checkpoints").glob("*.tmp"):  # of a save that was killed
                left.unlink()
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number, frame) -> None:
        self.stop_asked = True
        signal.signal(number, self.handlers[number])

    def after_step(self, trainer, out) -> None:
        last = trainer.step == trainer.total_steps
        stop = self._stop(trainer)
        if stop or last or trainer.step % self.every == 0 or _improved(trainer):
            path = self.save(trainer)
            if stop and not last:
                raise Interrupted(f"stopped at step {trainer.step}; saved {path}")

    def _stop(self, trainer) -> bool:
        # Ranks get the signal at different steps; they ask each other only now and then.
        if distributed.world() == 1:
            return self.stop_asked
        return trainer.step % RANKS_ASK_EVERY == 0 and any(distributed.collect(self.stop_asked))

    def save(self, trainer):
        trainer.check_finite()
        with trainer.paused(memory=False):
            path = checkpoint.save(trainer)
            if distributed.is_main():
                if _improved(trainer):
                    with replacing(path.with_name("best.pt")) as staged:
                        shutil.copyfile(path, staged)
                for old in checkpoint.saved(trainer.folder)[: -self.keep]:
                    old.unlink()
        return path

    def close(self, trainer) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


def _improved(trainer) -> bool:
    """Whether the kNN monitor has just seen its best accuracy."""
    monitors = [hook for hook in trainer.hooks if isinstance(hook, KNNMonitor)]
    return any(m.evaluated_at == trainer.step and m.latest is m.best for m in monitors)
