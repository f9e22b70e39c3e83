"""What an arm has to beat: raw pixels, and its own backbone before training.

Each number is kept beside all that it depends on, so arms that have that in common share it, and
a study that goes on measures only what it lacks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssl_zoo.system.files import write_text

PIXELS, RANDOM = "raw pixels", "random backbone"


def depends_on(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each baseline of a run depends on, by its name; nothing without kNN.

    Args:
        config: the run's, with every default written down.
    """
    if config["knn"] is None:
        return {}
    vote = {k: v for k, v in config["knn"].items() if k not in ("every_epochs", "baselines")}
    pixels = {"dataset": config["data"]["dataset"], "clean": config["data"]["clean"], "knn": vote}
    random = {**pixels, "backbone": config["backbone"], "seed": config["seed"]}
    return {PIXELS: pixels, RANDOM: random}


class Baselines:
    """A study's baselines.json: a list of results {top1, top5, protocol}, each with its `of`.

    A file of an earlier form counts as empty: its numbers are measured again.
    """

    def __init__(self, path: Path):
        self.path = path
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        self.known: list[dict[str, Any]] = found if isinstance(found, list) else []

    def find(self, of: dict[str, Any]) -> dict[str, Any] | None:
        """The result that depends on exactly this."""
        return next((result for result in self.known if result["of"] == of), None)

    def keep(self, of: dict[str, Any], result: dict[str, Any]) -> None:
        """Adds a result and writes the file."""
        self.known.append({"of": of, **result})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.known, indent=1))
