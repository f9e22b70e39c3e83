"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

_held: set[Path] = set()  # by this process, which the system would let in a second time


class Lock:
    """Held from `with` to the end of the block, or of the process, however it ends.

    The lock is the system's (POSIX, over NFS too), so a dead process holds none, and what it has
    left in the file is overwritten. Processes that the holder forks do not hold it.

    Args:
        path: the file; it says who holds the lock.

    Raises:
        FileExistsError: on entering, if another process holds it; says which.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: Any = None

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *_) -> None:
        self.release()

    def acquire(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = None if self._is_ours() else self._take()
        if self._file is None:
            raise FileExistsError(
                f"{self.path.parent} is being written to by {self.holder() or 'another process'}; "
                "stop that one, or give another --out"
            )
        holder = {"host": platform.node(), "pid": os.getpid(), "since": time.strftime("%F %T")}
        self._file.truncate(0)
        self._file.write(json.dumps(holder))
        self._file.flush()
        _held.add(self.path.resolve())

    def release(self) -> None:
        self._file.truncate(0)
        self._file.close()
        _held.discard(self.path.resolve())

    def holder(self) -> str:
        """Who holds it, in words; '' if nobody does."""
        if not self.path.exists():
            return ""
        if not self._is_ours():  # closing any file of a lock that we hold would give it up
            file = self._take()
            if file is not None:
                file.close()
                return ""
        text = self.path.read_text() if not self._is_ours() else ""
        known = json.loads(text) if text else {"host": platform.node(), "pid": os.getpid()}
        since = f", since {known['since']}" if "since" in known else ""
        return f"process {known['pid']} on {known['host']}{since}"

    def _is_ours(self) -> bool:
        return self.path.resolve() in _held

    def _take(self) -> Any:
        """The locked file; None if another process has it."""
        file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115  (held beyond this call)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        return file
