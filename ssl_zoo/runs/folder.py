"""A run's folder: the one place that names, reads and writes what is in it."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ssl_zoo import config
from ssl_zoo.runs.lock import Lock
from ssl_zoo.system.files import append_line, read_lines, write_text
from ssl_zoo.system.text import one_line, visible

FORMAT = 2


class RunFolder:
    """config.yaml (resolved, re-runnable), environment.json, metrics.jsonl, log.txt,
    checkpoints/, evaluations/, error.txt after a failure, and result.json when finished.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.lock = Lock(self.path / ".lock")
        self.config_path = self.path / "config.yaml"
        self.best = self.path / "checkpoints" / "best.pt"
        self.stdout = self.path / "stdout.txt"  # of a run that a study has started

    @property
    def name(self) -> str:
        """Short, for the screen: the arm and the seed."""
        return one_line("/".join(self.path.parts[-2:]))

    @property
    def finished(self) -> bool:
        return (self.path / "result.json").exists()

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.path / "checkpoints").glob("step_*.pt"))

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step:08d}.pt"

    @classmethod
    def of_checkpoint(cls, path: Path) -> RunFolder | None:
        """The run that a checkpoint lies in; None for one that was copied elsewhere."""
        run = cls(path.parent.parent)
        inside = path.parent == run.best.parent and run.config_path.exists()
        return run if inside else None

    def inside(self, *names: str) -> RunFolder:
        """A folder of its own below this one, for what trains inside the run."""
        return RunFolder(self.path.joinpath(*names))

    # What it holds.

    def config(self) -> dict[str, Any] | None:
        """The resolved config that was trained here; None before anything was written."""
        return config.load(self.config_path).data if self.config_path.exists() else None

    def result(self) -> dict[str, Any]:
        return self._json("result.json")

    def environment(self) -> dict[str, Any]:
        return self._json("environment.json")

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of all sittings; `kind` is 'train', 'evaluation' or 'baseline'."""
        return read_lines(self.path / "metrics.jsonl")

    def error(self) -> str:
        """Why the last sitting failed; '' if it did not."""
        file = self.path / "error.txt"
        return file.read_text(encoding="utf-8").strip() if file.exists() else ""

    def evaluation(self, name: str) -> dict[str, Any]:
        """The newest result of an evaluation; {} before the first."""
        return self._json(f"evaluations/{name}/result.json")

    def rows_path(self, name: str) -> Path:
        """An evaluation's row for each test image; no file before the first, or without any."""
        return self.path / "evaluations" / name / "rows.csv"

    def picture_path(self, name: str, picture: str) -> Path:
        """Of one that the evaluation's newest result names."""
        return self.path / "evaluations" / name / picture

    def check_format(self) -> None:
        """Raises ValueError for a folder that another version wrote."""
        environment = self.environment()
        if environment and (written := environment.get("format", 1)) != FORMAT:
            problem = f"holds a run of format {written}, which this version does not read"
            raise ValueError(f"{self.path} {problem}; give another --out")

    # What is written.

    def begin(self, resolved: dict[str, Any], environment: dict[str, Any]) -> None:
        """Before a sitting: what is about to run, on what."""
        self.clear_error()
        (self.path / "result.json").unlink(missing_ok=True)
        self.write_config(resolved)
        self._write("environment.json", json.dumps({"format": FORMAT, **environment}, indent=2))

    def write_config(self, resolved: dict[str, Any]) -> None:
        self._write("config.yaml", config.dump(resolved).rstrip())

    def record(self, line: dict[str, Any]) -> None:
        """Appends to metrics.jsonl."""
        self._append("metrics.jsonl", json.dumps(line))

    def forget_after(self, step: int) -> None:
        """Drops metrics that a killed sitting wrote after its last checkpoint."""
        kept = [json.dumps(line) for line in self.metrics() if line["step"] <= step]
        self._write("metrics.jsonl", "\n".join(kept))

    def forget_all(self) -> None:
        """Drops what a sitting without a checkpoint left: metrics, and what evaluations wrote."""
        self.forget_after(-1)
        shutil.rmtree(self.path / "evaluations", ignore_errors=True)

    def clean_up(self) -> None:
        """Removes files that a killed sitting had not finished writing."""
        for left in (*self.path.glob("*.tmp"), *self.best.parent.glob("*.tmp")):
            left.unlink()

    def log(self, text: str) -> None:
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible(text)}")

    def write_result(self, result: dict[str, Any]) -> None:
        """Last, so that its presence means 'finished'."""
        self._write("result.json", json.dumps(result, indent=2))

    def write_evaluation(self, name: str, result: dict[str, Any], rows: str) -> None:
        """An evaluation's result and, as CSV, its row for each test image."""
        self._write(f"evaluations/{name}/result.json", json.dumps(result, indent=2))
        self._write(f"evaluations/{name}/rows.csv", rows.rstrip())

    def write_error(self, text: str) -> None:
        """Raises nothing: an error of writing it down would take its place."""
        with suppress(OSError):
            self._write("error.txt", visible(text).rstrip())

    def clear_error(self) -> None:
        (self.path / "error.txt").unlink(missing_ok=True)

    def _json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def _write(self, name: str, text: str) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text + "\n" if text else "")

    def _append(self, name: str, line: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        append_line(self.path / name, line)
