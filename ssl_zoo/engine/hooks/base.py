"""What happens around a step without being part of it."""

from typing import Any

from torch import Tensor

from ssl_zoo.core import Batch


class Hook:
    """Called with the trainer, in the order of its hooks; every method is optional."""

    def before_load(self, trainer, state: dict[str, Any]) -> None:
        """Before a checkpoint's state is loaded; may change it, or raise ValueError."""

    def before_train(self, trainer) -> None:
        """Before the first step of this sitting; `trainer.step` is where it starts."""

    def before_step(self, trainer) -> None:
        """Before step number `trainer.step`, counted from 0."""

    def after_step(self, trainer, batch: Batch, out: dict[str, Tensor]) -> None:
        """After a step; `trainer.step` steps are done. `out` is detached."""

    def batch_failed(self, trainer) -> None:
        """After a step, when the next batch cannot be had; an error ends the sitting then."""

    def after_train(self, trainer) -> None:
        """After the run's last step; not after an interruption."""

    def close(self, trainer) -> None:
        """At the end of the sitting, whatever ended it."""

    def state_dict(self) -> dict[str, Any]:
        """What a bitwise resume needs of the hook; every rank calls it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` has given."""
