"""The fast paths of a step against the plain ones."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_zoo import config, experiment
from ssl_zoo.backbones import Timm
from ssl_zoo.backbones.timm_model import checkpoint_gradients
from ssl_zoo.config import ConfigError
from ssl_zoo.core import Method
from ssl_zoo.engine import precision
from ssl_zoo.engine.optimizers import SGD, AdamW
from ssl_zoo.engine.precision import choose
from ssl_zoo.system import hardware
from ssl_zoo.system.hardware import keep_freed_memory


class Squares(Method):
    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.encoder = backbone

    def forward(self, images):
        return self.encoder(images).square().mean()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD, lambda ps: torch.optim.SGD(ps, lr=1e-3, momentum=0.9, foreach=False)),
        (AdamW, lambda ps: torch.optim.AdamW(ps, lr=1e-3, foreach=False)),
    ],
    ids=["SGD", "AdamW"],
)
def test_optimizers_equal_torchs_plain_loops_on_a_channels_last_network(ours, theirs):
    # torch's fused SGD on a CPU goes wrong where a gradient's memory is laid out otherwise than
    # its parameter's, so the layouts that autograd makes are what is tested.
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "zero_init_last": False}
    network = Timm(name="resnet18", options=options)
    method = Squares(network).to(memory_format=torch.channels_last)
    reference = copy.deepcopy(method)
    optimizers = [
        ours(method, lr=1e-3, weight_decay=0.01),
        theirs(reference.param_groups(0.01, ours is SGD)),
    ]
    for _ in range(3):
        images = torch.randn(4, 3, 32, 32)
        for model, optimizer in zip((method, reference), optimizers, strict=True):
            for half in images.chunk(2):  # accumulated
                model(half).backward()
            optimizer.step()
            optimizer.zero_grad()
    # Three steps move a parameter by 3e-3; rounding is amplified where a gradient is near zero.
    torch.testing.assert_close(
        list(method.parameters()), list(reference.parameters()), rtol=0, atol=1e-4
    )


def kept_by_forward(backbone: nn.Module, images: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Numbers that autograd keeps for the backward pass, and the features."""
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.update({x.data_ptr(): x.numel()}) or x, lambda x: x
    ):
        features = backbone(images)
    return sum(kept.values()), features


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("bn_groups", [1, 2])
def test_gradient_checkpointing_keeps_less_and_changes_nothing(model, bn_groups):
    if model == "vit_tiny_patch16_224":
        options = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 8}
    else:
        options = {"layers": [4, 2, 2, 2], "channels": [8, 8, 8, 8], "stem_width": 4}
    plain = Timm(name=model, options=options, bn_groups=bn_groups)
    spare = Timm(name=model, options=options, bn_groups=bn_groups, grad_checkpointing=True)
    spare.load_state_dict(plain.state_dict())
    kept = []
    for _ in range(2):
        images = torch.randn(16, 3, 32, 32)
        for backbone in (plain, spare):
            numbers, features = kept_by_forward(backbone, images)
            kept.append(numbers)
            features.square().mean().backward()
            with torch.no_grad():
                backbone(images)  # a pass without gradients counts in the statistics too
    assert kept[1] < 0.85 * kept[0]
    for name, value in plain.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # a count that nothing reads
            assert torch.equal(spare.state_dict()[name], value), name
    for a, b in zip(spare.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)
    torch.testing.assert_close(spare.eval()(images), plain.eval()(images), rtol=0, atol=0)


def test_gradient_checkpointing_is_refused_where_timm_has_none():
    with pytest.raises(ConfigError, match="timm has none for test_x"):
        checkpoint_gradients(nn.Linear(1, 1), "test_x")


def test_auto_is_bf16_where_the_cpu_multiplies_in_it_and_says_so(monkeypatch):
    cpu = torch.device("cpu")
    for flags, expected in (
        ({"avx512_bf16", "fma"}, ("bf16", "auto: avx512_bf16")),
        ({"avx512_bf16", "amx_bf16"}, ("bf16", "auto: amx_bf16")),
        ({"avx512f"}, ("fp32", "auto: no bf16 units here")),
        (set(), ("fp32", "auto: no bf16 units here")),
    ):
        monkeypatch.setattr(hardware, "_cpu_flags", lambda flags=flags: flags)
        assert choose(cpu, "auto") == expected
    assert choose(cpu, "fp32") == ("fp32", "as configured")


MAPPED = """
import sys, torch
from ssl_zoo.system.hardware import keep_freed_memory

def resident():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmRSS"))
    return int(line.split()[1]) * 1024

if sys.argv[1] == "keep":
    assert keep_freed_memory()
size = 200_000_000
torch.ones(size, dtype=torch.uint8)
print(resident() // size)
"""


def test_freed_memory_is_kept():

    if not keep_freed_memory():
        pytest.skip("malloc is not glibc's")
    kept, returned = (
        int(subprocess.check_output([sys.executable, "-c", MAPPED, word], text=True))
        for word in ("keep", "return")
    )
    assert kept == returned + 1


HUGE = """
import torch
from pathlib import Path
from ssl_zoo.system.hardware import give_back_freed_memory, keep_freed_memory

def huge():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("AnonHugePages")).split()[1]) * 1024

assert keep_freed_memory()
x = torch.ones(200_000_000, dtype=torch.uint8)
first = huge()
del x
give_back_freed_memory()
x = torch.ones(200_000_000, dtype=torch.uint8)
print(first > 150_000_000, huge() > 150_000_000)
"""


def test_the_heap_grows_in_large_pages_also_after_memory_was_given_back():
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.exists() or "[never]" in switch.read_text():
        pytest.skip("no large pages here")
    counts = Path("/proc/sys/vm/overcommit_memory").read_text().strip()
    if counts == "2" or not keep_freed_memory():
        pytest.skip("none are asked for")
    said = subprocess.check_output([sys.executable, "-c", HUGE], text=True)
    assert said.split() == ["True", "True"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["method.memory={type: EndToEnd}"],
        ["method.memory={type: MemoryBank}", "data.views.count=1"],
        ["method={type: Rotation}"],
    ],
    ids=["MoCoQueue", "EndToEnd", "MemoryBank", "Rotation"],
)
def test_encoders_compile_in_one_graph_and_train_alike(overrides, tmp_path, monkeypatch):
    # Traced, differentiated and functionalised as for real; only the C++ compiler is left out.
    compiled: list[nn.Module] = []
    real = nn.Module.compile

    def trace(module, **options):
        compiled.append(module)
        assert options.pop("fullgraph")
        real(module, fullgraph=True, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", trace)
    losses = []
    for compile in ("false", "true"):
        folder = tmp_path / compile
        folder.mkdir()
        settings = [
            f"train.compile={compile}",
            "train.precision=fp32",
            "evaluations.knn=null",
            *overrides,
        ]
        settings += ["train.epochs=0.3", "train.log_every=1", "checkpoint.every_epochs=100"]
        cfg = config.load("configs/digits/moco_v2.yaml", settings)
        trainer = experiment.build_trainer(cfg, torch.device("cpu"), folder)
        trainer.fit()
        losses.append(
            [line["loss"] for line in trainer.folder.metrics() if line["kind"] == "train"]
        )
    assert compiled and trainer.method.encoder in compiled
    assert "compilation included" in (folder / "log.txt").read_text()
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and len(losses[0]) == 3


KEPT = """
import torch
from ssl_zoo.system.hardware import PeakMemory, keep_freed_memory

assert keep_freed_memory()
memory = PeakMemory(torch.device("cpu"))
memory.restart()
before = memory.peak()
with memory.excluded():
    torch.ones(200_000_000, dtype=torch.uint8)
print((memory.peak() - before) // 1_000_000)
"""


def test_memory_of_an_evaluation_is_not_trainings_though_it_is_kept():
    if not keep_freed_memory():
        pytest.skip("malloc is not glibc's")
    more = int(subprocess.check_output([sys.executable, "-c", KEPT], text=True))
    assert more < 100


def test_a_batch_smaller_than_the_groups_is_refused():
    backbone = Timm(name="resnet18", options={"layers": [1, 1, 1, 1]}, bn_groups=4)
    with pytest.raises(ValueError, match=r"bn_groups is 4.*only 3 images"):
        backbone(torch.randn(3, 3, 32, 32))


def test_a_resume_keeps_the_precision_and_this_machines_kernels(tmp_path, monkeypatch):
    def make(flags: set[str]):
        monkeypatch.setattr(hardware, "_cpu_flags", lambda: flags)
        settings = [
            "evaluations.knn=null",
            "train.epochs=0.2",
            "optimizer={type: AdamW, lr: 0.001}",
        ]
        cfg = config.load("configs/digits/moco_v2.yaml", settings)
        return experiment.build_trainer(cfg, torch.device("cpu"), tmp_path)

    begun = make({"avx512_bf16"})
    begun.optimizer.param_groups[0]["fused"] = None  # as another machine might have it
    begun.hooks["checkpoints"].save(begun)
    resumed = make(set())
    assert (begun.precision, resumed.precision) == ("bf16", "fp32")
    assert resumed.resume()
    assert (resumed.precision, resumed.precision_reason) == ("bf16", "as the run began")
    assert resumed.optimizer.param_groups[0]["fused"] is True


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 3e-2)])
def test_plain_attention_is_the_fused_one(dtype, tolerance):
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    fused = Timm(name="vit_tiny_patch16_224", options=options)
    plain = copy.deepcopy(fused)
    precision.plain_attention(plain, True)
    assert any(getattr(m, "fused_attn", False) for m in fused.modules())
    assert not any(getattr(m, "fused_attn", False) for m in plain.modules())
    images, results = torch.randn(3, 3, 16, 16), []
    for model in (fused, plain):
        with precision.autocast(torch.device("cpu"), dtype):
            features = model(images).float()
        features.square().sum().backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append((features, grads / grads.abs().max()))
    torch.testing.assert_close(*results, rtol=0, atol=tolerance)
