"""What a training step costs: its time, and the memory that training takes.

Each point is probed in a process of its own, one after another and beside no run: a few steps of
the run that the point stands for, from its first.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ssl_zoo.evaluation.base import hashed
from ssl_zoo.study.grid import Point, Run, Study, title
from ssl_zoo.study.machine import child_environment
from ssl_zoo.system import hardware
from ssl_zoo.system.files import write_text

LIMIT_GB = 8.0  # a size of memory that many have; which K meets it is told
PROBE = (
    "import json, sys; from ssl_zoo import experiment; from ssl_zoo.system import plugins; "
    "plugins.load(); "
    "print(json.dumps(experiment.cost_of_step(json.loads(sys.stdin.read()), int(sys.argv[1]))))"
)


@dataclass(frozen=True)
class Cost:
    """Of one point.

    Attributes:
        ms: a step's median.
        peak_memory_gb: see `PeakMemory`; that of the whole process on a CPU.
        batch_size, threads: of the config.
        of: a hash of the config, without its seed.
    """

    arm: str
    x: str | None
    ms: float
    peak_memory_gb: float
    batch_size: int
    threads: int
    of: str

    @property
    def point(self) -> Point:
        return self.arm, self.x

    @property
    def size(self) -> float | None:
        """The place on the swept axis, where that is a number."""
        try:
            return float(self.x) if self.x is not None else None
        except ValueError:
            return None


def read(out: Path) -> list[Cost]:
    """What the study in this folder knows."""
    path = out / "costs.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return [Cost(**cost) for cost in known]


def measure(study: Study, arms: Container[str], say: Callable[[str], None]) -> bool:
    """Probes what STUDY/costs.json lacks of the arms, and forgets what the grid no longer asks for.

    Returns:
        Whether every probe worked; what became of the others is said, and a later call tries again.
    """
    known = {(cost.point, cost.of): cost for cost in read(study.out)}
    wanted = {(probe.point, _hash(probe)): probe for probe in study.probes}
    worked = True
    for key, probe in wanted.items():
        if key in known or probe.arm not in arms:
            continue
        say(f"what a step costs: {title(probe.point)}")
        try:
            known[key] = _probe(probe)
        except subprocess.CalledProcessError as error:
            last = (error.stderr or "").strip().rpartition("\n")[2]
            say(f"  it could not be told: {last or f'exit code {error.returncode}'}")
            worked = False
            continue
        costs = [asdict(known[key]) for key in wanted if key in known]
        write_text(study.out / "costs.json", json.dumps(costs, indent=1))
    return worked


def _hash(probe: Run) -> str:
    return hashed({name: block for name, block in probe.config.items() if name != "seed"})


def _probe(probe: Run) -> Cost:
    threads = probe.config["train"]["threads"]
    threads = hardware.cores() if threads == "auto" else threads
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(threads)],
        input=json.dumps(probe.config),
        env=child_environment(),
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        check=True,
    )
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    batch_size = probe.config["data"]["batch_size"]
    measured = (round(1000 * seconds, 2), round(peak / 1e9, 3))
    return Cost(probe.arm, probe.x, *measured, batch_size, threads, _hash(probe))


def meets(points: Sequence[tuple[float, float]], limit: float) -> float | None:
    """Where a line through the two largest points reaches a limit that lies above them.

    Args:
        points: (size, memory), at least two.

    Returns:
        The size; None where memory does not grow, or the limit was reached within the points.
    """
    (a, low), (b, high) = sorted(points)[-2:]
    slope = (high - low) / (b - a)
    return b + (limit - high) / slope if slope > 0 and high < limit else None


def extrapolated(costs: Sequence[Cost]) -> dict[str, float]:
    """Arm -> the K at which it meets `LIMIT_GB`, by a line through its two largest points.

    Of arms that meet it among the sizes that were probed of any arm; elsewhere a line says nothing.
    """
    sized = [cost for cost in costs if cost.size is not None]
    found = {}
    for arm in dict.fromkeys(cost.arm for cost in sized):
        points = [(cost.size, cost.peak_memory_gb) for cost in sized if cost.arm == arm]
        at = meets(points, LIMIT_GB) if len(points) > 1 else None
        if at is not None and at <= max(cost.size for cost in sized):
            found[arm] = at
    return found
