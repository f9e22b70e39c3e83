"""Distribution behind verbs that are the identity on one process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_zoo.system.hardware import cores

ROWS_SENT_AT_ONCE = 8192


def is_on() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_on() else 0


def world() -> int:
    return dist.get_world_size() if is_on() else 1


def is_main() -> bool:
    return rank() == 0


def start(device: str = "auto") -> torch.device:
    """Joins torchrun's process group if there is one; returns this process's device.

    Of 'auto' (CUDA when there is one), 'cpu', 'cuda' or 'cuda:N'; ValueError if it is not there.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdigit()):
        raise ValueError(f"no such device: {device!r}; expected auto, cpu, cuda or cuda:N")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA device")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = torch.device(f"cuda:{local_rank}" if device == "cuda" else device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not is_on():
        # The other ranks wait while rank 0 evaluates, which on a large set outlasts the default.
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=12))
    return chosen


def leave() -> None:
    if is_on():
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        # Every rank's loss depends on every rank's rows. The sum over ranks here and DDP's mean
        # over ranks afterwards give the gradient of the mean of the ranks' losses.
        # A copy: autograd may hand the same tensor to other inputs.
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(x: Tensor) -> Tensor:
    """All ranks' rows, as many of each, [N, ...] -> [world x N, ...]; differentiable."""
    return _Gather.apply(x) if world() > 1 else x


def mean(x: Tensor) -> Tensor:
    """Mean over ranks; not differentiable."""
    if world() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world()


def local_rows(x: Tensor) -> Tensor:
    """This rank's run of rows that all ranks hold, [N, ...] -> [n, ...]; runs may differ by one."""
    return x.tensor_split(world())[rank()]


def collect(value: Any) -> list[Any]:
    """Every rank's value, in rank order. For small host-side state: it pickles between ranks."""
    if world() == 1:
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def collect_on_main(value: Any) -> list[Any] | None:
    """Every rank's value, in rank order, on rank 0; None elsewhere."""
    if world() == 1:
        return [value]
    values = [None] * world() if is_main() else None
    dist.gather_object(value, values, dst=0)
    return values


def to_main(x: Tensor) -> Tensor | None:
    """All ranks' rows [n, ...], of any n, on rank 0's CPU; None elsewhere."""
    if world() == 1:
        return x
    counts = collect(len(x))
    # NCCL moves what is on a GPU, so the rows pass through it, a few at a time.
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    if not is_main():
        for part in x.split(ROWS_SENT_AT_ONCE) if len(x) else ():
            dist.send(part.to(device).contiguous(), dst=0)
        return None
    whole = x.new_empty(sum(counts), *x.shape[1:])
    whole[: len(x)] = x
    for source, share in enumerate(whole.split(counts)):
        for part in share.split(ROWS_SENT_AT_ONCE) if source and len(share) else ():
            received = torch.empty_like(part, device=device)
            dist.recv(received, src=source)
            part.copy_(received)
    return whole


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def attempt(function: Callable[[], Any]) -> Any:
    """What `function` returns or raises on rank 0, returned or raised on every rank."""
    result, error = None, None
    if is_main():
        try:
            result = function()
        except Exception as caught:
            error = caught
    result, error = broadcast((result, error))
    if error is not None:
        raise error
    return result


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """While rank 0 holds a lock; what its `acquire` raises is raised on every rank."""
    attempt(lock.acquire)
    try:
        yield
    finally:
        if is_main():
            lock.release()


@contextmanager
def borrowed_threads() -> Iterator[int]:
    """While other ranks wait for rank 0, torch also gets their threads, on cores it may use."""
    before = torch.get_num_threads()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world() > 1 else 1
    torch.set_num_threads(max(before, min(before * processes, cores())))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def barrier() -> None:
    if is_on():
        dist.barrier()
