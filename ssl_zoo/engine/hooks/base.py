"""What happens around a step without being part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ssl_zoo.engine.trainer import Trainer


class Hook:
    """Called by the trainer, in the order of its list; every method is optional."""

    def before_train(self, trainer: Trainer) -> None:
        """Before the first step of this sitting; `trainer.step` is where it starts."""

    def before_step(self, trainer: Trainer) -> None:
        """Before step number `trainer.step`, counted from 0."""

    def after_step(self, trainer: Trainer, out: dict[str, Tensor]) -> None:
        """After a step; `trainer.step` steps are done. `out` is detached."""

    def after_train(self, trainer: Trainer) -> None:
        """After the run's last step; not after an interruption."""

    def close(self, trainer: Trainer) -> None:
        """At the end of the sitting, whatever ended it."""
