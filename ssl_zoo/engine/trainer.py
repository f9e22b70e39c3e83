"""The training loop."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.core import Batch, Method, merge_outputs
from ssl_zoo.engine import checkpoint
from ssl_zoo.engine.hooks.base import Hook
from ssl_zoo.engine.parallel import Parallel
from ssl_zoo.engine.precision import autocast, choose, plain_attention
from ssl_zoo.engine.settings import TrainSettings
from ssl_zoo.engine.stop import NonFiniteLoss, StopSignal
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed
from ssl_zoo.system.hardware import PeakMemory, keep_freed_memory
from ssl_zoo.system.text import PlainConsole


class Trainer:
    """Trains a method on a data set, and tells its hooks.

    Args:
        method: on the device, channels last.
        data: gives the batches of any range of steps; of a stream, from its `position` on.
        hooks: by name, called in this order; what a hook keeps is saved under its name.
        settings: those that change the method, see `prepare`, are the caller's to apply.
        stop: that of the run in one of whose hooks this trains; None: one of its own.

    Attributes:
        unit: steps of what durations count: of an epoch, or 1 where the data are a stream.
    """

    def __init__(
        self,
        method: Method,
        data,
        optimizer: torch.optim.Optimizer,
        hooks: dict[str, Hook],
        device: torch.device,
        folder: RunFolder,
        settings: TrainSettings,
        stop: StopSignal | None = None,
    ):
        self.method, self.data, self.optimizer, self.hooks = method, data, optimizer, hooks
        self.device, self.folder, self.settings = device, folder, settings
        self.name, self.log_every = folder.name, settings.log_every
        self._compute_in(*choose(device, settings.precision))
        self.stop = stop or StopSignal()
        self.parallel = Parallel(method, optimizer, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.unit: int = data.steps_per_epoch or 1
        self.total_steps = settings.steps or self.steps_in(settings.epochs)
        self.step = 0
        self.seconds = 0.0  # of training, over all sittings
        self.status: dict[str, str] = {}  # what hooks show on the screen, by name
        self.results: dict[str, Any] = {}  # what hooks want in result.json
        self.config_text = ""
        self.networks: dict[str, str] = {}  # of a whole run's method, see `network_paths`
        self.peak_memory = PeakMemory(device)
        self.losses: list[tuple[int, Tensor]] = []  # (step, loss []), not yet looked at
        self.started = time.perf_counter()
        self.console = PlainConsole()

    @property
    def epoch(self) -> float | None:
        """Epochs that are done; None of a stream."""
        per_epoch = self.data.steps_per_epoch
        return self.step / per_epoch if per_epoch else None

    def fit(self) -> None:
        """Trains from `step` to `total_steps`."""
        keep_freed_memory()
        self.method.train()
        self.started = time.perf_counter()
        self.peak_memory.restart()
        with self.stop:
            try:
                self._tell("before_train")
                for batch in self._batches():
                    self.begin_epoch()
                    self._tell("before_step")
                    out = self.train_step(batch)
                    self.step += 1
                    self._tell("after_step", batch, out)
                self._tell("after_train")
            finally:
                self._tell("close")

    def begin_epoch(self) -> None:
        """Shows the method the training set, where an epoch begins."""
        per_epoch = self.data.steps_per_epoch
        if per_epoch and self.step % per_epoch == 0:
            self.method.before_epoch(self.data.clean_share(self.device))

    def _batches(self) -> Iterator[Batch]:
        try:
            yield from self.data.batches(self.step, self.total_steps, self.device)
        except (ValueError, OSError):  # of files and of what reads them, between two steps
            self._tell("batch_failed")
            raise

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Forward, backward, optimizer, then what the method moves; returns detached outputs."""
        outputs = []
        parts = batch.split(self.settings.accumulate)
        for part in parts:
            with self.parallel.synced(part is parts[-1]):
                with autocast(self.device, self.precision):
                    out = self.parallel(part)
                share = len(part.index) / len(batch.index)
                # A whole batch is spared a product by one and its backward pass.
                loss = out["loss"] if share == 1 else out["loss"] * share
                self.scaler.scale(loss).backward()
            outputs.append((share, out))
        out = merge_outputs(outputs)
        # Looked at when a line is logged: a look at every step would make the host wait for a GPU.
        self.losses.append((self.step, out["loss"]))
        self.method.after_backward()
        if self.settings.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.method.parameters(), self.settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(batch, out)
        return out

    def steps_in(self, duration: float) -> int:
        """So many units, fractions allowed, as at least one step."""
        return max(1, round(duration * self.unit))

    def check_finite(self) -> None:
        """Raises NonFiniteLoss if some step's loss was not finite; hooks ask before they write."""
        if not self.losses:
            return
        steps, losses = zip(*self.losses, strict=True)
        self.losses.clear()
        finite = torch.stack(losses).isfinite().tolist()
        bad = [step for step, fine in zip(steps, finite, strict=True) if not fine]
        firsts = [step for step, *_ in filter(None, distributed.collect(bad))]  # of all ranks
        if not firsts:
            return
        step = min(firsts)
        images = self.data.indices(step)
        good = [p for p in self.folder.checkpoints() if p <= self.folder.checkpoint(step)]
        shown, per_epoch = ", ".join(map(str, images[:8].tolist())), self.data.steps_per_epoch
        epoch = f" (epoch {step / per_epoch:.2f})" if per_epoch else ""
        raise NonFiniteLoss(
            f"the loss is not finite at step {step}{epoch}; "
            f"its {len(images)} images: [{shown}{', ...' if len(images) > 8 else ''}]; "
            f"last good checkpoint: {good[-1] if good else 'none yet'}"
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a bitwise resume needs; every rank calls it."""
        loop = {
            "step": self.step,
            "position": self.data.position,
            "seconds": self.seconds,
            "peak_bytes": self.peak_memory.peak(),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "scaler": self.scaler.state_dict(),
            "hooks": {name: hook.state_dict() for name, hook in self.hooks.items()},
        }
        said = {"config": self.config_text, "networks": self.networks}
        return {**said, "trainer": loop, **self.parallel.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes where the state was taken; ValueError if it is of another config, or other data."""
        self._tell("before_load", state)
        if remark := self.parallel.load_state_dict(state):
            self.say(remark)
        loop = state["trainer"]
        if loop["precision"] != self.precision:  # `auto`, on a machine that has something else
            self._compute_in(loop["precision"], "as the run began")
        threads = torch.get_num_threads()
        if self.device.type == "cpu" and threads != loop["threads"]:
            torch.set_num_threads(loop["threads"])
            self.say(f"{self.name}: {loop['threads']} threads, as the run began, and not {threads}")
        self.scaler.load_state_dict(loop["scaler"])
        self.step, self.seconds = loop["step"], loop["seconds"]
        self.data.position = loop.get("position")
        self.peak_memory.bytes = loop["peak_bytes"]
        for name, hook in self.hooks.items():
            hook.load_state_dict(loop["hooks"].get(name, {}))

    def resume(self) -> bool:
        """Goes on from the folder's newest checkpoint; False if there is none."""
        if saved := self.folder.checkpoints():
            state = checkpoint.read(saved[-1])
            try:
                self.load_state_dict(state)
            except ValueError as error:
                raise ValueError(f"{saved[-1]}: {error}") from error
        if distributed.is_main():
            self.folder.forget_after(self.step)
        return bool(saved)

    def _compute_in(self, precision: str, reason: str) -> None:
        self.precision, self.precision_reason = precision, reason
        plain_attention(self.method, precision == "bf16" and self.device.type == "cpu")

    def _tell(self, event: str, *args: Any) -> None:
        for hook in self.hooks.values():
            getattr(hook, event)(self, *args)

    # What hooks use.

    @contextmanager
    def paused(self, memory: bool = True) -> Iterator[None]:
        """Time spent inside is not training's; nor is `memory`, which takes longer to tell."""
        self.clock()
        with self.peak_memory.excluded() if memory else nullcontext():
            yield
        self.clock(count=False)

    def clock(self, count: bool = True) -> None:
        """Adds the time since the last call to `seconds`; waits for the GPU: not at every step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds += now - self.started if count else 0.0
        self.started = now

    def record(self, kind: str, **values: Any) -> None:
        """A line of metrics at this step; rank 0 alone writes."""
        if distributed.is_main():
            when = {"kind": kind, "step": self.step, "epoch": self.epoch, "seconds": self.seconds}
            self.folder.record(when | values)

    def say(self, text: str) -> None:
        """A line for the person and for log.txt; rank 0 alone."""
        if distributed.is_main():
            self.console.print(text, soft_wrap=True)
            self.folder.log(text)
