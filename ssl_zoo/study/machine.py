"""What the machine has for processes side by side, and what became of one."""

import os
import signal
from pathlib import Path

import torch

GROUPS = {  # folder of a version of control groups, files with its limit and its use of memory
    "": ("/sys/fs/cgroup", "memory.max", "memory.current"),
    "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return names[:count] if names else [str(i) for i in range(count)]


def child_environment(**changed: str) -> dict[str, str]:
    """Of a process that finds this package also where it is not installed."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | changed


def how_it_ended(code: int) -> str:
    """What became of a process that should have said more, by its exit code."""
    if code == 0:
        return "it ended without a result"
    if code == -signal.SIGKILL:
        return "killed (SIGKILL); most often the machine ran out of memory"
    if code < 0:
        return f"killed by signal {signal.Signals(-code).name}"
    return f"ended with exit code {code} and left no message"


def process_memory(pid: int) -> tuple[int, int]:
    """Resident memory of a process in bytes, now and at its peak; (0, 0) where nothing tells."""
    sizes = _sizes(Path(f"/proc/{pid}/status"))
    return sizes.get("VmRSS", 0), sizes.get("VmHWM", 0)


def available_memory() -> int | None:
    """Bytes that new processes can take before one is killed; None where nothing tells.

    The least of what the machine and the control groups around this process leave.
    """
    free = _sizes(Path("/proc/meminfo")).get("MemAvailable")
    if free is None or not Path("/proc/self/cgroup").exists():
        return free
    left = [free]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controller, path = line.split(":", 2)
        if controller in GROUPS:
            root, limit, used = GROUPS[controller]
            inner = Path(root, path.lstrip("/"))
            groups = [group for group in (inner, *inner.parents) if group.is_relative_to(root)]
            left += [_left_by_group(group, limit, used) for group in groups]
    return max(0, min(size for size in left if size is not None))


def _left_by_group(group: Path, limit: str, used: str) -> int | None:
    try:
        most, now = (int((group / name).read_text()) for name in (limit, used))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or its limit is the word max
        return None
    # Pages of files are dropped before a process is killed.
    return most - now + int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _sizes(path: Path) -> dict[str, int]:
    """'Name:  123 kB' lines in bytes."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}
