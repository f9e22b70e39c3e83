"""How a study divides the machine: how many runs side by side, and how many threads each.

Threads decide in which order numbers are added, so they are of the run. A study that leaves them
open settles them when it first starts and keeps them: its numbers repeat whatever --jobs is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_zoo.study.machine import child_environment
from ssl_zoo.system.files import write_text

Jobs = int | Literal["auto"]

STEPS = 20  # timed, the first of them a warm-up
WORTH_IT = 1.2  # several runs at once must be so many times as fast: they take more memory
MEASURE = (
    "import json, sys; from ssl_zoo import experiment; "
    "print(experiment.seconds_per_step(json.load(sys.stdin), *map(int, sys.argv[1:])))"
)


@dataclass(frozen=True)
class Division:
    """What study.json holds."""

    threads: int  # of each run that leaves `train.threads` open
    jobs: int  # runs side by side
    why: str  # in words

    @classmethod
    def read(cls, out: Path) -> Division | None:
        """What an earlier start of the study in this folder has settled."""
        path = out / "study.json"
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def write(self, out: Path) -> None:
        write_text(out / "study.json", json.dumps(asdict(self), indent=1))


def divide(configs: Sequence[dict[str, Any]], jobs: Jobs, cores: int, gpus: int) -> Division:
    """Divides the machine among runs of which none has begun.

    Args:
        configs: of the runs. `auto` measures on the first whether runs of few threads side by side
            get more done than one that has all cores.
    """
    asked = {config["train"]["threads"] for config in configs}
    if jobs != "auto":
        return Division(max(1, cores // jobs), jobs, f"--jobs {jobs} on {cores} cores")
    if gpus:
        return Division(max(1, cores // gpus), gpus, f"a run on each of {gpus} GPUs")
    if "auto" not in asked:
        return Division(max(asked), max(1, cores // max(asked)), f"as asked for, on {cores} cores")
    jobs = min(cores, len(configs))
    few = cores // jobs
    if jobs == 1:
        return Division(cores, 1, "one run, or one core")
    try:
        alone, beside = (seconds_per_step(configs[0], threads) for threads in (cores, few))
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().rpartition("\n")[2]
        return Division(cores, 1, f"a step could not be timed: {last}")
    gain = jobs * alone / beside
    why = (
        f"a step takes {1000 * alone:.0f} ms with {cores} threads and {1000 * beside:.0f} ms with "
        f"{few}, so {jobs} runs side by side are {gain:.2f} times as fast as one"
    )
    return Division(few, jobs, why) if gain > WORTH_IT else Division(cores, 1, why)


def seconds_per_step(config: dict[str, Any], threads: int) -> float:
    """Of training, measured in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(threads), str(STEPS)],
        input=json.dumps(config),
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])
