"""What an arm has to beat: raw pixels, its own backbone before training, and so on.

Each number is kept beside all that it depends on, so arms that have that in common share it, and
a study that goes on measures only what it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ssl_zoo import experiment
from ssl_zoo.study.grid import Run
from ssl_zoo.system.files import write_text

PIXELS, RANDOM = "raw pixels", "random backbone"  # what most evaluations have


def depends_on(config: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Evaluation -> baseline -> what its number depends on; `seed` is among that if it does.

    Args:
        config: a run's, with every default written down.
    """
    return experiment.baselines_of(config)


class Baselines:
    """A study's baselines.json: a list of an evaluation's results.

    Each has its `evaluation` and `baseline` by name, and what it depends on, `of`. A file of an
    earlier form counts as empty: its numbers are measured again.
    """

    def __init__(self, path: Path):
        self.path = path
        records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        whole = isinstance(records, list) and all("evaluation" in record for record in records)
        self.known: list[dict[str, Any]] = records if whole else []

    def find(self, evaluation: str, baseline: str, of: dict[str, Any]) -> dict[str, Any] | None:
        """The result that depends on exactly this."""
        key = {"evaluation": evaluation, "baseline": baseline, "of": of}
        return next((result for result in self.known if key.items() <= result.items()), None)

    def keep(self, evaluation: str, baseline: str, of: dict[str, Any], result: dict) -> None:
        """Adds a result and writes the file."""
        self.known.append({"evaluation": evaluation, "baseline": baseline, "of": of, **result})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.known, indent=1))

    def measure(self, runs: Iterable[Run], say: Callable[[str], None]) -> None:
        """Measures what the runs have to beat and is not known.

        Raises:
            ConfigError: an evaluation is impossible on a data set.
        """
        for run in runs:
            for evaluation, wanted in depends_on(run.config).items():
                lacking = {n: of for n, of in wanted.items() if not self.find(evaluation, n, of)}
                if not lacking:
                    continue
                say(f"baselines of {run}: {evaluation}")
                results = experiment.measure_baselines(run.config, evaluation, list(lacking))
                for baseline, of in lacking.items():
                    self.keep(evaluation, baseline, of, results[baseline])
