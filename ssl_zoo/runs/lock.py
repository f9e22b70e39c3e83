"""One process at a time in a folder."""

import fcntl
import os
import platform
import time
from pathlib import Path
from typing import TextIO

from ssl_zoo.system.files import writing

TRIES = 4
_held: dict[Path, TextIO] = {}  # by this process, which the system would let in a second time


class Held(FileExistsError):
    """Another process is at work in the folder."""


class Lock:
    """Held from `acquire` to `release`, or to the end of the process, however it ends.

    It is the system's (POSIX, over NFS too); forked processes do not hold it. The file says who
    does, and is never removed: that would be a race.
    """

    def __init__(self, path: Path):
        self.path = path

    def acquire(self) -> None:
        """Raises Held, which says who holds it, if another does."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(TRIES):
            file = None if self._ours() else self._take()
            if file is not None:
                break
            time.sleep(0.05)  # it may be taken for a moment, by who asks for the holder
        else:
            who = self.holder() or "another process"
            hint = "stop that one, or give another --out"
            raise Held(f"{self.path.parent} is being written to by {who}; {hint}")
        who = f"process {os.getpid()} on {platform.node()}, since {time.strftime('%F %T')}"
        with writing(self.path):
            file.truncate(0)
            file.write(who)
            file.flush()
        _held[self.path.resolve()] = file

    def release(self) -> None:
        file = _held.pop(self.path.resolve())
        file.truncate(0)
        file.close()

    def holder(self) -> str:
        """Who holds it, in words; '' if nobody does."""
        if not self.path.exists():
            return ""
        if self._ours():  # to open and close it once more would give it up
            return f"this process, {os.getpid()} on {platform.node()}"
        file = self._take() if os.access(self.path, os.W_OK) else None
        if file is None:
            return self.path.read_text(encoding="utf-8") or "another process"
        file.close()
        return ""

    def _ours(self) -> bool:
        return self.path.resolve() in _held

    def _take(self) -> TextIO | None:
        """The locked file; None if another process has it."""
        file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115  (held beyond this call)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES; others say what is wrong
            file.close()
            return None
        return file
