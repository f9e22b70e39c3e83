"""The training loop."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_zoo.config import ConfigError, above, at_least
from ssl_zoo.core import Batch, Encoder, Method, merge_outputs
from ssl_zoo.engine import checkpoint
from ssl_zoo.engine.hooks.base import Hook
from ssl_zoo.engine.precision import Precision, autocast, choose, plain_attention
from ssl_zoo.system import distributed
from ssl_zoo.system.files import read_lines, write_text
from ssl_zoo.system.hardware import PeakMemory, keep_freed_memory

# BatchNorm statistics and memories are each rank's own business. torch 2.15 renames the switch.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number."""


class Trainer:
    """Trains a method on a data set, and tells its hooks.

    Args:
        method: moved to the device, channels last.
        data: gives the batches of any range of steps.
        optimizer: over the method's parameters.
        hooks: called in this order.
        device: of the views and the method.
        folder: the run's files.
        epochs: length of the run; a fraction counts.
        precision: fp32, or autocast to bf16, or to fp16 with loss scaling (GPU only). auto: bf16
            where the hardware multiplies in it (GPUs since Ampere, CPUs with AMX or
            AVX512-BF16), else fp32.
        accumulate: micro-batches a step. Memories and momentum encoders see one step.
        clip_grad: largest gradient norm.
        lr_reference_batch: the batch size that the config's lr is meant for; the lr in use is
            lr x global batch / reference (arXiv:1706.02677). Null: lr as it is.
        sync_bn: BatchNorm over all processes (GPU only).
        compile: torch.compile for every pass of a whole `Encoder`; the first step then takes
            minutes. What a method computes from the backbone's map or tokens stays as it is.
        log_every: steps between two lines of metrics.

    Raises:
        ValueError: a precision that the device lacks, a nonsensical number, nothing to compile.
    """

    def __init__(
        self,
        method: Method,
        data,
        optimizer: torch.optim.Optimizer,
        hooks: list[Hook],
        device: torch.device,
        folder: Path,
        *,
        epochs: float,
        precision: Precision = "auto",
        accumulate: int = 1,
        clip_grad: float | None = None,
        lr_reference_batch: int | None = None,
        sync_bn: bool = False,
        compile: bool = False,
        log_every: int = 50,
    ):
        self.validate(
            epochs=epochs,
            accumulate=accumulate,
            log_every=log_every,
            clip_grad=clip_grad,
            lr_reference_batch=lr_reference_batch,
        )
        precision, why = choose(device, precision)
        if sync_bn and distributed.world() > 1:
            if device.type != "cuda":
                raise ValueError("sync_bn is for GPUs: torch's SyncBatchNorm does not run on a CPU")
            method = convert_sync_batchnorm(method)
        if lr_reference_batch is not None:
            for group in optimizer.param_groups:
                group["lr"] *= data.batch_size / lr_reference_batch
        if device.type == "cpu" and precision == "bf16":
            plain_attention(method)
        if compile:
            encoders = [module for module in method.modules() if isinstance(module, Encoder)]
            if not encoders:
                raise ConfigError(
                    "compile",
                    f"{type(method).__name__} has no Encoder to compile",
                    found="compile: true",
                    expected="compile: false",
                )
            for encoder in encoders:
                encoder.compile(fullgraph=True)
        self.method, self.data, self.optimizer, self.hooks = method, data, optimizer, hooks
        self.device, self.folder = device, folder
        self.name = "/".join(folder.parts[-2:])
        self.accumulate, self.clip_grad, self.log_every = accumulate, clip_grad, log_every
        self.total_steps = self.steps_in(epochs)
        self.precision, self.precision_reason = precision, why
        self.compiles = compile
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.model: nn.Module = method
        if distributed.world() > 1:
            self.model = DistributedDataParallel(method, **{_SYNC_BUFFERS: False})
        self.step = 0
        self.seconds = 0.0  # of training, over all sittings
        self.status: dict[str, float] = {}
        self.config_text = ""
        self.peak_memory = PeakMemory(device)
        self.losses: list[tuple[int, Tensor]] = []  # (step, loss []), not yet looked at
        self.started = time.perf_counter()
        self.console = Console()
        self.labels: Tensor | None = data.labels if bool((data.labels >= 0).any()) else None

    @staticmethod
    def validate(
        *,
        epochs: float,
        accumulate: int = 1,
        log_every: int = 1,
        clip_grad: float | None = None,
        lr_reference_batch: int | None = None,
        **_,
    ) -> None:
        at_least("accumulate", accumulate, 1)
        at_least("log_every", log_every, 1)
        above("epochs", epochs, 0)
        above("clip_grad", clip_grad, 0)
        above("lr_reference_batch", lr_reference_batch, 0)

    @property
    def epoch(self) -> float:
        return self.step / self.data.steps_per_epoch

    def fit(self) -> None:
        """Trains from `step` to `total_steps`."""
        keep_freed_memory()
        self.method.train()
        try:
            self.started = time.perf_counter()
            self.peak_memory.restart()
            self._tell("before_train")
            for batch in self.data.batches(self.step, self.total_steps, self.device):
                if self.step % self.data.steps_per_epoch == 0:
                    self.method.before_epoch(self.data.clean_share(self.device))
                self._tell("before_step")
                out = self.train_step(batch)
                if self.compiles:
                    self._tell_compile_time()
                self.step += 1
                self._tell("after_step", out)
            self._tell("after_train")
        finally:
            self._tell("close")

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Forward, backward, optimiser, then what the method moves; returns detached outputs."""
        outputs = []
        parts = batch.split(self.accumulate)
        for part in parts:
            with self._synced(part is parts[-1]):
                with autocast(self.device, self.precision):
                    out = self.model(part)
                share = len(part.index) / len(batch.index)
                # A whole batch is spared a product by one and its backward pass.
                loss = out["loss"] if share == 1 else out["loss"] * share
                self.scaler.scale(loss).backward()
            outputs.append((share, out))
        out = merge_outputs(outputs)
        # Looked at when a line is logged: a look at every step would make the host wait for a GPU.
        self.losses.append((self.step, out["loss"]))
        self.method.after_backward()
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.method.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(batch, out)
        return out

    def steps_in(self, epochs: float) -> int:
        """Epochs, fractions allowed, as at least one step."""
        return max(1, round(epochs * self.data.steps_per_epoch))

    def check_finite(self) -> None:
        """Stops the run if some step's loss was not finite; hooks ask before they write.

        Raises:
            NonFiniteLoss: with the first such step, its images and the last checkpoint before it.
        """
        if not self.losses:
            return
        steps, losses = zip(*self.losses, strict=True)
        self.losses.clear()
        finite = torch.stack(losses).isfinite().tolist()
        if not all(finite):
            step = steps[finite.index(False)]
            images = self.data.indices(step)
            good = [p for p in checkpoint.saved(self.folder) if int(p.stem.split("_")[1]) <= step]
            shown = ", ".join(map(str, images[:8].tolist()))
            raise NonFiniteLoss(
                f"the loss is not finite at step {step} "
                f"(epoch {step / self.data.steps_per_epoch:.2f}); "
                f"its {len(images)} images: [{shown}{', ...' if len(images) > 8 else ''}]; "
                f"last good checkpoint: {good[-1] if good else 'none yet'}"
            )

    def _tell_compile_time(self) -> None:
        self.compiles = False
        self._wait()
        took = time.perf_counter() - self.started
        self.say(f"{self.name}: the first step, compilation included, took {took:.0f} s")

    def _synced(self, last: bool):
        """Gradients travel between ranks once a step, with the last micro-batch."""
        return nullcontext() if last or self.model is self.method else self.model.no_sync()

    def _tell(self, event: str, *args: Any) -> None:
        for hook in self.hooks:
            getattr(hook, event)(self, *args)

    # What hooks use.

    @contextmanager
    def paused(self, memory: bool = True) -> Iterator[None]:
        """Time spent inside does not count as training, nor memory unless told otherwise.

        To tell memory apart, what is free must go back to the system first: not at every line.
        """
        self.clock()
        with self.peak_memory.excluded() if memory else nullcontext():
            yield
        self._wait()
        self.started = time.perf_counter()

    def clock(self) -> None:
        """Adds the time since the last call to `seconds`, work still queued on a GPU included.

        Waits for the GPU, so it is called when something is logged and not at every step.
        """
        self._wait()
        now = time.perf_counter()
        self.seconds += now - self.started
        self.started = now

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def record(self, kind: str, **values: Any) -> None:
        """Appends a line to metrics.jsonl; rank 0 alone."""
        if distributed.is_main():
            head = {"kind": kind, "step": self.step, "epoch": self.epoch, "seconds": self.seconds}
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(head | values) + "\n")

    def recorded(self) -> list[dict[str, Any]]:
        """The run's metrics so far, of all sittings."""
        return read_lines(self.folder / "metrics.jsonl")

    def forget_after_step(self) -> None:
        """Drops metrics that a killed sitting wrote after its last checkpoint."""
        if distributed.is_main():
            kept = [line for line in self.recorded() if line["step"] <= self.step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_text(self.folder / "metrics.jsonl", text)

    def say(self, text: str) -> None:
        """A line for the person and for log.txt; rank 0 alone."""
        if distributed.is_main():
            self.console.print(text, soft_wrap=True, highlight=False, markup=False)
            with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
