"""The loop: resume, accumulation, precision, schedules, and what stops it."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console
from torch import nn

from ssl_zoo import config, experiment
from ssl_zoo.config import ConfigError
from ssl_zoo.core import merge_outputs
from ssl_zoo.engine import checkpoint
from ssl_zoo.engine.hooks import Hook
from ssl_zoo.engine.optimizers import start_momentum
from ssl_zoo.engine.parallel import load_optimizer
from ssl_zoo.engine.schedules import Constant, Cosine, Exponential, Step
from ssl_zoo.engine.stop import NonFiniteLoss, StopSignal
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed
from ssl_zoo.testing.ranks import on_ranks

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "configs" / "digits" / "moco_v2.yaml"
TINY = [
    ("backbone", {"type": "TinyNet", "norm": True, "bn_groups": 2}),
    ("data.dataset.limit", 160),
    "data.batch_size=32",
    "evaluations={knn: null}",
    "train.precision=fp32",
    "train.epochs=3",
    "train.log_every=1",
    "method.memory.size=50",
    "checkpoint.every_epochs=0.4",
    "checkpoint.keep=100",
]


def make(folder: Path, *overrides) -> Trainer:
    folder.mkdir(exist_ok=True)
    cfg = config.load(DIGITS, [*TINY, *overrides])
    return experiment.build_trainer(cfg, torch.device("cpu"), folder)


def everything(trainer: Trainer) -> dict:
    """All that training has moved, to be compared bitwise."""
    optimizer = trainer.optimizer.state_dict()["state"]
    return {
        "method": trainer.method.state_dict(),
        "optimizer": {i: state["momentum_buffer"] for i, state in optimizer.items()},
        "rng": torch.get_rng_state(),
    }


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b)


def full_and_resumed(folder: str, overrides: list, resumed_overrides: list) -> tuple[bool, bool]:
    """Whether 7 steps, a stop in mid-epoch and 8 more equal 15 steps; and whether 7 do not."""
    folder = Path(folder)
    whole = make(folder / "whole", *overrides)
    whole.fit()
    first = make(folder / "parts", *overrides)
    first.total_steps = 7  # 5 steps an epoch: the stop is inside the second
    # Schedules see the whole run's length in the first part too.
    schedules = first.hooks["schedules"]
    schedules.before_step = lambda t, plain=schedules.before_step: with_steps(t, 15, plain)
    first.fit()
    first.hooks["checkpoints"].save(first)
    early = same(everything(first), everything(whole))
    torch.manual_seed(99)
    second = make(folder / "parts", *overrides, *resumed_overrides)
    assert second.resume()
    second.fit()
    return same(everything(second), everything(whole)), early


KEYS = "memory.key_encoder.encoder"  # the momentum encoder starts as a copy


def test_nudged_weights_are_the_first_layers_next_floats_and_all_else_is_the_same(tmp_path):
    plain, nudged = make(tmp_path / "a"), make(tmp_path / "b", "nudge_weights=true")
    one, other = everything(plain), everything(nudged)
    moved = {name for name in one["method"] if not same(one["method"][name], other["method"][name])}
    assert moved == {f"{where}.backbone.net.0.weight" for where in ("encoder", KEYS)}
    for name in moved:
        before, after = one["method"][name].numpy(), other["method"][name].numpy()
        assert (after == np.nextafter(before, np.float32(np.inf))).all() and (after > before).all()
    assert same(one["rng"], other["rng"])
    ends = []
    for run in (plain, nudged):
        run.fit()
        ends.append(run.method.state_dict()["encoder.backbone.net.3.weight"])
    assert not torch.equal(*ends) and torch.allclose(*ends, atol=0.1)


def test_a_nudge_moves_a_vits_patches_and_not_its_class_token():
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    block = {"type": "Timm", "name": "vit_tiny_patch16_224", "in_chans": 1, "options": options}
    plain, nudged = (
        experiment.seeded(0, config.bind(config.BACKBONES, block), torch.device("cpu"), nudged)
        for nudged in (False, True)
    )
    one, other = plain.state_dict(), nudged.state_dict()
    moved = [name for name in one if not torch.equal(one[name], other[name])]
    assert [name.rpartition("patch_embed.")[2] for name in moved] == ["proj.weight"]
    images = torch.rand(2, 1, 8, 8)
    assert not torch.equal(plain.eval()(images), nudged.eval()(images))


def test_another_seed_of_data_starts_from_the_same_weights_and_trains_others(tmp_path):
    runs = [make(tmp_path / name, f"data.seed={name}") for name in ("null", "0", "5")]
    starts = [everything(run) for run in runs]
    assert same(starts[0], starts[1]) and same(starts[0], starts[2])
    for run in runs:
        run.fit()
    ends = [everything(run) for run in runs]
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])


def with_steps(trainer, steps, call) -> None:
    kept, trainer.total_steps = trainer.total_steps, steps
    call(trainer)
    trainer.total_steps = kept


@pytest.mark.parametrize(
    "memory",
    [
        {"type": "MoCoQueue", "size": 50, "momentum": 0.9},
        {"type": "MemoryBank", "num_negatives": 40},
        {"type": "EndToEnd"},
    ],
    ids=lambda memory: memory["type"],
)
def test_resume_in_mid_epoch_is_bitwise(memory, tmp_path):
    resumed, early = full_and_resumed(str(tmp_path), [("method.memory", memory)], [])
    assert resumed and not early


def test_resume_is_bitwise_with_other_workers_and_a_kept_last_batch(tmp_path):
    resumed, early = full_and_resumed(
        str(tmp_path), ["data.drop_last=false", "data.dataset.limit=150"], ["data.workers=2"]
    )
    assert resumed and not early


def test_resume_is_bitwise_with_another_seed_of_data_and_nudged_weights(tmp_path):
    resumed, early = full_and_resumed(str(tmp_path), ["data.seed=5", "nudge_weights=true"], [])
    assert resumed and not early


def test_resume_is_bitwise_on_two_ranks(tmp_path):
    for rank in on_ranks(2, full_and_resumed, str(tmp_path), [], []):
        assert rank == (True, False)


def trained_on_ranks(folder: str) -> dict:
    trainer = make(Path(folder), ("backbone.norm", False), "method.memory.shuffle_bn=false")
    trainer.fit()
    return {k: v for k, v in trainer.method.state_dict().items() if "seed" not in k}


def test_two_ranks_train_what_one_does(tmp_path):
    (one,) = on_ranks(1, trained_on_ranks, str(tmp_path / "one"))
    for rank in on_ranks(2, trained_on_ranks, str(tmp_path / "two")):
        torch.testing.assert_close(rank, one, rtol=1e-4, atol=1e-5)


def test_accumulation_equals_one_large_batch_in_weights_memory_and_ema_count(tmp_path):
    """BatchNorm aside, with a queue that all micro-batches share."""
    plain, split = (
        make(tmp_path / str(n), ("backbone.norm", False), f"train.accumulate={n}")
        for n in (1, 3)  # 32 is no multiple of 3
    )
    for trainer in (plain, split):
        trainer.fit()
    assert int(split.method.memory.steps) == split.total_steps == 15
    torch.testing.assert_close(
        split.method.state_dict(), plain.method.state_dict(), rtol=1e-4, atol=1e-5
    )


def test_bf16_stays_near_fp32(tmp_path):
    losses = []
    for precision in ("fp32", "bf16"):
        trainer = make(tmp_path / precision, f"train.precision={precision}", "train.epochs=1")
        trainer.fit()
        losses.append([line["loss"] for line in trainer.folder.metrics()])
        assert all(p.dtype == torch.float32 for p in trainer.method.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_fp16_on_a_cpu_is_refused_and_bf16_recommended(tmp_path):
    with pytest.raises(ConfigError, match="fp16 is for GPUs; bf16 runs here"):
        make(tmp_path, "train.precision=fp16")


def test_to_compile_what_has_no_encoder_is_refused(tmp_path):
    method = "method={type: CPC, patch_size: 4, stride: 2, rows_down: [1]}"
    with pytest.raises(ConfigError, match="CPC has no Encoder to compile") as caught:
        make(tmp_path, "train.compile=true", method)
    assert caught.value.key == "train.compile"


def test_lr_scales_with_the_global_batch(tmp_path):
    trainer = make(tmp_path, "optimizer.lr=0.4", "train.lr_reference_batch=256")
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * 32 / 256)


def test_outputs_of_uneven_micro_batches_are_weighted_by_their_rows():
    outputs = [(2 / 3, {"loss": torch.tensor(1.0), "q": torch.ones(2, 1)})]
    outputs += [(1 / 3, {"loss": torch.tensor(4.0), "q": torch.zeros(1, 1)})]
    merged = merge_outputs(outputs)
    assert merged["loss"].item() == pytest.approx(2.0)
    assert merged["q"].flatten().tolist() == [1.0, 1.0, 0.0]
    assert [len(part.index) for part in tiny.batch(2).split(5)] == [1, 1]


def test_clipping_bounds_the_gradient(tmp_path):
    norms = []

    class Norm(Hook):
        def before_step(self, trainer):
            step = trainer.optimizer.step
            trainer.optimizer.step = lambda: (norms.append(norm(trainer)), step())

    def norm(trainer):
        grads = [p.grad.norm() for p in trainer.method.parameters() if p.grad is not None]
        return torch.stack(grads).norm().item()

    trainer = make(tmp_path, "train.clip_grad=0.001", "train.epochs=1")
    trainer.hooks = {"norm": Norm(), **trainer.hooks}
    trainer.fit()
    assert norms and all(n <= 0.001 * (1 + 1e-3) for n in norms)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_images_and_checkpoint(tmp_path):
    trainer = make(tmp_path)

    class Poison(Hook):
        def before_step(self, trainer):
            if trainer.step == 8:
                trainer.method.loss.temperature = math.nan

    trainer.hooks = {"poison": Poison(), **trainer.hooks}
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.fit()
    assert trainer.step == 9  # found at the next line
    message = str(caught.value)
    good = trainer.folder.checkpoints()[-1]
    assert good.name == "step_00000008.pt"
    images = trainer.data.indices(8)[:8].tolist()
    for words in ("step 8", f"[{', '.join(map(str, images))}, ...]", "32 images", str(good)):
        assert words in message
    weights = checkpoint.read(good)["method"]
    assert all(v.isfinite().all() for v in weights.values() if v.is_floating_point())


def stopped_by_one_rank(folder: str) -> tuple[int, bool]:
    trainer = make(Path(folder), ("backbone.norm", False), "method.memory.shuffle_bn=false")

    class Poison(Hook):
        def before_step(self, trainer):
            if trainer.step == 8 and distributed.rank() == 1:
                trainer.method.loss.temperature = math.nan

    trainer.hooks = {"poison": Poison(), **trainer.hooks}
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.fit()
    return trainer.step, "step 8" in str(caught.value)


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(tmp_path):
    assert on_ranks(2, stopped_by_one_rank, str(tmp_path)) == [(9, True)] * 2


@pytest.mark.parametrize(
    ("seconds", "most", "questions"),
    [
        ((0.1, 0.1), 20, [1, 21, 41]),
        ((0.1, 2.0), 20, [1, 3, 5, 7]),  # by the slowest of them
        ((9.0, 0.1), 20, [1, 2, 3, 4]),
        ((0.1, 0.1), 1, [1, 2, 3, 4]),
    ],
)
def test_ranks_ask_each_other_whether_to_stop_within_seconds(seconds, most, questions, monkeypatch):
    """This rank's and another's seconds a step; the other is told to stop at the last question."""
    asked, step = [0], 0

    def collect(value):
        theirs = seconds[1] * (step - asked[-1]), step == questions[-1]
        asked.append(step)
        return [value, theirs]

    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0] * step)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "collect", collect)
    stop = StopSignal()
    for step in range(1, questions[-1] + 1):
        assert stop.asked_of_some_rank(most) == (step == questions[-1])
    assert asked == [0, *questions]


# Schedules.


def test_schedules_are_their_formulas():
    assert Constant()(0.3, 5, 10) == 0.3
    assert Constant(warmup_epochs=2)(0.3, 0.5, 10) == pytest.approx(0.3 * 0.25)
    cosine = Cosine(final=0.1, warmup_epochs=2)
    assert cosine(0.3, 1, 10) == pytest.approx(0.15)
    assert cosine(0.3, 2, 10) == pytest.approx(0.3)
    assert cosine(0.3, 4, 10) == pytest.approx(0.1 + 0.2 * (1 + math.cos(math.pi * 2 / 8)) / 2)
    assert cosine(0.3, 10, 10) == pytest.approx(0.1)
    step = Step(milestones=[120, 160])
    assert [step(0.03, e, 200) for e in (0, 119.9, 120, 160)] == pytest.approx(
        [0.03, 0.03, 0.003, 0.0003]
    )
    decay = Exponential(gamma=0.9, every_epochs=2)
    assert [decay(1.0, e, 10) for e in (0, 1.9, 2, 4)] == pytest.approx([1, 1, 0.9, 0.81])


def test_any_dotted_number_can_be_scheduled_and_is_used(tmp_path):
    trainer = make(
        tmp_path,
        ("schedules", {"method.memory.momentum": {"type": "Cosine", "final": 1.0}}),
        (
            "schedules",
            {"method.loss.temperature": {"type": "Step", "milestones": [1], "gamma": 2.0}},
        ),
    )
    trainer.fit()
    last = trainer.folder.metrics()[-1]
    expected = 1.0 - 0.01 * (1 + math.cos(math.pi * 14 / 15)) / 2
    assert last["method.memory.momentum"] == pytest.approx(expected)
    assert trainer.method.memory.momentum == pytest.approx(expected)
    assert last["method.loss.temperature"] == pytest.approx(0.4)
    assert last["lr"] == last["optimizer.lr"] < 0.03


def test_scheduled_weight_decay_leaves_norms_and_biases_without(tmp_path):
    trainer = make(
        tmp_path,
        ("optimizer", {"type": "AdamW", "lr": 0.001, "weight_decay": 0.04}),
        ("schedules", {"optimizer.weight_decay": {"type": "Cosine", "final": 0.4}}),
    )
    trainer.fit()
    decay, none = (group["weight_decay"] for group in trainer.optimizer.param_groups)
    assert decay > 0.04 and none == 0.0
    assert all(p.ndim < 2 for p in trainer.optimizer.param_groups[1]["params"])


def test_weight_decay_may_rise_from_0_and_norms_and_biases_stay_without(tmp_path):
    trainer = make(
        tmp_path,
        ("optimizer", {"type": "AdamW", "lr": 0.001, "weight_decay": 0.0}),
        ("schedules", {"optimizer.weight_decay": {"type": "Cosine", "final": 0.4}}),
    )
    trainer.fit()
    decay, none = (group["weight_decay"] for group in trainer.optimizer.param_groups)
    assert decay > 0.2 and none == 0.0


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "LARS"])
def test_every_optimiser_lowers_the_loss_on_one_batch(kind, tmp_path):
    lr = {"SGD": 1.0, "AdamW": 0.01, "LARS": 5.0}[kind]
    trainer = make(
        tmp_path, ("optimizer", {"type": kind, "lr": lr}), "method.memory={type: EndToEnd}"
    )
    batch = next(trainer.data.batches(0, 1, "cpu"))
    losses = [trainer.train_step(batch)["loss"].item() for _ in range(30)]
    assert losses[-1] < 0.99 * losses[0]


# Checkpoints.


def test_a_checkpoint_loads_weights_only_and_is_complete(tmp_path):
    trainer = make(tmp_path)
    trainer.fit()
    state = torch.load(trainer.folder.checkpoints()[-1], weights_only=True)
    assert state["trainer"]["step"] == 15
    assert {
        "memory.queue.keys",
        "memory.queue.pushed",
        "memory.key_encoder.encoder.head.layers.0.weight",
    } <= set(state["method"])
    assert set(state["ranks"][0]["random"]) == {"torch", "cuda", "numpy", "python"}
    assert experiment.parse(config.loads(state["config"], "saved")).spelled_out()["seed"] == 0


def test_a_run_on_the_cpu_leaves_a_gpu_alone(tmp_path, monkeypatch):
    """To ask CUDA for its random state would start it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("CUDA was started"))
    trainer = make(tmp_path)
    trainer.hooks["checkpoints"].save(trainer)
    assert trainer.resume()


def test_fused_sgd_goes_on_where_some_parameters_had_no_gradient_yet():
    """As when a run that began on a CPU is resumed on a GPU while a layer is still frozen."""
    moved, frozen = (nn.Parameter(torch.ones(3)) for _ in range(2))
    plain = torch.optim.SGD([moved, frozen], lr=0.1, momentum=0.9)
    moved.grad = torch.ones(3)
    plain.step()
    fused = torch.optim.SGD([moved, frozen], lr=0.1, momentum=0.9, fused=True)
    fused.register_load_state_dict_post_hook(start_momentum)
    load_optimizer(fused, plain.state_dict())
    frozen.grad = torch.ones(3)
    fused.step()
    torch.testing.assert_close(moved.detach(), torch.full((3,), 0.9 - 0.19))
    torch.testing.assert_close(frozen.detach(), torch.full((3,), 0.9))


def test_old_checkpoints_go_only_after_a_newer_one_is_whole(tmp_path, monkeypatch):
    trainer = make(tmp_path, "checkpoint.keep=2", "checkpoint.every_epochs=1")
    trainer.fit()
    assert [p.name for p in trainer.folder.checkpoints()] == [
        "step_00000010.pt",
        "step_00000015.pt",
    ]

    def power_cut(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    before = {p: p.read_bytes() for p in trainer.folder.checkpoints()}
    monkeypatch.setattr(torch, "save", power_cut)
    trainer.step = 16
    with pytest.raises(KeyboardInterrupt):
        trainer.hooks["checkpoints"].save(trainer)
    assert {p: p.read_bytes() for p in trainer.folder.checkpoints()} == before


def test_a_file_of_another_kind_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not an ssl_zoo checkpoint of format 2; found None"):
        checkpoint.read(tmp_path / "other.pt")


def test_the_best_checkpoint_is_kept_besides(tmp_path):
    trainer = make(
        tmp_path, ("evaluations", {"knn": {"type": "KNN", "k": 10}}), "checkpoint.keep=1"
    )
    trainer.fit()
    lines = [line for line in trainer.folder.metrics() if line["kind"] == "evaluation"]
    best = max(lines, key=lambda line: line["top1"])
    assert checkpoint.read(tmp_path / "checkpoints" / "best.pt")["trainer"]["step"] == best["step"]


# From outside.


def newest(folder: Path) -> dict:
    return checkpoint.read(RunFolder(folder).checkpoints()[-1])


def command(*words: str) -> list[str]:
    tool = ROOT / "tools" / "train.py"
    return [sys.executable, str(tool), *map(str, words), "--device", "cpu"]


QUICK = [
    "backbone.options={layers: [1, 1, 1, 1], channels: [4, 4, 4, 4]}",
    "data.dataset.limit=320",
    "data.batch_size=32",
    "train.log_every=1",
    "evaluations.knn.k=20",
    "train.precision=fp32",
]


def test_a_run_stopped_by_a_signal_saves_itself_and_resumes_to_the_same_end(tmp_path):
    """SIGTERM in mid-epoch, then --resume; against a run that was never stopped."""
    args = [DIGITS, *QUICK, "train.epochs=4"]
    folder = tmp_path / "stopped"
    process = subprocess.Popen(command(*args, "--out", folder), stderr=subprocess.PIPE, text=True)
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if metrics.exists() and '"train"' in metrics.read_text():
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped at step" in errors and "--resume" in errors
    assert not (folder / "result.json").exists()
    step = newest(folder)["trainer"]["step"]
    assert 0 < step < 40

    done = subprocess.run(
        command(*args, "--out", folder, "--resume"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"from step {step}" in done.stdout
    whole = subprocess.run(
        command(*args, "--out", tmp_path / "whole"), capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    states = [newest(f) for f in (folder, tmp_path / "whole")]
    assert same(states[0]["method"], states[1]["method"])
    again = subprocess.run(
        command(*args, "--out", folder, "--resume"), capture_output=True, text=True
    )
    assert "finished already" in again.stdout
    other = subprocess.run(
        command(*args, "seed=1", "--out", folder, "--resume"), capture_output=True, text=True
    )
    assert other.returncode == 2 and "seed: 0 -> 1" in other.stderr

    lines = [json.loads(x) for x in metrics.read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == list(range(1, 41))  # no line twice, none missing
    assert {"config.yaml", "environment.json", "metrics.jsonl", "log.txt", "result.json"} <= {
        p.name for p in folder.iterdir()
    }


def test_a_run_goes_on_when_nobody_reads_what_it_prints(tmp_path):
    words = [DIGITS, *QUICK, "train.epochs=1", "--out", tmp_path / "run"]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(timeout=120) == 0 and errors == "", errors
    assert (tmp_path / "run" / "result.json").exists()


def lines_of_training(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    drop = ("seconds", "images_per_s")
    return [{k: v for k, v in x.items() if k not in drop} for x in lines if x["kind"] == "train"]


def resumed_between_lines(folder: str) -> bool:
    """Whether a run resumed at step 6 writes the lines, of steps 10 and 15, of one in a sitting."""
    whole, parts, seldom = Path(folder) / "whole", Path(folder) / "parts", "train.log_every=10"
    make(whole, seldom).fit()
    before = lines_of_training(whole)
    if distributed.is_main():
        shutil.copytree(whole, parts)
        (parts / "result.json").unlink()
        for saved in RunFolder(parts).checkpoints():
            if saved != RunFolder(parts).checkpoint(6):
                saved.unlink()
    distributed.barrier()
    resumed = make(parts, seldom)
    assert resumed.resume()
    resumed.fit()
    distributed.barrier()
    assert [line["step"] for line in before] == [1, 10, 15]
    return lines_of_training(parts) == before


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_line_of_metrics_is_the_same_after_a_resume(tmp_path, ranks):
    if ranks == 1:
        assert resumed_between_lines(str(tmp_path))
    else:
        assert all(on_ranks(ranks, resumed_between_lines, str(tmp_path)))


def test_a_run_at_its_end_whose_metrics_were_lost_still_gets_its_result(tmp_path, capsys):
    trained = make(tmp_path / "run", "train.epochs=1")
    trained.fit()
    for name in ("metrics.jsonl", "result.json"):
        (tmp_path / "run" / name).unlink()
    resumed = make(tmp_path / "run", "train.epochs=1")
    assert resumed.resume()
    resumed.fit()
    assert "metrics.jsonl has no line of training" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 5 and result["loss"] is None and result["images_per_s"] is None


def test_torchrun_trains_on_two_processes(tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    run = subprocess.run(
        [*words, *command(DIGITS, *QUICK, "train.epochs=1", "--out", tmp_path / "run")[1:]],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 10
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    assert len(newest(tmp_path / "run")["ranks"]) == 2


def test_the_progress_bar_shows_what_a_person_wants_to_know(tmp_path):
    trainer = make(tmp_path, ("evaluations", {"knn": {"type": "KNN", "k": 10}}))
    screen = io.StringIO()
    trainer.console = Console(file=screen, force_terminal=True, width=200)
    trainer.fit()
    for words in ("step 15/15", "loss ", "lr ", "images/s", "knn ", "left"):
        assert words in screen.getvalue()


def test_distributed_verbs_are_the_identity_on_one_process():
    x = torch.randn(3, 2)
    assert distributed.gather(x) is x and distributed.mean(x) is x
    assert distributed.collect("a") == ["a"] and distributed.broadcast("a") == "a"
