"""Kept studies, results/NAME.json, as pages read them: scores by seed, comparisons, origins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ssl_zoo.config import ConfigError, not_among
from ssl_zoo.study.grid import Contrast, Point, title
from ssl_zoo.study.verdict import Comparison, planned

ROOT = Path(__file__).resolve().parents[1]
RESULTS, GRIDS = ROOT / "results", ROOT / "configs" / "ablation"
NEEDED = ("name", "command", "commit", "date", "contrasts", "evaluations", "main", "runs")


def read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError("", f"not JSON: {error}", where=str(path)) from error


class Quantity(NamedTuple):
    """What runs are compared in: an evaluation, or a number that training leaves."""

    name: str
    unit: str
    higher_is_better: bool
    header: str  # of a column


MEASURED = {
    "pretext_top1": Quantity("pretext_top1", "%", True, "pretext top-1, %"),
    "images_per_s": Quantity("images_per_s", "images/s", True, "images/s"),
    "peak_memory_gb": Quantity("peak_memory_gb", "GB", False, "peak GB"),
    "seconds": Quantity("seconds", "s", False, "seconds"),
}


@dataclass(frozen=True)
class Kept:
    """A study as `ssl-zoo ablate GRID --keep results/NAME.json` leaves it."""

    data: Mapping[str, Any]

    @classmethod
    def load(cls, name: str, folder: Path) -> Kept | None:
        """Of a file in a folder; None where there is no such file.

        Raises:
            ConfigError: the file is no kept study.
        """
        path = folder / name
        if not path.exists():
            return None
        data = read(path)
        found = list(data) if isinstance(data, dict) else []
        if missing := [key for key in NEEDED if key not in found]:
            shown = f"the keys {', '.join(found)}" if found else "no keys"
            expected = f"also {', '.join(missing)}"
            raise ConfigError("", "no kept study", found=shown, expected=expected, where=str(path))
        return cls(data)

    @property
    def points(self) -> list[Point]:
        """Arms with their points, in the order of the runs."""
        return list(dict.fromkeys((run["arm"], run["x"]) for run in self.data["runs"]))

    @property
    def evaluations(self) -> dict[str, Quantity]:
        found = {}
        for name, of in self.data["evaluations"].items():
            header = f"{name}, {of['unit']}" if of["unit"] else name
            found[name] = Quantity(name, of["unit"], of["higher_is_better"], header)
        return found

    def quantity(self, name: str | None = None) -> Quantity:
        """An evaluation or one of MEASURED; None: the study's main evaluation."""
        known, name = MEASURED | self.evaluations, self.data["main"] if name is None else name
        if name not in known:
            raise not_among("on", "neither an evaluation of the study nor measured", name, known)
        return known[name]

    def runs(self, point: Point) -> list[Mapping[str, Any]]:
        return [run for run in self.data["runs"] if (run["arm"], run["x"]) == point]

    def scores(self, point: Point, quantity: Quantity, highest: bool = False) -> dict[int, float]:
        """By seed, of finished runs, at the end of training; but what was judged in another way.

        Args:
            highest: the best of all epochs instead, which test images have chosen; of the main
                evaluation alone, the one that is kept over epochs.
        """
        if highest and quantity.name != self.data["main"]:
            problem, main = "only the main evaluation is kept over epochs", self.data["main"]
            raise ConfigError("at", problem, found=f"highest of {quantity.name}", expected=main)
        best, scores = max if quantity.higher_is_better else min, {}
        for run in self.runs(point):
            if run["state"] == "finished" and quantity.name not in run.get("made_otherwise", ()):
                score = {**run, **run["scores"]}.get(quantity.name)
                scores[run["seed"]] = best(v for _, v in run["curve"]) if highest else score
        return {seed: score for seed, score in scores.items() if score is not None}

    def compared(self, contrast: Contrast, quantity: Quantity) -> Comparison:
        """Corrected over the planned contrasts, if it is one of them and in the main evaluation."""
        texts = self.data["contrasts"]
        if str(contrast) not in texts or quantity.name != self.data["main"]:
            return self._compared(contrast, quantity)
        contrasts = [Contrast.read(text, self.points) for text in texts]
        compared = planned([self._compared(each, quantity) for each in contrasts])
        return compared[texts.index(str(contrast))]

    def _compared(self, contrast: Contrast, quantity: Quantity) -> Comparison:
        sides = (contrast.better, contrast.worse)
        scores = [self.scores(point, quantity) for point in sides]
        wanted = {run["seed"] for point in sides for run in self.runs(point)}
        return Comparison.of(
            *map(title, sides),
            *scores,
            unit=quantity.unit,
            higher_is_better=quantity.higher_is_better,
            lacking=sorted(wanted - set.intersection(*map(set, scores))),
        )

    @property
    def origin(self) -> str:
        """Where the numbers come from, in words."""
        data, machine = self.data, self.data.get("machine") or {}
        cores = f"{machine['cores']} cores" if machine.get("cores") else None
        torch = f"torch {machine['torch']}" if machine.get("torch") else None
        on = [cores, machine.get("cuda") or machine.get("cpu"), torch, machine.get("precision")]
        commits = [commit[:7] for commit in (data["commit"] or "").split(", ") if commit]
        commit = f"commit {' and '.join(commits)}" if commits else None
        said = [f"`{data['command']}`", data["date"], commit, *on]
        return ", ".join(filter(None, said))


def find_point(text: str, points: list[Point], key: str = "") -> Point:
    """Of 'an arm' or 'arm, point'; ConfigError for one that is not there."""
    by_name = {title(point): point for point in points}
    if text not in by_name:
        raise not_among(key, "no arm, or no point of one", text, by_name)
    return by_name[text]


def command(name: str, key: str = "") -> str:
    """What makes results/`name`, where its grid comes along."""
    grid = (GRIDS / name).with_suffix(".yaml")
    if not grid.exists():
        grids = sorted(f"{path.stem}.json" for path in GRIDS.glob("*.yaml"))
        raise not_among(key, "no kept study, and no grid of that name", name, grids)
    return f"ssl-zoo ablate {grid.relative_to(ROOT).as_posix()}"
