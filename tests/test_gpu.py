"""What only a GPU can show: that nothing waits for it, and that it computes what a CPU does."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import test_conformance as conformance
import tiny
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ssl_zoo import config, experiment
from ssl_zoo.config import bind
from ssl_zoo.data import Views
from ssl_zoo.engine.hooks import Hook
from ssl_zoo.engine.stop import NonFiniteLoss
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.memory import reductions
from ssl_zoo.memory.reductions import LogSumExp, SoftplusSum
from ssl_zoo.system import distributed
from ssl_zoo.testing.methods import Recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ROOT = Path(__file__).resolve().parents[1]
GPU, CPU = torch.device("cuda"), torch.device("cpu")
STEPS = 10
METHODS = {
    "MoCoQueue": [("method.memory", {"type": "MoCoQueue", "size": 100})],
    "EndToEnd": ["method.memory={type: EndToEnd}"],
    "SimCLR": [
        "method.symmetric=true",
        "method.memory={type: EndToEnd, same_view_negatives: true, shuffle_bn: false}",
    ],
    "MemoryBank": [
        ("method.memory", {"type": "MemoryBank", "num_negatives": 40}),
        "method.loss={type: NCE}",
    ],
    "Margin": ["method.loss={type: Margin}"],
    "Rotation": ["method={type: Rotation}"],
}
# Waits that are known and allowed: settings that end them in the steps that warm up, or put them
# off beyond the last step. None: a method that waits at every step.
ALLOWED_WAITS: dict[str, list[str] | None] = {
    "BEiT": ["method.tokenizer_steps=2"],  # asks whose turn it is while the tokenizer learns
    "DINO": ["method.frozen_steps=2"],  # asks whether the last layer is still frozen
    "DINOv2": ["method.frozen_steps=2"],  # likewise
    "IBOT": ["method.frozen_steps=2"],  # likewise
    "MMCR": None,  # torch checks the singular values on the host
    "ODC": ["method.centroid_interval=1000"],  # every interval: clusters' sizes are read
}


def make(folder: Path, device: torch.device, *overrides) -> Trainer:
    """A run of STEPS steps on digits that logs and saves at its end alone."""
    folder.mkdir(exist_ok=True)
    settings = [
        "data.dataset.limit=320",
        "data.batch_size=32",
        "evaluations.knn=null",
        "train.precision=fp32",
        "train.epochs=1",
        "train.log_every=1000",
        "checkpoint.every_epochs=1000",
        *overrides,
    ]
    cfg = config.load(ROOT / "configs/digits/moco_v2.yaml", settings)
    return experiment.build_trainer(cfg, device, folder)


# Nothing waits.


class Watch(Hook):
    """No synchronisation after three steps of warming up, until the last step but one is done.

    torch's own warning: not every wait is noticed. A copy from memory that is not pinned, asked
    for with `non_blocking`, is one that is not.
    """

    def before_step(self, trainer) -> None:
        if trainer.step == 3:
            torch.cuda.set_sync_debug_mode("error")

    def after_step(self, trainer, batch, out) -> None:
        if trainer.step == trainer.total_steps - 1:
            torch.cuda.set_sync_debug_mode("default")


def watched(trainer: Trainer) -> None:
    assert trainer.total_steps >= 6
    trainer.hooks["watch"] = Watch()
    trainer.fit()
    assert trainer.step == trainer.total_steps
    assert math.isfinite(float(trainer.status["loss"].removeprefix("loss ")))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_training_does_not_wait_for_the_gpu_between_log_lines(method, precision, tmp_path):
    watched(make(tmp_path, GPU, f"train.precision={precision}", *METHODS[method]))


@pytest.mark.parametrize("recipe", conformance.RECIPES)
def test_nor_does_any_method_but_where_it_is_known(recipe, tmp_path):
    kind = conformance.RECIPES[recipe]
    later = ALLOWED_WAITS.get(kind, [])
    if later is None:
        pytest.skip(f"{kind} waits at every step")
    settings = [*conformance.SMALLER.get(kind, []), *later, "checkpoint.every_epochs=1000"]
    trainer = Recipe(recipe, tuple(settings), device=GPU).make(tmp_path)
    trainer.total_steps = trainer.data.steps_per_epoch
    watched(trainer)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.clip_grad=1.0"],
        ["train.clip_grad=1.0", "train.precision=fp16"],
        ["train.accumulate=2"],
        ["data.workers=1"],
        [("optimizer", {"type": "AdamW", "lr": 0.001})],
        [("optimizer", {"type": "LARS", "lr": 0.1})],
    ],
    ids=["clipped", "clipped fp16", "accumulated", "a worker", "AdamW", "LARS"],
)
def test_nor_do_clipping_accumulation_workers_and_the_other_optimisers(overrides, tmp_path):
    watched(make(tmp_path, GPU, *overrides))


def test_the_debug_mode_notices_a_wait(tmp_path):
    """Without this the tests above would show nothing."""
    trainer = make(tmp_path, GPU)

    class Read(Hook):
        def after_step(self, trainer, batch, out) -> None:
            out["loss"].item()

    trainer.hooks |= {"watch": Watch(), "read": Read()}
    with pytest.raises(RuntimeError, match="synchroniz"):
        trainer.fit()


def test_a_loss_that_is_not_finite_is_found_at_the_next_line_and_its_step_is_named(tmp_path):
    trainer = make(tmp_path, GPU, "train.log_every=5")

    class Poison(Hook):
        def before_step(self, trainer) -> None:
            trainer.method.loss.temperature = math.nan if trainer.step == 2 else 0.2

    trainer.hooks = {"poison": Poison(), **trainer.hooks}
    with pytest.raises(NonFiniteLoss, match="not finite at step 2 "):
        trainer.fit()
    assert trainer.step == 5


# The same numbers.


@pytest.mark.parametrize("method", METHODS)
def test_a_step_on_the_gpu_is_a_step_on_the_cpu(method, tmp_path):
    """In loss, gradients and all that moves; float32 sums differ in their order alone."""
    here, there = (make(tmp_path / d.type, d, *METHODS[method]) for d in (CPU, GPU))
    batch = next(here.data.batches(0, 1, CPU))
    moved = type(batch)(
        [view.to(GPU) for view in batch.views], batch.index.to(GPU), batch.label.to(GPU)
    )
    for trainer in (here, there):
        trainer.method.train()
    losses = [t.train_step(b)["loss"].item() for t, b in ((here, batch), (there, moved))]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for ours, theirs in zip(here.method.parameters(), there.method.parameters(), strict=True):
        state, other = here.optimizer.state.get(ours), there.optimizer.state.get(theirs)
        if state and other:  # after one step the momentum is the gradient, weight decay included
            expected = state["momentum_buffer"]
            scale = expected.abs().max().item()
            torch.testing.assert_close(
                other["momentum_buffer"].cpu(), expected, rtol=1e-3, atol=1e-4 * scale + 1e-7
            )
    states = [
        {name: value.cpu() for name, value in t.method.state_dict().items()} for t in (here, there)
    ]
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("block", [1, 30, 2**24], ids=lambda entries: f"{entries} a block")
@pytest.mark.parametrize("reduction", [LogSumExp, SoftplusSum])
def test_reductions_equal_the_matrix(reduction, block, own, monkeypatch):
    monkeypatch.setitem(reductions._BLOCK, "cuda", block)
    rows, keys_, width = 6, 23, 4
    q, keys = (torch.randn(n, width, dtype=torch.float64, device=GPU) for n in (rows, keys_))
    q, keys = (5 * F.normalize(q, dim=1)).requires_grad_(), keys.requires_grad_()
    columns = torch.tensor([[i, keys_ - 1 - i] for i in range(rows)], device=GPU) if own else None
    s = q @ keys.T
    s = s if columns is None else s.scatter(1, columns, -torch.inf)
    positive = torch.zeros(rows, 1, dtype=q.dtype, device=GPU)
    if reduction is LogSumExp:
        (value, nearer), expected = reduction.apply(q, keys, columns, positive), s.logsumexp(1)
    else:
        even = torch.tensor(0.7, dtype=q.dtype, device=GPU)
        value, nearer = reduction.apply(q, keys, columns, positive, even)
        expected = F.softplus(s - even).sum(1)
    torch.testing.assert_close(value, expected)
    assert nearer.tolist() == (s >= 0).sum(1).tolist()
    weights = torch.arange(1.0, rows + 1, dtype=q.dtype, device=GPU)
    ours = torch.autograd.grad(value @ weights, (q, keys))
    torch.testing.assert_close(ours, torch.autograd.grad(expected @ weights, (q, keys)))


def test_views_on_the_gpu_are_those_on_the_cpu():
    """MoCo v2's, in [0, 1]; their parameters are hashes, and equal to the bit."""
    jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}
    ops = {
        "crop": {"type": "RandomResizedCrop", "size": 32, "scale": [0.2, 1.0]},
        "jitter": {"type": "ColorJitter", **jitter},
        "grayscale": {"type": "RandomGrayscale", "p": 0.2},
        "blur": {"type": "GaussianBlur", "sigma": [0.1, 2.0], "p": 0.5},
        "flip": {"type": "HorizontalFlip", "p": 0.5},
    }
    views = bind(Views, {"ops": ops, "count": 2})()
    images = torch.randint(256, (64, 3, 48, 40), dtype=torch.uint8)
    index = torch.arange(64)
    expected = views(images, 0, 3, index)
    for ours, theirs in zip(views(images.to(GPU), 0, 3, index), expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=1e-5)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    """Up to what cuDNN's choice of algorithms and the order of its sums leave open."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    settings = [("schedules", {"optimizer.lr": {"type": "Constant"}})]
    whole = make(tmp_path / "whole", GPU, *settings)
    whole.fit()
    first = make(tmp_path / "parts", GPU, *settings)
    first.total_steps = 4
    first.fit()
    early = {name: value.clone() for name, value in first.method.state_dict().items()}
    second = make(tmp_path / "parts", GPU, *settings)
    assert second.resume() and second.step == 4
    second.fit()
    state, expected = second.method.state_dict(), whole.method.state_dict()
    torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(early["memory.queue.keys"], expected["memory.queue.keys"])


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler, which Triton needs")
def test_compiled_encoders_train_as_plain_ones(tmp_path):
    losses = []
    for compile in ("false", "true"):
        overrides = [f"train.compile={compile}", "train.log_every=1"]
        trainer = make(tmp_path / compile, GPU, *overrides)
        trainer.fit()
        losses.append(
            [line["loss"] for line in trainer.folder.metrics() if line["kind"] == "train"]
        )
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and len(losses[0]) == STEPS


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_first_step_that_overflows_in_fp16_moves_nothing(kind, tmp_path):
    lr = 0.03 if kind == "SGD" else 0.001
    trainer = make(tmp_path, GPU, "train.precision=fp16", ("optimizer", {"type": kind, "lr": lr}))
    trainer.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)
    filled = [torch.full((2**16,), 1e9, device=GPU) for _ in range(64)]
    del filled  # what torch's allocator hands out next is not zero
    before = [p.detach().clone() for p in trainer.method.encoder.parameters()]
    trainer.method.train()
    trainer.train_step(next(trainer.data.batches(0, 1, GPU)))
    assert trainer.scaler.get_scale() < 2.0**60
    for p, old in zip(trainer.method.encoder.parameters(), before, strict=True):
        assert torch.equal(p, old)
        state = trainer.optimizer.state[p]
        for name in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
            assert name not in state or not state[name].any(), name


# Several processes, as far as one shows it.


class Square(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).square().mean()


def test_nccl_starts_gathers_and_reduces_on_one_process():
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert dist.get_backend() == "nccl" and distributed.world() == 1
        x = torch.randn(3, 2, device=GPU, requires_grad=True)
        gathered = distributed._Gather.apply(x)
        gathered.square().sum().backward()
        assert torch.equal(gathered, x)
        torch.testing.assert_close(x.grad, 2 * x.detach())
        net = Square(tiny.TinyNet(norm=True)).to(GPU)
        DistributedDataParallel(net)(torch.randn(4, 1, 8, 8, device=GPU)).backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
    finally:
        dist.destroy_process_group()
