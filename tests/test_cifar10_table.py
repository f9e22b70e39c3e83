"""lightly's CIFAR-10 table is ready to be run where a GPU is: without CIFAR-10, its arms train."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny  # noqa: F401  (registers TinyNet)
import torch

from ssl_zoo import config, experiment
from ssl_zoo.study.grid import expand

GRID = Path(__file__).resolve().parents[1] / "configs" / "ablation" / "cifar10_200ep.yaml"
ARMS = ("SimCLR", "MoCo", "BYOL", "SwAV", "DCL")


@pytest.fixture(scope="module")
def runs():
    return {run.arm: run for run in expand(GRID).runs if run.seed == 0}


def test_the_arms_are_those_of_the_table(runs):
    assert tuple(runs) == ARMS


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_has_the_settings_of_the_table(runs, arm):
    data, train = runs[arm].config["data"], runs[arm].config["train"]
    assert (data["batch_size"], train["epochs"], data["dataset"]["type"]) == (512, 200, "CIFAR10")
    knn = runs[arm].config["evaluations"]["knn"]
    assert (knn["k"], knn["temperature"], knn["every_epochs"]) == (200, 0.1, 1)
    ops = data["views"]["ops"]
    assert list(ops)[-1] == "normalize" and not any("blur" in name for name in ops)
    assert ops["normalize"]["mean"] == data["clean"]["ops"]["normalize"]["mean"]
    assert ops["crop"]["scale"] == [0.14 if arm == "SwAV" else 0.08, 1.0]


@pytest.mark.parametrize("arm", ARMS)
def test_the_learning_rate_is_in_proportion_to_the_batch(runs, arm):
    """Theirs is 0.06 for 128 images with SGD, 0.001 with Adam; BYOL's loss is four times theirs."""
    train, optimizer = runs[arm].config["train"], runs[arm].config["optimizer"]
    assert train["lr_reference_batch"] == 128
    lr, decay = {"SwAV": (0.001, 1e-6), "BYOL": (0.06 / 4, 4 * 5e-4)}.get(arm, (0.06, 5e-4))
    assert optimizer["lr"] == pytest.approx(lr)
    assert optimizer["weight_decay"] == pytest.approx(decay)


def test_byols_loss_is_four_times_theirs(runs, tmp_path):
    """2 - 2 cos for both directions is 4 + 4 L, with L the mean of -cos over both."""
    loss = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    trainer = small(runs["BYOL"].config, tmp_path)
    method = trainer.method
    batch = next(trainer.data.batches(0, 1, torch.device("cpu")))
    x_1, x_2 = batch.views[:2]
    with torch.no_grad():
        q = [method.predictor(method.encoder(x)) for x in (x_1, x_2)]
        t = [method.target(x) for x in (x_1, x_2)]
        theirs = (loss(q[0], t[1]) + loss(q[1], t[0])) / 2
        assert method(batch)["loss"] == pytest.approx(float(4 + 4 * theirs), rel=1e-4)


def small(data, folder):
    """The run on noise, with a small network."""
    groups = data["backbone"]["bn_groups"]
    overrides = [
        ("data.dataset", {"type": "Synthetic", "num_samples": 64, "size": 32, "channels": 3}),
        ("data.batch_size", 32),
        ("data.workers", 0),
        ("backbone", {"type": "TinyNet", "in_chans": 3, "norm": True, "bn_groups": groups}),
        ("evaluations.knn.k", 5),
        ("train.epochs", 2),
    ]
    text = config.dump(data)
    (folder / "arm.yaml").write_text(text)
    loaded = config.load(folder / "arm.yaml", overrides)
    return experiment.build_trainer(loaded, torch.device("cpu"), folder / "run")


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_trains(runs, arm, tmp_path):
    trainer = small(runs[arm].config, tmp_path)
    trainer.method.train()
    for batch in trainer.data.batches(0, 2, torch.device("cpu")):
        out = trainer.train_step(batch)
        trainer.step += 1
        assert torch.isfinite(out["loss"])
