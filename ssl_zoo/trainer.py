"""The training loop."""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_zoo import checkpoint, distributed
from ssl_zoo.hooks.base import Hook
from ssl_zoo.memory_use import PeakMemory
from ssl_zoo.method import Batch, Method, merge_outputs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
        precision: fp32, or autocast to bf16, or to fp16 with loss scaling (GPU only).
        accumulate: micro-batches a step. Memories and momentum encoders see one step.
        clip_grad: largest gradient norm.
        lr_reference_batch: the batch size that the config's lr is meant for; the lr in use is
            lr x global batch / reference (arXiv:1706.02677). Null: lr as it is.
        sync_bn: BatchNorm over all processes (GPU only).
        log_every: steps between two lines of metrics.

    Raises:
        ValueError: a precision that the device lacks, a nonsensical number.
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
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        accumulate: int = 1,
        clip_grad: float | None = None,
        lr_reference_batch: int | None = None,
        sync_bn: bool = False,
        log_every: int = 20,
    ):
        if epochs <= 0 or accumulate < 1 or log_every < 1:
            raise ValueError(
                "epochs must be above 0, accumulate and log_every at least 1; "
                f"found {epochs}, {accumulate}, {log_every}"
            )
        if precision == "fp16" and device.type != "cuda":
            raise ValueError("precision fp16 is for GPUs; bf16 runs here")
        if sync_bn and distributed.world() > 1:
            method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
        if lr_reference_batch is not None:
            for group in optimizer.param_groups:
                group["lr"] *= data.batch_size / lr_reference_batch
        self.method, self.data, self.optimizer, self.hooks = method, data, optimizer, hooks
        self.device, self.folder = device, folder
        self.name = "/".join(folder.parts[-2:])
        self.accumulate, self.clip_grad, self.log_every = accumulate, clip_grad, log_every
        self.total_steps = max(1, round(epochs * data.steps_per_epoch))
        self.dtype = DTYPES[precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.model: nn.Module = method
        if distributed.world() > 1:
            self.model = DistributedDataParallel(method, **{_SYNC_BUFFERS: False})
        self.step = 0
        self.seconds = 0.0  # of training, over all sittings
        self.status: dict[str, float] = {}
        self.config_text = ""
        self.memory = PeakMemory(device)
        self.first_bad = torch.full((), -1, device=device)  # step of the first non-finite loss
        self.started = time.perf_counter()
        self.console = Console()

        self.labels: Tensor | None = data.labels if bool((data.labels >= 0).any()) else None

    @property
    def epoch(self) -> float:
        return self.step / self.data.steps_per_epoch

    def fit(self) -> None:
        """Trains from `step` to `total_steps`."""
        self.method.train()
        try:
            self.started = time.perf_counter()
            self._tell("before_train")
            for batch in self.data.batches(self.step, self.total_steps, self.device):
                self._tell("before_step")
                out = self.train_step(batch)
                self.step += 1
                self._clock()
                self._tell("after_step", out)
            self._tell("after_train")
        finally:
            self._tell("close")

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Forward, backward, optimiser, then what the method moves; returns detached outputs."""
        outputs = []
        parts = batch.split(self.accumulate)
        for part in parts:
            with self._synced(part is parts[-1]), self._autocast():
                out = self.model(part)
                share = len(part.index) / len(batch.index)
                self.scaler.scale(out["loss"] * share).backward()
            outputs.append(out)
        out = merge_outputs(outputs)
        self._watch_loss(out["loss"])
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.method.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(batch, out)
        return out

    def check_finite(self) -> None:
        """Stops the run if some step's loss was not finite.

        Raises:
            NonFiniteLoss: with the step, its images and the last checkpoint before it.
        """
        step = int(self.first_bad)
        if step >= 0:
            images = self.data.indices(step)
            good = [p for p in checkpoint.saved(self.folder) if int(p.stem.split("_")[1]) <= step]
            shown = ", ".join(map(str, images[:8].tolist()))
            raise NonFiniteLoss(
                f"the loss is not finite at step {step} "
                f"(epoch {step / self.data.steps_per_epoch:.2f}); "
                f"its {len(images)} images: [{shown}{', ...' if len(images) > 8 else ''}]; "
                f"last good checkpoint: {good[-1] if good else 'none yet'}"
            )

    def _watch_loss(self, loss: Tensor) -> None:
        # The verdict stays on the device: on a GPU, reading it at every step would stall the queue.
        bad = ~torch.isfinite(loss) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, self.step, self.first_bad)
        if self.device.type == "cpu":
            self.check_finite()

    def _autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _synced(self, last: bool):
        """Gradients travel between ranks once a step, with the last micro-batch."""
        return nullcontext() if last or self.model is self.method else self.model.no_sync()

    def _tell(self, event: str, *args: Any) -> None:
        for hook in self.hooks:
            getattr(hook, event)(self, *args)

    # What hooks use.

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time and memory spent inside do not count as training."""
        self._clock()
        with self.memory.excluded():
            yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.started = time.perf_counter()

    def _clock(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self.started
        self.started = now

    def record(self, kind: str, **values: Any) -> None:
        """Appends a line to metrics.jsonl; rank 0 alone."""
        if distributed.is_main():
            head = {"kind": kind, "step": self.step, "epoch": self.epoch, "seconds": self.seconds}
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(head | values) + "\n")

    def recorded(self) -> list[dict[str, Any]]:
        """The run's metrics so far, of all sittings."""
        path = self.folder / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        # A kill may have cut the last line short.
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in whole]

    def forget_after_step(self) -> None:
        """Drops metrics that a killed sitting wrote after its last checkpoint."""
        kept = [line for line in self.recorded() if line["step"] <= self.step]
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, name: str, text: str) -> None:
        """A file of the run folder, whole or not at all; rank 0 alone."""
        if distributed.is_main():
            staged = self.folder / f"{name}.tmp"
            staged.write_text(text, encoding="utf-8")
            os.replace(staged, self.folder / name)

    def say(self, text: str) -> None:
        """A line for the person and for log.txt; rank 0 alone."""
        if distributed.is_main():
            self.console.print(text, soft_wrap=True, highlight=False, markup=False)
            with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
