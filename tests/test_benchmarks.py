"""The benchmarks of speed run, at toy sizes. What they measure there means nothing."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import common
import evaluation
import floor
import gpu
import parts
import peers
import scaling
import verdicts
from common import ROOT, Table
from peer_workers import Task

from ssl_zoo.system.hardware import kept_threads

data = importlib.import_module("data")  # ruff would sort it by whether there is a folder data/

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


class Here:
    """`parts.Held` without a process of its own."""

    def __init__(self, build, *arguments, world=None):
        self.measure = build(*arguments)

    def __call__(self, argument):
        return self.measure(argument)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _threads():
    """Benchmarks set them; those that read images have one, whatever this process has."""
    with kept_threads():
        yield


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(scaling, "Held", Here)
    monkeypatch.setattr(gpu, "Held", Here)


def result(module, out: Path, *words: object) -> dict[str, Table]:
    """The tables of a result file that was just written."""
    module.main([*map(str, words), "--out", str(out)])
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert list(kept) == ["command", "commit", "date", "machine", "threads", "tables"]
    script = f"python benchmarks/{module.__name__}.py"
    assert kept["command"] == " ".join([script, *map(str, words)])  # without --out
    for page in (ROOT / "docs").glob("*.md"):
        asked = f"results: speed_{module.__name__}.json (?:measured|cell) (.*?)(?: / .*)? -->"
        for name in re.findall(asked, page.read_text(encoding="utf-8")):
            assert name in kept["tables"], page
    return {name: Table(**table) for name, table in kept["tables"].items()}


def first_cells(table: Table) -> list:
    return [row[0] for row in table.rows]


def test_a_table_says_the_same_before_and_after_it_is_kept():
    columns = {"what": "", "K": "", "ms": ".1f", "of the step": ".1%"}
    rows = [["queue", 65536, 51.23456, 0.042], ["bank", 1024, None, None]]
    table = Table("A title", columns, rows, "About it.", "3 rounds")
    kept = json.loads(json.dumps(table.kept()))
    assert kept["rows"][0] == ["queue", 65536, 51.23, 0.042]
    assert str(Table(**kept)) == str(table)
    lines = str(table).splitlines()
    assert (
        lines[0] == "| what | K | ms | of the step |"
        and lines[2] == "| queue | 65536 | 51.2 | 4.2% |"
    )
    assert lines[3] == "| bank | 1024 |  |  |" and lines[-1] == "About it. Medians of 3 rounds."


def test_results_and_pages_make_no_commit_dirty_and_code_does(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    for file in ("results/a.json", "docs/a.md", "README.md", "code.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("before")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = common.commit()
    assert len(clean) >= 7
    for file in ("results/a.json", "docs/a.md", "README.md"):
        (tmp_path / file).write_text("after")
    assert common.commit() == clean
    (tmp_path / "code.py").write_text("after")
    assert common.commit() == f"{clean}-dirty"


# Peers.

ROUND = '{"images": 8, "seconds": 1.0, "steps": 2, "peak_gb": 0.1}'
ENDS = {
    "dies": "kill -9 $$",
    "leaves": "exit 0",
    "stays": f"while read line; do echo '{ROUND}'; done",
}


def test_a_contender_that_dies_while_it_waits_is_left_out_and_the_others_go_on(tmp_path):
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


SPEEDS = {  # images/s of two rounds
    ("ssl_zoo", "fp32"): (40, 44),
    ("ssl_zoo", "bf16"): (80, 90),
    ("plain", "fp32"): (20, 20),
    ("plain", "bf16"): (30, 20),
    ("lightly", "fp32"): (10, 30),
    ("lightly", "bf16"): (40, 40),
}


class Said:
    """`peers.Worker` with its rounds told beforehand; the first is the one that is thrown away."""

    def __init__(self, task: Task, python: str):
        self.speeds = iter((1, *SPEEDS[task.contender, task.precision]))

    def round(self, seconds: float) -> dict:
        answer = {"images": next(self.speeds), "seconds": 1.0, "steps": 1}
        return answer | {"peak_gb": 0.5, "others": 0.01}

    def close(self) -> None:
        pass


def test_peers_are_compared_round_by_round(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "Worker", Said)
    monkeypatch.setattr(peers, "prepare", lambda size, folder: folder)
    tables = result(peers, tmp_path / "out.json", "--sizes", "small", "--rounds", 2)
    title = peers.SIZES["small"]["title"]
    assert tables["summary"].rows == [[title, 85.0, 20.0, 40.0, 4.25, 2.125]]
    rows = tables["contenders"].rows
    assert [row[1] for row in rows[:3]] == ["ssl_zoo", "plain", "lightly"]
    assert [row[1] for row in rows[3:]] == ["ssl_zoo", "lightly", "plain"]
    assert [row[2] for row in rows] == ["fp32"] * 3 + ["bf16"] * 3
    assert rows[0] == [title, "ssl_zoo", "fp32", 42.0, 40, 44, 2.1, 1.05, 0.5]
    about = tables["contenders"].about
    assert "Not installed and not measured: fair, stable_pretraining, solo_learn." in about
    assert "data workers of the peers 0; other processes had at most 1%" in about


# The others.


def test_floor_shows_phases_layers_whole_steps_and_the_loops_overhead(tmp_path, monkeypatch):
    monkeypatch.setattr(floor, "layer_seconds", lambda layer, *_: (1e-3, 1e-3, 1e-3))
    words = ["--toy", "--net", "resnet18", "--precision", "bf16"]
    tables = result(floor, tmp_path / "out.json", *words)
    phases, layers, steps, overhead = tables.values()
    assert list(tables) == ["resnet18 bf16", "resnet18 bf16 layers", "steps", "overhead"]
    assert first_cells(phases) == [*floor.PHASES, "step"] and len(layers.rows) > 10
    (whole,) = steps.rows
    assert whole[0] == phases.title and whole[2] == phases.rows[-1][1]  # ms
    assert len(overhead.rows) == 1


def test_scaling_measures_the_queue_batches_losses_and_processes(tmp_path, here):
    tables = result(scaling, tmp_path / "out.json", "--toy")
    assert first_cells(tables["queue"]) == [64, 256]
    assert first_cells(tables["batch"]) == [4, 8]
    assert first_cells(tables["losses"]) == ["InfoNCE", "NCE", "Margin"]
    assert first_cells(tables["end-to-end"]) == [8, 16]
    assert first_cells(tables["processes"]) == [1, 2]


def test_what_processes_of_their_own_measure_and_that_their_errors_come_back():
    backbone = {"name": "resnet18", "in_chans": 1, "options": scaling.TOY.options}
    held = parts.Held(scaling.rank_measure, backbone, 8, 8, 64, world=2)
    try:
        times = held(1)
        assert times["step"] > 0 and times["gradients"] > 0
        with pytest.raises(RuntimeError, match="TypeError"):
            held("one")
    finally:
        held.close()


def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu(tmp_path, here, monkeypatch):
    (tmp_path / "moco").mkdir()
    (tmp_path / "moco" / "builder.py").write_text(BUILDER)
    folder = tmp_path / "images" / "train" / "all"
    folder.mkdir(parents=True)
    for i in range(16):
        Image.fromarray(np.full((50, 40, 3), 10 * i, dtype=np.uint8)).save(folder / f"{i}.jpg")
    # What FAIR's loop does to its own process, undone here.
    monkeypatch.setattr(torch.Tensor, "cuda", torch.Tensor.cuda)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda module: module)
    words = ["--device", "cpu", "--tiny", "--rounds", 1, "--fair", tmp_path]
    tables = result(gpu, tmp_path / "out.json", *words, "--images", folder.parents[1])
    assert list(tables) == ["peak", "step", "data", "mechanisms", "queue", "knn"]
    assert not any("did not run" in table.about for table in tables.values())
    assert first_cells(tables["step"]) == [
        "ssl_zoo",
        "ssl_zoo, bn_groups 8",
        "ssl_zoo, cudnn.benchmark",
        "plain PyTorch",
        "FAIR, as it ships (fp32)",
        "FAIR, bf16 and channels last",
    ]
    assert "images (ImageFolder)" in first_cells(tables["data"])
    assert len(tables["mechanisms"].rows) == 3 and len(tables["knn"].rows) == 3
    assert first_cells(tables["peak"]) == ["bf16 matmul", "bf16 convolution"]
    assert first_cells(tables["queue"]) == [16, 64]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_benchmark_says_in_one_line_that_there_is_no_gpu():
    with pytest.raises(SystemExit, match=r"^gpu\.py: torch sees no CUDA device") as caught:
        gpu.main([])
    assert "\n" not in str(caught.value)


def test_flops_are_those_of_the_literature():
    # ResNet-50 at 224 x 224: 4.09 billion multiplications and additions, its classifier left out.
    forward = sum(of for *_, of in gpu.layers(gpu.Size()))
    assert forward == pytest.approx(2 * 4.09e9, rel=0.01)
    stem = 2 * 112 * 112 * 64 * 147
    assert gpu.flops(gpu.Size(), "moco") == pytest.approx(4 * forward - stem)
    assert gpu.flops(gpu.Size(), "bank") == pytest.approx(3 * forward - stem)


def test_what_data_cost(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "COUNT", 2)
    monkeypatch.setattr(data, "SIZES", ((1000, 800),))
    monkeypatch.setattr(data, "IMAGES", ((28, 1, 2), (32, 3, 2)))
    monkeypatch.setattr(data, "WORKERS", (0,))
    tables = result(data, tmp_path / "out.json", "--rounds", 1)
    assert [row[1] for row in tables["decode"].rows] == list(data.DECODERS)
    assert first_cells(tables["loader"]) == ["JPEG files", "packed"]
    assert first_cells(tables["views"]) == ["28 x 28 x 1", "32 x 32 x 3"]
    random, clean = tables["scaled"].rows
    assert 0 < clean[1] < random[1] < 10  # of 255; in an evaluation no box moves


def test_what_evaluation_costs(tmp_path, monkeypatch):
    for name, value in (("BANK", 40), ("QUERIES", 10), ("WIDTH", 8), ("K", 5)):
        monkeypatch.setattr(evaluation, name, value)
    small = {"in_chans": 1, "options": scaling.TOY.options}
    monkeypatch.setattr(evaluation, "NETWORKS", {"small": (small, (1, 8, 8), 4)})
    monkeypatch.setattr(evaluation, "PROBES", evaluation.PROBES[:2])
    tables = result(evaluation, tmp_path / "out.json", "--rounds", 1)
    assert "torch" in tables["search"].rows[-1][0]
    assert [row[1].split(", ")[1] for row in tables["extraction"].rows] == ["fp32", "fp32", "bf16"]
    assert first_cells(tables["probes"]) == ["2 probes in one pass", "2 passes of one probe"]


def test_verdicts_on_simulated_studies(tmp_path, capsys):
    verdicts.simulate(tmp_path / "out.json", 20)
    found = json.loads((tmp_path / "out.json").read_text())
    assert [len(found[part]) for part in ("nothing", "something", "pilots")] == [8, 18, 9]


def test_real_studies_of_nothing_go_on(tmp_path, capsys):
    lines = [json.dumps({"seed": seed, "top1": 40.0 + seed}) + "\n" for seed in range(1, 12)]
    (tmp_path / "runs.jsonl").write_text("".join(lines) + '{"seed": 0, "to')  # killed here
    verdicts.aa(tmp_path, tmp_path / "out.json", 1)
    assert "| pairs | 6 |" in capsys.readouterr().out
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 12
    assert not (tmp_path / "out.json").exists()  # one study is not the benchmark
