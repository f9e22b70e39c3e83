"""Runs a function on several gloo processes."""

from __future__ import annotations

import io
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torch", "ssl_zoo.testing"])


def start(function: Callable, *args: Any) -> multiprocessing.Process:
    """A process that calls `function(*args)`, without the seconds that imports take."""
    process = _processes.Process(target=function, args=args)
    process.start()
    return process


def on_ranks(world: int, function: Callable, *args: Any) -> list[Any]:
    """What `function(*args)` returns on each rank, in rank order. It must be importable."""
    if world == 1:
        return [function(*args)]
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world):
            ours, theirs = _processes.Pipe(duplex=False)
            process = _processes.Process(
                target=_on_rank, args=(rank, world, f"file://{folder}/meet", theirs, function, args)
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        results = []
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(120):
                raise TimeoutError(f"rank {rank} gave no answer")
            ok, value = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
            if not ok:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            results.append(value)
        for process in processes:
            process.join(30)
    return results


def _on_rank(rank, world, meet, pipe, function, args) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
        answer = (True, function(*args))
    except Exception:
        answer = (False, traceback.format_exc())
    buffer = io.BytesIO()
    torch.save(answer, buffer)
    pipe.send_bytes(buffer.getvalue())
    if dist.is_initialized() and answer[0]:
        dist.barrier()
        dist.destroy_process_group()
