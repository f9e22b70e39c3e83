"""Parts that scaling.py and gpu.py measure, and the processes that hold them."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.backbones import Timm
from ssl_zoo.backbones.cpu import speed_up
from ssl_zoo.config import Part
from ssl_zoo.core import Batch
from ssl_zoo.engine.optimizers import SGD
from ssl_zoo.engine.settings import TrainSettings, prepare
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.heads import MLP
from ssl_zoo.losses import InfoNCE, accuracy
from ssl_zoo.memory import EndToEnd, Lookup, MoCoQueue
from ssl_zoo.methods.contrastive import Contrastive
from ssl_zoo.runs import RunFolder

D, TEMPERATURE = 128, 0.2
# What takes seconds to import is imported once, in a process without threads or CUDA.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torch", "ssl_zoo.experiment"])


class Held:
    """A measurement in processes of its own, which do nothing until it is asked for.

    Args:
        build: called in each process with `arguments`; returns what measures, a function of one
            argument. With several processes they are ranks of a gloo group, one thread each, and
            rank 0's answer counts.

    Raises:
        RuntimeError: a process could not build, or broke while measuring; with its traceback.
    """

    def __init__(self, build: Callable, *arguments: Any, world: int | None = None):
        self.scratch = tempfile.TemporaryDirectory()
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(world or 1):
            ours, theirs = _processes.Pipe()
            group = None if world is None else (f"file://{self.scratch.name}/meet", rank, world)
            process = _processes.Process(target=_hold, args=(theirs, group, build, arguments))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        self._answers()

    def __call__(self, argument: Any) -> Any:
        for pipe in self.pipes:
            with suppress(OSError):  # it has ended, and reading says so
                pipe.send((argument,))
        return self._answers()[0]

    def _answers(self) -> list[Any]:
        answers = []
        for pipe in self.pipes:
            try:
                good, answer = pipe.recv()
            except (EOFError, OSError):
                good, answer = False, "a process ended without a word"
            if not good:
                self.close()
                raise RuntimeError(answer)
            answers.append(answer)
        return answers

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(20)
            if process.is_alive():
                process.terminate()
                process.join()
        self.scratch.cleanup()


def _hold(pipe: Connection, group: tuple | None, build: Callable, arguments: tuple) -> None:
    try:
        if group is not None:
            torch.set_num_threads(1)
            meet, rank, world = group
            dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
        measure = build(*arguments)
        pipe.send((True, None))
        while True:
            (argument,) = pipe.recv()
            pipe.send((True, measure(argument)))
    except EOFError:  # the parent is done
        pass
    except Exception:
        pipe.send((False, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def stub_data(batch_size: int) -> SimpleNamespace:
    """What a trainer asks of its data, where the batches come from elsewhere."""
    return SimpleNamespace(batch_size=batch_size, steps_per_epoch=10**6, position=None)


def moco_trainer(
    backbone: dict[str, Any],
    device: torch.device,
    batch_size: int,
    *,
    memory: Part | None = None,
    queue: int = 65536,
    loss: Part | None = None,
    num_samples: int = 50_000,
    precision: str = "auto",
    compile: bool = False,
) -> Trainer:
    """MoCo v2 without data or hooks: what `train_step` costs is the method's.

    Args:
        backbone: of `Timm`.
        memory, loss: in place of MoCo v2's, whose queue holds `queue` keys.
    """
    network = Timm(**backbone)
    method = Contrastive(
        speed_up(network) if device.type == "cpu" else network,
        num_samples,
        head=Part(MLP, out_features=D),
        memory=memory or Part(MoCoQueue, size=queue),
        loss=loss or Part(InfoNCE, temperature=TEMPERATURE),
    ).to(device, memory_format=torch.channels_last)
    settings = TrainSettings(epochs=1.0, precision=precision, compile=compile)
    trainer = Trainer(
        prepare(method, settings, device),
        stub_data(batch_size),
        SGD(method, lr=1e-3),  # images are noise, and nothing is to be learned
        {},
        device,
        RunFolder(tempfile.gettempdir()),
        settings,
    )
    method.train()
    return trainer


def noise(batch: int, channels: int, side: int, device: torch.device, seed: int = 0) -> Batch:
    """Two views of nothing, float32 [batch, channels, side, side], as the loader would give."""
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(batch, channels, side, side, generator=generator) for _ in range(2)]
    index = torch.arange(batch, device=device)
    return Batch([view.to(device) for view in views], index, torch.full_like(index, -1))


def unit(rows: int, device: torch.device, gradient: bool = False) -> Tensor:
    """Random unit vectors, [rows, D]."""
    return F.normalize(torch.randn(rows, D, device=device), dim=1).requires_grad_(gradient)


def queue_pass(size: int, batch: int, device: torch.device) -> Callable[[], None]:
    """All that MoCo's queue of `size` keys adds to a step: look-up, InfoNCE, accuracy, their
    backward pass to the queries, and the enqueueing."""
    # A stand-in of one weight: its average costs nothing, and the queue only wants its width.
    encoder = nn.Linear(1, D, bias=False).to(device)
    memory = MoCoQueue(encoder, size=size).to(device)
    loss = InfoNCE(temperature=TEMPERATURE)
    q, k = unit(batch, device, gradient=True), unit(batch, device)
    index = torch.arange(batch, device=device)

    def run() -> None:
        value, nearer = loss(memory.lookup(q, k, index))
        value.backward()
        accuracy(nearer)
        memory.update(encoder, q.detach()[:, None], k[:, None], index)
        q.grad = None

    return run


def loss_pass(loss: nn.Module, size: int, batch: int, device: torch.device) -> Callable[[], None]:
    """A loss over a dictionary of `size` keys without gradient: forward and backward."""
    loss = loss.to(device)
    q, k = unit(batch, device, gradient=True), unit(batch, device)
    keys, index = unit(size, device), torch.arange(size, device=device)

    def run() -> None:
        loss(Lookup(q, k, keys, index)).loss.backward()
        q.grad = None

    return run


def end_to_end_pass(batch: int, device: torch.device) -> Callable[[], None]:
    """InfoNCE where the batch is the dictionary: forward, and backward to queries and keys."""
    memory, loss = EndToEnd().to(device), InfoNCE(temperature=TEMPERATURE)
    q, k = unit(batch, device, gradient=True), unit(batch, device, gradient=True)
    index = torch.arange(batch, device=device)

    def run() -> None:
        loss(memory.lookup(q, k, index)).loss.backward()
        q.grad = k.grad = None

    return run
