"""When to save, what to keep, and what a signal does."""

import shutil

from ssl_zoo.config import DueEpochs, OfMachine, PositiveFloat, PositiveInt, constrained
from ssl_zoo.engine import checkpoint
from ssl_zoo.engine.hooks.base import Hook
from ssl_zoo.engine.stop import Interrupted
from ssl_zoo.system import distributed
from ssl_zoo.system.files import replacing

RANKS_ASK_EVERY = 20  # steps at most between two questions whether a rank was told to stop


@constrained
class Checkpoints(Hook):
    """Saves every few epochs, before an evaluation, at the end, when asked to stop, and, on one
    process, before an error of the data.

    A signal finishes the step (on several processes the steps of some 5 s), saves, and ends the
    sitting with `Interrupted`. The newest `keep` files stay, and the best one as best.pt besides.
    """

    def __init__(
        self,
        *,
        every_epochs: OfMachine[DueEpochs[PositiveFloat]] = 1.0,
        keep: OfMachine[PositiveInt] = 2,
    ):
        self.every_epochs, self.keep, self.saved_at = every_epochs, keep, -1

    def before_train(self, trainer) -> None:
        self.every = trainer.steps_in(self.every_epochs)
        if distributed.is_main():
            trainer.folder.clean_up()

    def after_step(self, trainer, batch, out) -> None:
        last = trainer.step == trainer.total_steps
        stop = trainer.stop.asked_of_some_rank(RANKS_ASK_EVERY)
        if stop or last or trainer.step % self.every == 0:
            self.save(trainer)
            if stop and not last:
                saved = trainer.folder.checkpoint(trainer.step)
                raise Interrupted(f"stopped at step {trainer.step}; saved {saved}")

    def batch_failed(self, trainer) -> None:
        # On several processes the others are in the midst of a step, and a save takes all.
        if trainer.step and distributed.world() == 1:
            self.save(trainer)

    def save(self, trainer) -> None:
        """Once a step, whoever asks; every rank calls it, rank 0 writes."""
        if self.saved_at == trainer.step:
            return
        trainer.check_finite()
        with trainer.paused(memory=False):
            state = trainer.state_dict()
            if distributed.is_main():
                checkpoint.write(state, trainer.folder.checkpoint(trainer.step))
                for old in trainer.folder.checkpoints()[: -self.keep]:
                    old.unlink()
            distributed.barrier()
        self.saved_at = trainer.step

    def keep_as_best(self, trainer) -> None:
        """Copies this step's checkpoint to best.pt; rank 0 alone."""
        path = trainer.folder.checkpoint(trainer.step)
        if distributed.is_main() and path.exists():
            with replacing(trainer.folder.best) as staged:
                shutil.copyfile(path, staged)
