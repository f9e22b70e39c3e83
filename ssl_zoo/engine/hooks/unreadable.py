"""Images that a run goes on without."""

from typing import Any

from ssl_zoo.engine.hooks.base import Hook
from ssl_zoo.system import distributed


class Unreadable(Hook):
    """Tells of each image that was skipped as it cannot be read; at the end of how many, by split.

    result.json has all of them. Of another rank's images this one learns with the next checkpoint.

    Args:
        met: split -> name -> why; the data add to it as they meet them.
    """

    def __init__(self, met: dict[str, dict[str, str]]):
        self.met = met
        self.told: set[tuple[str, str]] = set()

    def after_step(self, trainer, batch, out) -> None:
        self._tell_new(trainer)

    def after_train(self, trainer) -> None:
        self._tell_new(trainer)
        if self.met:
            counts = ", ".join(f"{len(names)} of {split}" for split, names in self.met.items())
            trainer.say(f"{trainer.name}: skipped as unreadable: {counts}; result.json lists them")
            trainer.results["unreadable"] = self.met

    def _tell_new(self, trainer) -> None:
        if sum(map(len, self.met.values())) == len(self.told):  # at every step
            return
        for split, names in self.met.items():
            for name, why in names.items():
                if (split, name) not in self.told:
                    trainer.say(f"{trainer.name}: skipped: {why}")
                    self.told.add((split, name))

    def state_dict(self) -> dict[str, Any]:
        """What all ranks have met; from here on each of them counts those as well."""
        for theirs in distributed.collect(self.met):
            self._add(theirs)
        return {split: dict(names) for split, names in self.met.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._add(state)
        self.told = {(split, name) for split, names in self.met.items() for name in names}

    def _add(self, more: dict[str, dict[str, str]]) -> None:
        for split, names in more.items():
            self.met.setdefault(split, {}).update(names)
