"""How a run trains: the section `train` of a config, and what it does before the loop begins."""

from dataclasses import dataclass
from typing import Literal

import torch
from timm.layers import convert_sync_batchnorm

from ssl_zoo.config import ConfigError, OfMachine, PositiveFloat, PositiveInt, constrained
from ssl_zoo.core import Encoder, Method
from ssl_zoo.engine.precision import Precision
from ssl_zoo.system import distributed


@constrained
@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The numbers of a training run.

    Args:
        epochs: how long the run is; a fraction counts. A stream has none.
        steps: how long it is, in their place.
        precision: fp32, or autocast to bf16, or to fp16 with loss scaling (GPU only). auto: bf16
            where the hardware multiplies in it (GPUs since Ampere, CPUs with AMX or AVX512-BF16).
        threads: of torch on a CPU, for each process; sums in another order are other sums, so a
            resume takes as many. auto: as torch finds it.
        accumulate: micro-batches a step. Memories and momentum encoders see one step.
        clip_grad: largest gradient norm.
        lr_reference_batch: the batch size that lr is meant for, see `scale_lr`; null: any.
        sync_bn: BatchNorm over all processes (GPU only).
        compile: torch.compile for every pass of a whole `Encoder`; the first step then takes
            minutes. What a method computes from the backbone's map or tokens stays as it is.
        log_every: steps between two lines of metrics.
    """

    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    precision: Precision = "auto"
    threads: PositiveInt | Literal["auto"] = "auto"
    accumulate: PositiveInt = 1
    clip_grad: PositiveFloat | None = None
    lr_reference_batch: PositiveInt | None = None
    sync_bn: bool = False
    compile: bool = False
    log_every: OfMachine[PositiveInt] = 50

    @staticmethod
    def validate(*, epochs: float | None, steps: int | None, **_) -> None:
        if epochs is None and steps is None:
            expected = "train.epochs, or train.steps"
            raise ConfigError("", "a run has no length", found="neither", expected=expected)
        if epochs is not None and steps is not None:
            found = f"{epochs:g} epochs and {steps} steps"
            expected = "one of the two; epochs=null takes an inherited one away"
            raise ConfigError("steps", "a run has two lengths", found=found, expected=expected)


def prepare(method: Method, settings: TrainSettings, device: torch.device) -> Method:
    """The method, changed as the settings ask: BatchNorm over processes, compilation."""
    if settings.sync_bn and distributed.world() > 1:
        if device.type != "cuda":
            raise ConfigError("train.sync_bn", "torch's SyncBatchNorm does not run on a CPU")
        method = convert_sync_batchnorm(method)
    if settings.compile:
        encoders = [module for module in method.modules() if isinstance(module, Encoder)]
        if not encoders:
            raise ConfigError("train.compile", f"{type(method).__name__} has no Encoder to compile")
        for encoder in encoders:
            encoder.compile(fullgraph=True)
    return method


def scale_lr(optimizer: torch.optim.Optimizer, batch_size: int, reference: int | None) -> None:
    """lr x global batch / reference (arXiv:1706.02677); None leaves it."""
    for group in optimizer.param_groups if reference is not None else ():
        group["lr"] *= batch_size / reference
