"""Processes that read images: their answers, their errors, signals and their end."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_data_loader import assert_same, data_of, folder  # noqa: F401  (a fixture)

from ssl_zoo.data import loader
from ssl_zoo.data import workers as module
from ssl_zoo.data.image import Samples
from ssl_zoo.data.loader import Loaded
from ssl_zoo.data.workers import Workers
from ssl_zoo.engine import checkpoint
from ssl_zoo.runs import RunFolder


@pytest.fixture(autouse=True)
def alone():
    """No test counts the workers of another."""
    gc.collect()


def squared(x: int) -> torch.Tensor:
    return torch.full((3,), x * x)


def picky(x: int) -> int:
    if x == 5:
        raise ValueError("5 is not liked")
    return x


class TwoWords(ValueError):
    """Does not survive pickle."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def awkward(x: int) -> int:
    raise TwoWords("this", "that") if x else KeyError("a bug")


def process_of(x: int) -> int:
    return os.getpid()


def slow(x: int) -> int:
    time.sleep(0.05)
    return x


def gone(pid: int, within: float = 10.0) -> bool:
    """Whether a process has ended, or will soon."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_maps_share_the_processes_and_keep_their_order():
    workers = Workers()
    squares, numbers = workers.map(squared, range(40), 2), workers.map(slow, range(7), 2)
    assert [int(next(squares)[0]) for _ in range(10)] == [x * x for x in range(10)]
    assert list(numbers) == list(range(7))
    assert [int(x[0]) for x in squares] == [x * x for x in range(10, 40)]
    pids = set(workers.map(process_of, range(20), 2))
    assert pids == {child.pid for child in multiprocessing.active_children()} and len(pids) == 2
    del workers, squares, numbers
    assert all(map(gone, pids))


def test_an_abandoned_map_leaves_the_others_alone():
    workers = Workers()
    abandoned = workers.map(slow, range(100), 1)
    next(abandoned)
    abandoned.close()
    assert list(workers.map(picky, range(4), 1)) == list(range(4))


def test_an_error_of_the_data_is_raised_as_it_is_and_in_its_turn():
    workers = Workers()
    numbers = workers.map(picky, range(9), 2)
    assert [next(numbers) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"^5 is not liked$") as caught:
        next(numbers)
    assert caught.value.__cause__ is None  # not the process's traceback
    with pytest.raises(ValueError, match=r"^this and that$"):
        next(workers.map(awkward, [1], 2))
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*in awkward.*KeyError: 'a bug'"):
        next(workers.map(awkward, [0], 2))
    assert list(workers.map(picky, [1, 2], 2)) == [1, 2]  # they live on


def test_a_killed_process_is_told_and_not_waited_for():
    workers = Workers()
    numbers = workers.map(slow, range(100), 2)
    next(numbers)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match=r"SIGKILL: the memory.*data\.workers=0"):
        list(numbers)


@pytest.mark.parametrize("while_", ["asked", "answering"])
def test_an_error_of_the_system_is_not_told_as_the_death_of_a_process_that_lives(
    while_, monkeypatch
):
    def fails(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    workers = Workers()
    numbers = workers.map(slow, range(100), 1)
    next(numbers)
    [link] = workers._connections
    monkeypatch.setattr(link, "send" if while_ == "asked" else "recv", fails, raising=False)
    with pytest.raises(OSError, match="Too many open files") as caught:
        list(numbers)
    assert not isinstance(caught.value, ChildProcessError)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_the_training_process_s_alone(number):
    workers = Workers()
    numbers = workers.map(slow, range(10), 1)
    next(numbers)
    for child in multiprocessing.active_children():
        os.kill(child.pid, number)
    assert list(numbers) == list(range(1, 10))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def _starts_workers(pipe) -> None:
    workers = Workers()
    for pid in workers.map(process_of, range(8), 2):
        pipe.send(pid)
    time.sleep(60)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_processes_end_with_the_one_that_started_them_however_it_ends():
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    parent = context.Process(target=_starts_workers, args=(theirs,))
    parent.start()
    pids = {ours.recv() for _ in range(8)}
    assert len(pids) == 2
    parent.kill()
    parent.join()
    assert all(map(gone, pids))


def test_batches_are_pinned_in_order_and_their_errors_come_in_turn(monkeypatch):
    """What is done for a GPU, without one."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x.add(1))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    devices: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)

    def batches():
        for i in range(5):
            yield Loaded(Samples(0, 0, [i]), [0], [i], [torch.full((1,), i)], [], {})
        raise ValueError("the end")

    pinned = loader._pinned(batches())
    assert [int(next(pinned).images[0]) for _ in range(5)] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="the end"):
        next(pinned)
    abandoned = loader._pinned(batches())
    next(abandoned)
    abandoned.close()
    assert devices == [3, 3]


def test_processes_started_afresh_read_the_same(folder, monkeypatch):  # noqa: F811
    afresh = multiprocessing.get_context("spawn")
    monkeypatch.setattr(multiprocessing, "get_context", lambda: afresh)
    arguments = {"dataset": folder, "batch_size": 5, "drop_last": False}
    alone, helped = (data_of(**arguments, workers=n) for n in (0, 1))
    assert_same(alone.batches(0, 4, "cpu"), helped.batches(0, 4, "cpu"))
    children = multiprocessing.active_children()
    assert [type(child).__name__ for child in children] == ["SpawnProcess"]
    for split in ("test", "train"):
        some, others = (of.splits.clean_batches(split, "cpu", 4) for of in (alone, helped))
        for clean, other in zip(some, others, strict=True):
            assert all(map(torch.equal, clean, other))
    assert multiprocessing.active_children() == children


# A run whose batches are slow to come, so that a signal finds it waiting for one; its workers tell
# when they begin, and take a while for it.
SLOW_RUN = """
import multiprocessing, pathlib, sys, time
begun = pathlib.Path(sys.argv[2])
if __name__ != "__main__":
    begun.touch()
    time.sleep(1)
from ssl_zoo.config import DATASETS
from ssl_zoo.data.datasets.bundled import Synthetic

@DATASETS.register_module()
class Slow(Synthetic):
    in_ram = False
    def fetch(self, index):
        if multiprocessing.parent_process() is not None:  # a look at one image comes before
            begun.touch()
        time.sleep(0.4)
        return super().fetch(index)

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    sys.path.insert(0, sys.argv[3])
    import tiny
    from ssl_zoo.cli import main
    sys.exit(main(sys.argv[4:]))
"""
CONFIG = """
data:
  dataset: {type: Slow, num_samples: 64, size: 8, channels: 1}
  batch_size: 16
  workers: 1
  views: {ops: {flip: {type: HorizontalFlip}}}
  clean: {ops: {}}
backbone: {type: TinyNet}
method:
  type: Contrastive
  head: {type: MLP, out_features: 8}
  memory: {type: EndToEnd}
  loss: {type: InfoNCE}
optimizer: {type: SGD, lr: 0.01}
train: {epochs: 100, log_every: 1}
"""


@pytest.mark.parametrize(
    ("method", "number"),
    [("spawn", signal.SIGINT), ("forkserver", signal.SIGTERM), ("fork", signal.SIGTERM)],
)
def test_a_run_that_waits_for_a_batch_is_stopped_and_saved(method, number, tmp_path):
    """The signal goes to all processes, as Ctrl-C does, while workers are being started."""
    (tmp_path / "run.py").write_text(SLOW_RUN)
    (tmp_path / "config.yaml").write_text(CONFIG)
    begun, tests = tmp_path / "begun", Path(__file__).parent
    words = ["train", tmp_path / "config.yaml", "--out", tmp_path / "run", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", method, begun, tests, *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(tests.parent)},
    )
    deadline = time.monotonic() + 120
    while not begun.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "stopped at step" in errors and "Traceback" not in errors
    saved = RunFolder(tmp_path / "run").checkpoints()
    assert checkpoint.read(saved[-1])["trainer"]["step"] >= 1
