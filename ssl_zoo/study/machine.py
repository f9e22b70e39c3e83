"""What the machine has for processes side by side: GPUs and memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return names[:count] if names else [str(i) for i in range(count)]


def environment(**changed: str) -> dict[str, str]:
    """Of a child, which finds this package also where it is not installed."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | changed


def process_memory(pid: int) -> tuple[int, int]:
    """Resident memory of a process in bytes, now and at its peak; (0, 0) where nothing tells."""
    fields = _fields(Path(f"/proc/{pid}/status"))
    return fields.get("VmRSS", 0), fields.get("VmHWM", 0)


def available_memory() -> int | None:
    """Bytes that new processes can take before one is killed; None where nothing tells.

    The lowest of the machine's and what the control groups (v1 and v2) around this process leave.
    """
    machine = _fields(Path("/proc/meminfo")).get("MemAvailable")
    if machine is None:
        return None
    groups = Path("/proc/self/cgroup")
    left = [machine]
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit, used = "/sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
            used = "memory.usage_in_bytes"
        else:
            continue
        inner = Path(root, path.lstrip("/"))
        for group in (inner, *inner.parents):
            if group.is_relative_to(root):
                left += _left_by_group(group, limit, used)
    return max(0, min(left))


def _left_by_group(group: Path, limit: str, used: str) -> list[int]:
    try:
        texts = [(group / name).read_text().strip() for name in (limit, used)]
        if texts[0] == "max":
            return []
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        return [int(texts[0]) - int(texts[1]) + cached]  # files are dropped before anyone is killed
    except (OSError, ValueError):
        return []


def _fields(path: Path) -> dict[str, int]:
    """'Name:  123 kB' lines in bytes."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}
