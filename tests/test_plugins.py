"""Parts of one's own from a file: one of each kind, in workers, a study's arms, and ranks."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_zoo.cli.command_line import main
from ssl_zoo.system import plugins
from ssl_zoo.testing.ranks import on_ranks, start

ROOT = Path(__file__).resolve().parents[1]

PARTS = '''
import torch
from torch import nn

from ssl_zoo.backbones import Backbone
from ssl_zoo.config import (
    BACKBONES, DATASETS, EVALUATIONS, HEADS, LOSSES, MEMORY, METHODS, OBSERVERS, TRANSFORMS
)
from ssl_zoo.core import Observer
from ssl_zoo.data import ImageSet, Transform
from ssl_zoo.evaluation.base import Evaluation, Outcome
from ssl_zoo.heads import Linear
from ssl_zoo.losses import InfoNCE
from ssl_zoo.memory import EndToEnd
from ssl_zoo.methods import Contrastive

__version__ = "1.2"


@DATASETS.register_module()
class MyImages(ImageSet):
    """Stripes, dark or bright."""

    def __init__(self, split):
        self.split, self.num_classes = split, 2
        self.labels = torch.arange(32) % 2

    def fetch(self, index):
        return (100 * self.labels[index] + index)[:, None, None, None].expand(-1, 1, 8, 8).byte()


@TRANSFORMS.register_module()
class MyNoise(Transform):
    """A little more of everything."""

    def apply(self, images, params):
        return images * 1.01


@BACKBONES.register_module()
class MyNet(Backbone):
    """A layer."""

    def __init__(self):
        super().__init__()
        self.num_features, self.layer = 4, nn.Linear(64, 4)

    def forward(self, images):
        return self.layer(images.flatten(1))


@HEADS.register_module()
class MyHead(Linear):
    """A layer more."""


@MEMORY.register_module()
class MyMemory(EndToEnd):
    """As another."""


@LOSSES.register_module()
class MyLoss(InfoNCE):
    """As another."""


@METHODS.register_module()
class MyMethod(Contrastive):
    """As another."""


@OBSERVERS.register_module()
class MyObserver(Observer):
    """Sees one thing."""

    def scalars(self, method, labels):
        return {"seen": 7.0}


@EVALUATIONS.register_module()
class MyEvaluation(Evaluation):
    """Counts."""

    metric = "images"

    def judge(self, train, test, device="cpu"):
        return Outcome({"images": float(len(test.features))}, {})
'''
CONFIG = """
data:
  dataset: {type: MyImages}
  views: {ops: {noise: {type: MyNoise}}}
  clean: {ops: {}}
  batch_size: 16
  workers: 1
backbone: {type: MyNet}
method:
  type: MyMethod
  head: {type: MyHead, out_features: 4}
  memory: {type: MyMemory}
  loss: {type: MyLoss}
optimizer: {type: SGD, lr: 0.1}
train: {epochs: 1, log_every: 1, precision: fp32}
evaluations: {mine: {type: MyEvaluation}}
observers: {mine: {type: MyObserver}}
"""
GRID = """
base: config.yaml
seeds: [0, 1]
arms: {one: {}}
costs: {one: {}}
"""


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    monkeypatch.setattr(plugins, "_files", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(plugins.VARIABLE, "")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_parts.py").write_text(PARTS)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "grid.yaml").write_text(GRID)
    return tmp_path


TRAIN = ("train", "config.yaml", "--out", "out", "--plugin", "my_parts.py", "--device", "cpu")


def command(folder, words):
    """In a process whose registries nobody else has; leaves `code` and `said`."""
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(ROOT)  # for the arms of a study
    with (
        open("said", "w") as said,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        code = main(list(words))
    Path("code").write_text(str(code))


def run(folder, *words):
    """(status, what was said) of a command in a folder."""
    process = start(command, folder, words)
    process.join(300)
    said = (folder / "said").read_text()
    assert process.exitcode == 0, said
    return int((folder / "code").read_text()), said


def check_trained(path):
    result = json.loads((path / "result.json").read_text())
    assert result["evaluations"]["mine"]["metrics"] == {"images": 32.0}
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    assert next(line for line in lines if line["kind"] == "train")["seen"] == 7.0
    recorded = json.loads((path / "environment.json").read_text())["plugins"]
    assert recorded["my_parts"]["version"] == "1.2"
    assert Path(recorded["my_parts"]["path"]).name == "my_parts.py"


def test_one_of_each_kind_trains_with_a_worker_that_is_started_afresh(folder):
    (folder / "run.py").write_text(
        "import multiprocessing, sys\n"
        "from ssl_zoo.cli import main\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    here = {"cwd": folder, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    words = [sys.executable, "run.py", *TRAIN]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, **here)
    assert done.returncode == 0, done.stderr
    check_trained(folder / "out")


def test_one_of_each_kind_trains_in_the_arms_of_a_study(folder):
    words = ("grid.yaml", "--plugin", "my_parts.py", "--out", "study", "--jobs", "2")
    code, said = run(folder, "ablate", *words)
    assert code == 0, said
    check_trained(folder / "study" / "one" / "seed0")
    table = (folder / "study" / "table.md").read_text()
    assert "mine images" in table and "32.00" in table


def on_a_rank(folder):
    os.chdir(folder)
    return main(list(TRAIN))


def test_one_of_each_kind_trains_in_two_ranks(folder):
    assert on_ranks(2, on_a_rank, folder) == [0, 0]
    check_trained(folder / "out")


def test_a_resume_says_that_a_plug_in_has_changed(folder):
    code, said = run(folder, *TRAIN)
    assert code == 0, said
    (folder / "my_parts.py").write_text(PARTS + "# more\n")
    code, said = run(folder, *TRAIN, "train.epochs=2", "--resume")
    assert code == 0 and "plug-in my_parts has changed since" in said


def test_processes_that_are_started_have_them_too(tmp_path):
    """The arms of a study are such; and with a working directory of their own."""
    (tmp_path / "parts_for_others.py").write_text("print('here')")
    plugins.load([tmp_path / "parts_for_others.py"])
    code = "from ssl_zoo.system import plugins; plugins.load()"
    place = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, cwd="/", env=place, text=True) == "here\n"


def test_without_it_the_name_is_not_known(folder, capsys):
    assert main(["train", str(folder / "config.yaml"), "--check"]) == 2
    assert "no dataset of this name" in capsys.readouterr().err


def wrong(path, capsys):
    assert main(["list", "heads", "--plugin", str(path)]) == 2
    return capsys.readouterr().err


def test_what_is_no_plug_in_is_said(tmp_path, capsys):
    assert "none.py: no such file" in wrong(tmp_path / "none.py", capsys)
    (tmp_path / "my-parts.py").write_text("")
    assert "a name that Python can import" in wrong(tmp_path / "my-parts.py", capsys)
    (tmp_path / "json.py").write_text("")
    assert "its name is that of" in wrong(tmp_path / "json.py", capsys)
    (tmp_path / "broken_parts.py").write_text("import nothing_of_the_kind")
    assert "broken_parts.py: ModuleNotFoundError: No module" in wrong(
        tmp_path / "broken_parts.py", capsys
    )


def test_a_change_since_a_run_is_told(tmp_path, monkeypatch):
    file = tmp_path / "parts_that_change.py"
    file.write_text("a = 1")
    plugins.load([file])
    was = plugins.loaded()
    assert plugins.changed(was) == []
    file.write_text("a = 2")
    assert plugins.changed(was) == [f"plug-in parts_that_change has changed since: {file}"]
    monkeypatch.setattr(plugins, "_files", {})
    assert plugins.changed(was) == [f"plug-in parts_that_change is not loaded: --plugin {file}"]
