"""What begins a run ends in it, and what a run never comes to is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssl_zoo import cli, config, experiment
from ssl_zoo.config import ConfigError

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "configs" / "digits" / "moco_v2.yaml"
QUICK = [
    ("backbone", {"type": "TinyNet"}),
    "data.dataset.limit=160",
    "data.batch_size=32",
    "evaluations.knn=null",
    "train.epochs=2",
]
WARM = "schedules.optimizer.lr={type: Cosine, warmup_epochs: 10}"


def parse(path: Path, *overrides, trained: bool = False):
    return experiment.parse(config.load(path, overrides), trained)


def build(folder: Path, *overrides):
    cfg = config.load(DIGITS, [*QUICK, *overrides])
    return experiment.build_trainer(cfg, torch.device("cpu"), folder)


def test_a_recipe_that_is_cut_short_says_which_ramp_would_not_end():
    mae = ROOT / "configs" / "imagenet" / "mae.yaml"
    with pytest.raises(ConfigError, match="longer than the run") as caught:
        parse(mae, "train.epochs=5")
    key = "schedules.optimizer.lr.warmup_epochs"
    assert caught.value.key == key and caught.value.found == "40 epochs in a run of 5 epochs"
    assert caught.value.expected == f"{key}=5 or less, or train.epochs=40 or more"
    assert caught.value.where.endswith("imagenet_vit.yaml:7")
    parse(mae, "train.epochs=5", f"{key}=0.5")
    parse(mae, "train.epochs=40")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        (WARM, "schedules.optimizer.lr.warmup_epochs"),
        (
            "schedules={method.loss.temperature: {type: Linear, final: 0.1, over_epochs: 3}}",
            "schedules.method.loss.temperature.over_epochs",
        ),
    ],
)
def test_each_ramp_in_epochs_is_looked_at(override, key):
    with pytest.raises(ConfigError, match="longer than the run") as caught:
        parse(DIGITS, override, "train.epochs=2")
    assert caught.value.key == key
    parse(DIGITS, override, "train.epochs=10")


HEAD = {"type": "DINOHead", "out_features": 8, "hidden_features": 8, "bottleneck_features": 4}


@pytest.mark.parametrize(
    ("override", "key"),
    [
        (("method", {"type": "DINO", "head": HEAD, "frozen_steps": 11}), "method.frozen_steps"),
        (
            ("method.memory", {"type": "MoCHi", "size": 64, "hardest": 8, "warmup_steps": 11}),
            "method.memory.warmup_steps",
        ),
    ],
    ids=["dino", "mochi"],
)
def test_a_ramp_in_steps_is_looked_at_once_data_are_read(override, key, tmp_path):
    parse(DIGITS, *QUICK, override)
    with pytest.raises(ConfigError, match="longer than the run") as caught:
        build(tmp_path, override)
    assert caught.value.key == key
    assert caught.value.found == "11 steps in a run of 2 epochs and 10 steps"
    assert caught.value.expected == f"{key}=10 or less, or train.epochs=3 or more"
    build(tmp_path, override, "train.epochs=3")


def test_a_run_that_was_trained_is_not_refused_for_its_length():
    parse(DIGITS, WARM, "train.epochs=2", trained=True)
    old = config.load(DIGITS, [WARM, "train.epochs=2"]).data
    new = config.load(DIGITS, [WARM, "train.epochs=10"]).data
    assert experiment.changes(old, new) == ["train.epochs: 2.0 -> 10.0"]
    assert "train.epochs 2 -> 10" in experiment.longer(old, new)


def test_what_a_run_never_comes_to_is_said_at_its_start(tmp_path, capsys):
    late = [
        "schedules.optimizer.lr={type: Step, milestones: [1, 20, 30]}",
        "evaluations={knn: null, every: {type: KNN, k: 5, every_epochs: 7}}",
        "checkpoint.every_epochs=1",
        "backbone={type: Timm, name: resnet18, bn_groups: 1}",
        "backbone.options={layers: [1, 1, 1, 1], channels: [4, 4, 4, 4]}",
    ]
    words = ["train", str(DIGITS), *QUICK[1:], *late, "--device", "cpu", "--no-baselines"]
    assert cli.main([*words, "--out", str(tmp_path)]) == 0
    said = (tmp_path / "log.txt").read_text()
    keys = "schedules.optimizer.lr.milestones 20, 30; evaluations.every.every_epochs 7"
    assert f"the run ends after 2 epochs, 10 steps, before {keys}" in said
    assert cli.main([*words[:-1], "train.epochs=30", "--check"]) == 0


def test_nothing_is_said_of_what_is_reached():
    assert experiment.out_of_reach(parse(DIGITS, "train.epochs=10"), 100) == ""
