"""Processes that read images, for as long as a run lives.

torch's DataLoader starts processes of its own for each data set and each pass over it. Where the
system starts them afresh (macOS, and Linux from Python 3.14) each imports torch first, for seconds:
a run with a few evaluations spends most of its time on that. And a signal that arrives meanwhile
ends them, and so the run. Here one set of processes serves training and every evaluation, and
signals are the training process's alone.
"""

import multiprocessing
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing import connection, resource_tracker, util
from multiprocessing.reduction import ForkingPickler
from typing import Any
from weakref import WeakValueDictionary

import torch

AHEAD = 2  # items for each process, in hand or waiting, of each `map`
PATIENCE_S = 5.0  # for what a process has in hand when it is told to end
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What the system ends a process with, and why it does.
REASONS = {
    signal.SIGKILL: ": the memory may have run out",
    signal.SIGBUS: ": shared memory may have run out (docker run --shm-size)",
}


class _Answer:
    """What a process will have said of an item: (whether it is an error, the value)."""

    def __init__(self, process: int):
        self.process, self.said = process, None


class Workers:
    """Applies functions to items in processes of one thread each, which end with this object.

    Functions, items and what is returned are pickled, tensors go by shared memory. A function lives
    on in each process: it is sent once, and may keep things there.
    """

    def __init__(self) -> None:
        self._functions: list[Callable] = []
        self._known = 0  # how many of them the processes have
        self._processes: list = []
        self._connections: list[connection.Connection] = []
        self._asked = 0
        # An answer that nobody waits for any more is dropped when it comes.
        self._answers: WeakValueDictionary[int, _Answer] = WeakValueDictionary()
        self._lock = threading.Lock()  # maps may be read in threads of their own

    def add(self, function: Callable) -> int:
        """The number of a function; one that is added before the first `map` need not be sent
        where processes are forked.
        """
        for number, known in enumerate(self._functions):
            if known is function:
                return number
        self._functions.append(function)
        return len(self._functions) - 1

    def map(self, function: Callable, items: Iterable, processes: int) -> Iterator:
        """As `map`, some items ahead; the first call says how many processes there are.

        A ValueError or OSError of the function is raised as it is, another one with the traceback
        of its process. ChildProcessError: a process was ended from outside.
        """
        number = self.add(function)
        if not self._processes:
            self._start(processes)
        with self._lock:
            for new in self._functions[self._known :]:
                for process in range(len(self._processes)):
                    self._send(process, new)
            self._known = len(self._functions)
        return self._map(number, iter(items))

    def _map(self, number: int, items: Iterator) -> Iterator:
        waiting: deque[_Answer] = deque()
        for item in islice(items, AHEAD * len(self._processes)):
            waiting.append(self._ask(number, item))
        while waiting:
            failed, value = self._wait(waiting.popleft())
            if failed:
                raise value
            waiting.extend(self._ask(number, item) for item in islice(items, 1))
            yield value

    def _ask(self, function: int, item: Any) -> _Answer:
        with self._lock:
            self._asked += 1
            answer = _Answer(self._asked % len(self._processes))
            self._answers[self._asked] = answer
            self._send(answer.process, (self._asked, function, item))
            return answer

    def _wait(self, answer: _Answer) -> tuple[bool, Any]:
        with self._lock:
            link, process = self._connections[answer.process], self._processes[answer.process]
            while answer.said is None:  # what others asked of this process may come first
                connection.wait([link, process.sentinel])
                try:
                    if not link.poll():
                        raise EOFError
                    number, *said = link.recv()
                except (EOFError, OSError) as error:
                    self._check_alive(answer.process, error)
                    raise
                if (of := self._answers.get(number)) is not None:
                    of.said = tuple(said)
            return answer.said

    def _send(self, process: int, message: Any) -> None:
        try:
            self._connections[process].send(message)
        except OSError as error:
            self._check_alive(process, error)
            raise

    def _check_alive(self, process: int, error: Exception) -> None:
        """Raises ChildProcessError if a process has ended, by which `error` came about."""
        process = self._processes[process]
        process.join(PATIENCE_S)
        code = process.exitcode
        if code is None:
            return
        how = f"ended with status {code}"
        if code < 0:
            number = signal.Signals(-code)
            how = f"was ended by {number.name}{REASONS.get(number, '')}"
        hint = "with data.workers=0 the training process reads them itself"
        raise ChildProcessError(f"a process that reads images {how}; {hint}") from error

    def _start(self, count: int) -> None:
        context = multiprocessing.get_context()
        forks = context.get_start_method() == "fork"
        util.Finalize(self, _end, (self._processes, self._connections), exitpriority=10)
        if not forks:
            resource_tracker.ensure_running()  # else it starts in between, and unblocks signals
        # A new process begins with the signals blocked that are blocked here: also while it still
        # imports torch, none of these can end it. What arrives here meanwhile is only late.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for _ in range(count):
                here, there = context.Pipe()
                arguments = there, self._functions if forks else []
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                there.close()
                self._processes.append(process)
                self._connections.append(here)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._known = len(self._functions) if forks else 0


def _end(processes: list, connections: list[connection.Connection]) -> None:
    for link in connections:
        with suppress(OSError):
            link.send(None)
    deadline = time.monotonic() + PATIENCE_S
    for process, link in zip(processes, connections, strict=True):
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        link.close()


def _work(link: connection.Connection, functions: list[Callable]) -> None:
    """A process: answers what it is asked until it is told to end, or its parent is gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process().sentinel
    asked: deque[tuple[int, int, Any]] = deque()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            while not asked or link.poll():  # all that was sent: the end goes before what waits
                if link not in connection.wait([link, parent]):
                    return
                message = link.recv()
                if message is None:
                    return
                if isinstance(message, tuple):
                    asked.append(message)
                else:
                    functions.append(message)
            number, function, item = asked.popleft()
            link.send_bytes(_answer(number, functions[function], item))


def _answer(number: int, function: Callable, item: Any) -> memoryview:
    """Pickled: (number, whether it failed, the value or the error)."""
    try:
        return ForkingPickler.dumps((number, False, function(item)))
    except (ValueError, OSError) as error:  # of the data: its message says all
        with suppress(Exception):  # some errors do not survive a journey
            if str(pickle.loads(pickle.dumps(error))) == str(error):
                return ForkingPickler.dumps((number, True, error))
        return ForkingPickler.dumps((number, True, ValueError(str(error))))
    except Exception:
        text = f"in a process that reads images:\n{traceback.format_exc()}"
        return ForkingPickler.dumps((number, True, RuntimeError(text)))
