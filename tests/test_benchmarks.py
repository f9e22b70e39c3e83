"""The benchmarks run, at toy sizes. What they say there means nothing and is not looked at."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# FAIR's interface, with none of its code: enough for the benchmark to run against.
BUILDER = """
import torch
from torch import nn


class MoCo(nn.Module):
    def __init__(self, base_encoder, dim, K, m, T, mlp):
        super().__init__()
        self.net, self.queue = base_encoder(num_classes=dim), torch.randn(dim, K)

    def forward(self, im_q, im_k):
        q = self.net(im_q)
        return q.float() @ self.queue, torch.zeros(len(q), dtype=torch.long).cuda()
"""


def run(root: Path, name: str, *words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, root / "benchmarks" / name, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


ROUND = '{"images": 8, "seconds": 1.0, "steps": 2, "peak_gb": 0.1}'
ENDS = {
    "dies": "kill -9 $$",
    "leaves": "exit 0",
    "stays": f"while read line; do echo '{ROUND}'; done",
}


def test_a_contender_that_dies_while_it_waits_is_left_out_and_the_others_go_on(root, tmp_path):
    sys.path.insert(0, str(root / "benchmarks"))
    import peers
    from peer_workers import Task

    tasks, pythons = [], {}
    for name, then in ENDS.items():
        script = tmp_path / name / "python"
        script.parent.mkdir()
        script.write_text(f"#!/bin/sh\necho '{ROUND}'\n{then}\n")
        script.chmod(0o755)
        pythons[name] = str(script)
        tasks.append(
            Task(name, "fp32", "", {}, False, 1, 8, "", 8, 16, 0, folder=str(script.parent))
        )
    notes: list[str] = []
    said = peers.measure(tasks, pythons, 2, 0.0, notes.append)
    assert {name: len(rounds) for (name, _), rounds in said.items()} == {"stays": 2}
    assert [note.split(" ")[0] for note in notes] == ["dies,", "leaves,"]
    assert "killed; is memory enough" in notes[0] and "ended without a word" in notes[1]


def test_scaling_measures_the_queue_batches_losses_and_processes(root, tmp_path):
    done = run(
        root, "scaling.py", "--toy", "--out", tmp_path / "t.md", "--figure", tmp_path / "f.png"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "t.md").read_text()
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert headings == ["The queue", "The batch", "Other losses", "Processes"]
    for row in ("| 64 | ", "| 256 | ", "| 8 | ", "| 16 | ", "| 2 | "):
        assert row in text
    with Image.open(tmp_path / "f.png") as figure:
        assert min(figure.size) > 500


def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu(root, tmp_path):
    (tmp_path / "moco").mkdir()
    (tmp_path / "moco" / "builder.py").write_text(BUILDER)
    folder = tmp_path / "images" / "train" / "all"
    folder.mkdir(parents=True)
    for i in range(16):
        Image.fromarray(np.full((50, 40, 3), 10 * i, dtype=np.uint8)).save(folder / f"{i}.jpg")
    words = ["--device", "cpu", "--tiny", "--rounds", 1, "--fair", tmp_path]
    done = run(root, "gpu.py", *words, "--images", folder.parents[1], "--out", tmp_path / "t.md")
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "t.md").read_text()
    assert "did not run" not in text and "broke" not in text, done.stderr[-2000:]
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert headings == ["Peak", "Step", "Data", "Mechanisms", "Queue", "Knn"]
    rows = ("ssl_zoo", "plain PyTorch", "FAIR, as it ships", "images (ImageFolder)", "end-to-end")
    for row in (*rows, "memory bank", "bf16 convolution", "extract, bf16", "vote"):
        assert f"| {row}" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_benchmark_says_in_one_line_that_there_is_no_gpu(root):
    done = run(root, "gpu.py")
    assert done.returncode == 1
    assert done.stderr.startswith("gpu.py: torch sees no CUDA device")
    assert len(done.stderr.strip().splitlines()) == 1


def test_flops_are_those_of_the_literature(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import gpu

    # ResNet-50 at 224 x 224: 4.09 billion multiplications and additions, its classifier left out.
    forward = sum(of for *_, of in gpu.layers(gpu.Size()))
    assert forward == pytest.approx(2 * 4.09e9, rel=0.01)
    stem = 2 * 112 * 112 * 64 * 147
    assert gpu.flops(gpu.Size(), "moco") == pytest.approx(4 * forward - stem)
    assert gpu.flops(gpu.Size(), "bank") == pytest.approx(3 * forward - stem)


def test_verdicts_on_simulated_studies_and_on_real_ones_of_nothing_that_go_on(root, tmp_path):
    out = tmp_path / "out.json"
    done = run(root, "verdicts.py", "--studies", 20, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [len(found[part]) for part in ("nothing", "something", "pilots")] == [8, 18, 9]
    lines = [json.dumps({"seed": seed, "top1": 40.0 + seed}) + "\n" for seed in range(1, 12)]
    (tmp_path / "runs.jsonl").write_text("".join(lines) + '{"seed": 0, "to')  # killed here
    done = run(root, "verdicts.py", "--aa", tmp_path, "--studies", 1)
    assert done.returncode == 0 and "| pairs | 6 |" in done.stdout, done.stderr
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 12
