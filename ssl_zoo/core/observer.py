"""Looking on while a method trains."""

from torch import Tensor

from ssl_zoo.config import OBSERVERS
from ssl_zoo.core.batch import Batch
from ssl_zoo.core.method import Method
from ssl_zoo.ops import health


class Observer:
    """Writes scalars beside a method's losses; changes nothing."""

    def after_step(self, method: Method, batch: Batch, out: dict[str, Tensor]) -> None:
        """Every step, after the method's own; must be cheap."""

    def scalars(self, method: Method, labels: Tensor | None) -> dict[str, float]:
        """Asked when a line is logged, on rank 0; labels [num_samples] of the training set, None
        where none is known beforehand.
        """
        return {}

    def warning(self, scalars: dict[str, float]) -> str:
        """What a person should know of a line's scalars, said once a sitting; '' for nothing."""
        return ""


@OBSERVERS.register_module()
class Telemetry(Observer):
    """What the method itself wants logged."""

    def scalars(self, method: Method, labels: Tensor | None) -> dict[str, float]:
        return method.telemetry(labels)


@OBSERVERS.register_module()
class Collapse(Observer):
    """Warns where a method's figures tell that its representation has collapsed."""

    def warning(self, scalars: dict[str, float]) -> str:
        wrong = health.collapse(scalars)
        return f"collapse? {wrong}" if wrong else ""
