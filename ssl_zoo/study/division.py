"""How a study divides the machine: how many runs side by side, and how many threads each.

Threads decide in which order numbers are added, so they are of the run. A study that leaves them
open settles them when it first starts, without a look at --jobs, and keeps them: its numbers repeat
whatever --jobs is, and whatever it was at the start.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssl_zoo.study.machine import child_environment
from ssl_zoo.system.files import write_text

STEPS = 20  # timed, the first of them a warm-up
WORTH_IT = 1.2  # several runs at once must be so many times as fast: they take more memory
MEASURE = (
    "import json, sys; from ssl_zoo import experiment; from ssl_zoo.system import plugins; "
    "plugins.load(); "
    "print(experiment.seconds_per_step(json.loads(sys.stdin.read()), *map(int, sys.argv[1:])))"
)


@dataclass(frozen=True)
class Division:
    """What study.json holds."""

    threads: int  # of each run that leaves `train.threads` open
    jobs: int  # runs side by side, unless --jobs says otherwise
    why: str  # in words

    @classmethod
    def read(cls, out: Path) -> Division | None:
        """What an earlier start of the study in this folder has settled."""
        path = out / "study.json"
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def write(self, out: Path) -> None:
        write_text(out / "study.json", json.dumps(asdict(self), indent=1))


def divide(configs: Sequence[dict[str, Any]], cores: int, gpus: int) -> Division:
    """Divides the machine among runs of which none has begun.

    Args:
        configs: of the runs. Without GPUs, it is measured on the first whether runs of few threads
            side by side get more done than one that has all cores.
    """
    if gpus:
        return Division(max(1, cores // gpus), gpus, f"a run on each of {gpus} GPUs")
    threads = {config["train"]["threads"] for config in configs}
    if "auto" not in threads:
        most = max(threads)
        return Division(most, max(1, cores // most), f"as asked for, on {cores} cores")
    jobs = min(cores, len(configs))
    few = cores // jobs
    if jobs == 1:
        return Division(cores, 1, "one run, or one core")
    try:
        alone = seconds_per_step(configs[0], cores)
        beside = seconds_per_step(configs[0], few, processes=jobs)
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().rpartition("\n")[2]
        return Division(1, jobs, f"a step could not be timed: {last}")
    gain = jobs * alone / beside
    why = (
        f"a step takes {1000 * alone:.0f} ms with {cores} threads and {1000 * beside:.0f} ms with "
        f"{few}, so {jobs} runs side by side are {gain:.2f} times as fast as one"
    )
    return Division(few, jobs, why) if gain > WORTH_IT else Division(cores, 1, why)


def seconds_per_step(config: dict[str, Any], threads: int, processes: int = 1) -> float:
    """Of training, in so many processes at once, which share caches and memory; their mean.

    Raises:
        subprocess.CalledProcessError: one failed.
    """
    command = [sys.executable, "-c", MEASURE, str(threads), str(STEPS)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    pipes |= {"encoding": "utf-8", "errors": "backslashreplace"}
    timers = [subprocess.Popen(command, env=child_environment(), **pipes) for _ in range(processes)]
    for timer in timers:  # all begin at once
        with suppress(BrokenPipeError):
            timer.stdin.write(json.dumps(config))
            timer.stdin.close()
        timer.stdin = None  # or `communicate` would want to write
    outputs = [timer.communicate() for timer in timers]
    for timer, (_, errors) in zip(timers, outputs, strict=True):
        if timer.returncode:
            raise subprocess.CalledProcessError(timer.returncode, command[:1], stderr=errors)
    return statistics.mean(float(output.split()[-1]) for output, _ in outputs)
