"""The machine: its cores, what multiplies in bf16, and memory, measured and kept."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

HUGE_PAGE = 2**21  # bytes
MOST_IN_HUGE_PAGES = 2**33  # bytes, more than training on a CPU takes


def cores() -> int:
    """Processor cores that this process may use; on Linux, what its container leaves it."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


@contextmanager
def kept_threads() -> Iterator[None]:
    """Whatever number of threads is set inside, outside it is as it was."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def bf16_unit(device: torch.device) -> str:
    """What multiplies in bf16: a GPU's name, `amx_bf16`, `avx512_bf16`; or ''."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.cuda.get_device_name(device) if native else ""
    return next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in _cpu_flags()), "")


def _cpu_flags() -> set[str]:
    """The kernel's names of the processor's features; none where there is no Linux to ask."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed for the next step; False without glibc."""
    libc = _glibc()  # mapping large activations anew takes a quarter of a ResNet-18 step at 32 x 32
    # malloc.h: M_TRIM_THRESHOLD -1, never; M_MMAP_MAX -4, no block is mapped on its own.
    if libc is None or not (libc.mallopt(-1, -1) and libc.mallopt(-4, 0)):
        return False
    _use_huge_pages(libc)
    return True


def give_back_freed_memory() -> None:
    """Returns what is free to the system, once."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)
        _use_huge_pages(libc)


def _use_huge_pages(libc: ctypes.CDLL) -> None:
    """Asks for large pages where the heap will grow: 5 to 10% of a step."""
    # What is never written takes no memory, unless the system counts what it promised.
    counts = Path("/proc/sys/vm/overcommit_memory")
    if not counts.exists() or counts.read_text().strip() == "2":
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = min(memory // 2, MOST_IN_HUGE_PAGES)
    block = libc.malloc(ctypes.c_size_t(size))
    if block:  # 14 is madvise's MADV_HUGEPAGE; it takes whole pages
        start = -(-block // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(block + size - start), 14)
        libc.free(ctypes.c_void_p(block))


def _glibc() -> ctypes.CDLL | None:
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc.restype = ctypes.c_size_t
        if libc.mallopt and libc.malloc_trim:
            return libc
    return None


class PeakMemory:
    """Peak memory of the process (CPU, resident) or of torch's allocator (GPU), in GB of 1e9 bytes.

    What happens inside `excluded` does not count; on a CPU that takes Linux.
    """

    def __init__(self, device: torch.device):
        self.device, self.bytes = device, 0

    @contextmanager
    def excluded(self) -> Iterator[None]:
        self.peak()
        try:
            yield
        finally:
            self.restart()

    def peak(self) -> int:
        """In bytes, and of the run's earlier processes too where `bytes` was restored."""
        self.bytes = max(self.bytes, self._since_restart())
        return self.bytes

    def restart(self) -> None:
        """Forgets what was needed until now and not asked for by `peak`."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        give_back_freed_memory()  # or what was kept of it would count as training's
        with suppress(OSError):  # not Linux, or not allowed: the peak then includes evaluation
            Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far

    def _since_restart(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status")
        if status.exists():
            line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
