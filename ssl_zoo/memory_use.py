"""How much memory training takes at its peak."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch


class PeakMemory:
    """Peak memory of the process (CPU, resident) or of torch's allocator (GPU), in GB of 1e9 bytes.

    What happens inside `excluded` does not count. On a CPU that takes Linux; elsewhere the
    process's overall peak is reported.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.bytes = 0

    @contextmanager
    def excluded(self) -> Iterator[None]:
        self.peak()
        try:
            yield
        finally:
            self._reset()

    def restart(self) -> None:
        """Forgets what was needed before training."""
        self._reset()

    def peak(self) -> int:
        """In bytes, over all sittings."""
        self.bytes = max(self.bytes, self._peak())
        return self.bytes

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status")
        if status.exists():
            line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with suppress(OSError):  # not Linux, or not allowed: the peak then includes evaluation
            Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
