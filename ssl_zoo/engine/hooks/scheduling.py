"""Setting scheduled values."""

from functools import reduce

from ssl_zoo.engine.hooks.base import Hook
from ssl_zoo.engine.schedules import Linear, Schedule


class Schedules(Hook):
    """Sets numbers, by dotted name (`method.memory.momentum`), before each step; has no state."""

    def __init__(self, schedules: dict[str, Schedule | Linear]):
        self.schedules = schedules
        self.bases: dict[str, list[float | None]] = {}

    def attach(self, trainer) -> None:
        """Notes the config's values; a checkpoint, read later, would bring scheduled ones."""
        for name in self.schedules:
            owners, attribute = _owners(trainer, name)
            kept = f"constant_{attribute}"  # of norms and biases, and see `set_apart`
            self.bases[name] = [None if o.get(kept) else o[attribute] for o in owners]

    def before_step(self, trainer) -> None:
        now, end = trainer.step / trainer.unit, trainer.total_steps / trainer.unit
        for name, schedule in self.schedules.items():
            owners, attribute = _owners(trainer, name)
            for owner, base in zip(owners, self.bases[name], strict=True):
                if base is not None:
                    owner[attribute] = schedule(base, now, end)

    def current(self, trainer) -> dict[str, float]:
        """The scheduled values in use, by name."""
        places = {name: _owners(trainer, name) for name in self.schedules}
        return {name: owners[0][attribute] for name, (owners, attribute) in places.items()}


def _owners(trainer, name: str) -> tuple[list[dict], str]:
    """The dicts that hold a value: the optimizer's groups, or a module's attributes."""
    *path, attribute = name.split(".")
    part = reduce(getattr, path, trainer)
    return (part.param_groups if path == ["optimizer"] else [vars(part)]), attribute
