"""What an arm has to beat: raw pixels, its own backbone before training, and so on.

Each number is kept beside all that it depends on, so arms that have that in common share it, and
a study that goes on measures only what it lacks.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_zoo import experiment
from ssl_zoo.study.grid import Run
from ssl_zoo.system.files import write_text


class Baselines:
    """A study's baselines.json: a list of evaluations' results.

    Each has its `evaluation` and `baseline` by name, and what it `depends_on`. A file of an
    earlier form counts as empty: its numbers are measured again.
    """

    def __init__(self, path: Path):
        self.path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        ours = isinstance(known, list) and all("depends_on" in result for result in known)
        self.known: list[dict[str, Any]] = known if ours else []
        self._images: dict[str, dict[str, Any] | None] = {}  # looked at once in a sitting

    def of(self, run: Run) -> dict[str, dict[str, dict[str, Any] | None]]:
        """Evaluation -> baseline -> its result, None if it has not been measured."""
        return {
            evaluation: {name: self._find(_key(run, evaluation, name)) for name in baselines}
            for evaluation, baselines in run.baselines.items()
        }

    def _find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        return next((result for result in self.known if key.items() <= result.items()), None)

    def measure(self, run: Run, say: Callable[[str], None]) -> None:
        """Measures and writes what a run has to beat and is not known, or of images that changed.

        Raises:
            ValueError: an evaluation does not go with the data.
        """
        for evaluation, results in self.of(run).items():
            known = {name: result for name, result in results.items() if result is not None}
            outdated = [n for n, result in known.items() if self._outdated(run, evaluation, result)]
            if lacking := [n for n in results if n not in known or n in outdated]:
                others = ": the images are others than before" if outdated else ""
                say(f"baselines of {run}: {evaluation}{others}")
                measured = experiment.measure_baselines(run.config, evaluation, lacking)
                self.known = [r for r in self.known if not any(r is known[n] for n in outdated)]
                self.known += [of | _key(run, evaluation, n) for n, of in measured.items()]
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_text(self.path, json.dumps(self.known, indent=1))

    def _outdated(self, run: Run, evaluation: str, result: dict[str, Any]) -> bool:
        if run.files.finished:  # its images may be gone
            return False
        which = json.dumps([run.config["data"], run.config["evaluations"][evaluation]])
        if which not in self._images:
            self._images[which] = experiment.images_of(run.config, evaluation)
        now = self._images[which]
        return now is not None and result["of"]["data"] != now


def _key(run: Run, evaluation: str, baseline: str) -> dict[str, Any]:
    of = run.baselines[evaluation][baseline]
    return {"evaluation": evaluation, "baseline": baseline, "depends_on": of}
