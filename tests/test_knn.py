"""The kNN vote against its equation, and the monitor that must not be noticed by training."""

import json
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from ranks import on_ranks
from torch import nn

from ssl_zoo.config import ConfigError, bind
from ssl_zoo.evaluation import features, knn
from ssl_zoo.evaluation.monitor import KNNMonitor
from ssl_zoo.system import distributed


def clusters(n, classes=10, width=16, noise=1.5, seed=0):
    """Features [n, width] scattered about one centre a class, labels [n]."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(classes, (n,), generator=g)
    return centres[labels] + noise * torch.randn(n, width, generator=g), labels


def plain_vote(bank, bank_labels, queries, query_labels, k, temperature):
    """InstDisc's equation, one query and one neighbour at a time."""
    top1 = top5 = 0
    for x, y in zip(queries, query_labels.tolist(), strict=True):
        similarity = (bank @ x) / (bank.norm(dim=1) * x.norm())
        score = {}
        for j in similarity.argsort(descending=True)[:k].tolist():
            c = int(bank_labels[j])
            score[c] = score.get(c, 0.0) + math.exp(float(similarity[j]) / temperature)
        ranking = sorted(score, key=score.get, reverse=True)
        top1 += y == ranking[0]
        top5 += y in ranking[:5]
    return 100 * top1 / len(queries), 100 * top5 / len(queries)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (200, 0.07), (200, 1.0)])
def test_vote_equals_the_equation(k, temperature):
    bank, queries = clusters(400), clusters(150, seed=1)
    expected = plain_vote(*bank, *queries, k, temperature)
    found = knn.vote(*bank, *queries, k=k, temperature=temperature)
    assert (found["top1"], found["top5"]) == pytest.approx(expected, abs=1e-4)
    assert 20 < found["top1"] < 99  # a task on which being wrong would show


def test_vote_over_several_chunks_of_queries(monkeypatch):
    bank, queries = clusters(300), clusters(100, seed=1)
    whole = knn.vote(*bank, *queries, k=20)
    monkeypatch.setattr(knn, "QUERIES_AT_ONCE", 32)
    assert knn.vote(*bank, *queries, k=20) == whole


def test_a_small_temperature_does_not_overflow():
    bank, queries = clusters(300), clusters(100, seed=1)
    nearest = knn.vote(*bank, *queries, k=1)["top1"]
    assert knn.vote(*bank, *queries, k=20, temperature=1e-4)["top1"] == nearest


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_indices_come_close_to_the_exact_one(index):
    bank, queries = clusters(4000), clusters(500, seed=1)
    exact, close = (knn.vote(*bank, *queries, k=50, index=i) for i in ("flat", index))
    assert close["top1"] == pytest.approx(exact["top1"], abs=2.0)
    assert close["protocol"]["index"].startswith(index + " (")


def test_protocol_names_what_the_number_depends_on():
    protocol = knn.vote(*clusters(300), *clusters(100, seed=1), k=20)["protocol"]
    assert protocol == {
        "k": 20,
        "temperature": 0.07,
        "index": "flat",
        "bank": "300 images",
        "queries": "100 images",
        "normalized": True,
        "classes": 10,
    }


def test_fewer_than_five_classes_have_a_top5_of_100():
    found = knn.vote(*clusters(200, classes=3), *clusters(50, classes=3, seed=1), k=150)
    assert found["top5"] == 100.0 and found["protocol"]["classes"] == 3


def test_a_class_without_a_vote_is_not_among_the_top_five():
    bank = torch.eye(4)[[0, 0, 1, 2, 3]]
    labels = torch.tensor([0, 0, 1, 2, 3])
    found = knn.vote(bank, labels, torch.eye(4)[[0]], torch.tensor([3]), k=2)
    assert found["top5"] == 0.0


def test_k_beyond_the_bank_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"k = 200 .* bank of 100 images"):
        knn.vote(*clusters(100), *clusters(10), k=200)


def test_unknown_labels_are_an_error_that_says_so():
    bank, labels = clusters(50)
    labels[:3] = -1
    with pytest.raises(ValueError, match="3 of the 50 images of the bank"):
        knn.vote(bank, labels, *clusters(10), k=5)


def test_features_that_are_not_finite_are_an_error():
    bank, labels = clusters(50)
    bank[4, 2] = float("nan")
    with pytest.raises(ValueError, match="bank are not all finite"):
        knn.vote(bank, labels, *clusters(10), k=5)


def test_pixels_are_raw_up_to_32_and_averaged_beyond():
    small, large = torch.randn(2, 1, 28, 28), torch.randn(2, 3, 64, 64)
    assert torch.equal(knn.Pixels()(small), small.flatten(1))
    averaged = large.unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean((3, 5))
    torch.testing.assert_close(knn.Pixels()(large), averaged.flatten(1))


class Rows:
    """An image set of features posing as images, and how often it was asked for some."""

    def __init__(self, features, labels):
        self.images, self.labels, self.fetched = features.view(-1, 1, 8, 8), labels, 0

    def __len__(self):
        return len(self.labels)

    def fetch(self, index):
        self.fetched += 1
        return self.images[index]


class Images:
    """Data's interface over noise around one picture a class; limits take the first images."""

    steps_per_epoch, num_classes = 4, 5

    def __init__(self):
        self.splits = {"train": clusters(300, 5, 64), "test": clusters(40, 5, 64, seed=1)}
        self.sets = {name: Rows(*rows) for name, rows in self.splits.items()}

    def split(self, name):
        return self.sets[name]

    def clean_batches(self, split, device, batch_size=50, limit=None, share=(0, 1)):
        images = self.split(split)
        batches = torch.arange(len(images))[:limit].split(batch_size)
        for i in torch.arange(len(batches)).tensor_split(share[1])[share[0]]:
            index = batches[i]
            yield images.fetch(index), images.labels[index]


class Noisy(nn.Module):
    """BatchNorm and dropout in training; draws random numbers in evaluation as well."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Dropout()
        )
        self.layers[1].eval()  # a part that is meant to stay in evaluation mode

    def forward(self, images):
        torch.rand(3)
        return self.layers(images)


def trainer_for(folder, step=0, total_steps=8):
    """What a hook sees of a trainer."""
    torch.manual_seed(0)
    trainer = SimpleNamespace(
        method=SimpleNamespace(encoder=SimpleNamespace(backbone=Noisy())),
        data=Images(),
        step=step,
        total_steps=total_steps,
        device=torch.device("cpu"),
        folder=folder,
        status={},
        paused=nullcontext,
        check_finite=lambda: None,
        steps_in=lambda epochs: max(1, round(epochs * Images.steps_per_epoch)),
    )

    def record(kind, **scalars):
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"kind": kind, "step": trainer.step, **scalars}) + "\n")

    def recorded():
        path = folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    trainer.record, trainer.recorded = record, recorded
    return trainer


def forget(trainer):
    """Weights that depend on the step alone and see fewer pixels at every step."""
    weight = trainer.method.encoder.backbone.layers[1].weight
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=g))
        weight[:, 64 >> trainer.step :] = 0.0


def run(trainer, hook, stop=None, learn=lambda trainer: None):
    hook.before_train(trainer)
    while trainer.step < (stop or trainer.total_steps):
        trainer.step += 1
        learn(trainer)
        hook.after_step(trainer, {})
    if stop is None:
        hook.after_train(trainer)


def written(trainer, kind):
    return [line for line in trainer.recorded() if line["kind"] == kind]


def test_features_come_in_order_and_in_evaluation_mode():
    backbone, data = Noisy(), Images()
    found, labels = features.extract(backbone, data.clean_batches("train", "cpu"), "cpu")
    images, expected_labels = data.splits["train"]
    backbone.eval()
    torch.testing.assert_close(found, backbone(images).detach())
    assert torch.equal(labels, expected_labels) and found.dtype == torch.float32


def test_bf16_features_are_close_and_returned_in_fp32():
    backbone, data = Noisy(), Images()
    exact, coarse = (
        features.extract(backbone, data.clean_batches("test", "cpu"), "cpu", precision)[0]
        for precision in ("fp32", "bf16")
    )
    assert coarse.dtype == torch.float32 and not torch.equal(coarse, exact)
    torch.testing.assert_close(coarse, exact, atol=0.1, rtol=0.05)


def test_feature_maps_are_refused():
    with pytest.raises(ValueError, match=r"\[n, F\]; found \[50, 1, 8, 8\]"):
        features.extract(nn.Identity(), Images().clean_batches("train", "cpu"), "cpu")


def test_trap_8_monitor_leaves_training_untouched(tmp_path):
    trainer = trainer_for(tmp_path)
    backbone = trainer.method.encoder.backbone
    random_state = torch.get_rng_state()
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = [m.training for m in backbone.modules()]
    run(trainer, KNNMonitor(k=20))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert [m.training for m in backbone.modules()] == modes
    assert True in modes and False in modes
    assert torch.is_grad_enabled()


def test_module_modes_come_back_after_an_error():
    backbone = Noisy()
    modes = [m.training for m in backbone.modules()]
    with pytest.raises(RuntimeError), features.frozen(backbone):
        raise RuntimeError
    assert [m.training for m in backbone.modules()] == modes


@pytest.mark.parametrize(
    "every_epochs, steps", [(1.0, [4, 8, 10]), (0.5, [2, 4, 6, 8, 10]), (2.5, [10]), (None, [10])]
)
def test_monitor_evaluates_every_so_many_epochs_and_at_the_end(tmp_path, every_epochs, steps):
    trainer = trainer_for(tmp_path, total_steps=10)
    hook = KNNMonitor(every_epochs=every_epochs, k=20, baselines=False)
    run(trainer, hook)
    lines = written(trainer, "knn")
    assert [line["step"] for line in lines] == steps
    assert trainer.status["knn"] == hook.latest["top1"] == lines[-1]["top1"]
    assert lines[0]["protocol"]["bank"] == "train split, clean views, 300 images"
    assert lines[0]["protocol"]["queries"] == "test split, clean views, 40 images"


def test_baselines_are_measured_once_before_the_first_step(tmp_path):
    trainer = trainer_for(tmp_path)
    run(trainer, KNNMonitor(k=20))
    baselines = written(trainer, "baseline")
    assert [(line["name"], line["step"]) for line in baselines] == [("pixels", 0), ("random", 0)]
    (bank, y), (queries, z) = trainer.data.splits["train"], trainer.data.splits["test"]
    assert baselines[0]["top1"] == knn.vote(bank, y, queries, z, k=20)["top1"]


def test_a_resumed_monitor_repeats_nothing_and_knows_its_best(tmp_path):
    whole = KNNMonitor(every_epochs=0.5, k=20)
    (tmp_path / "whole").mkdir()
    run(trainer_for(tmp_path / "whole"), whole, learn=forget)
    run(trainer_for(tmp_path), KNNMonitor(every_epochs=0.5, k=20), stop=4, learn=forget)
    resumed = KNNMonitor(every_epochs=0.5, k=20)
    trainer = trainer_for(tmp_path, step=4)
    run(trainer, resumed, learn=forget)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert (resumed.latest, resumed.best) == (whole.latest, whole.best)
    assert whole.best["top1"] == max(line["top1"] for line in written(trainer, "knn"))
    assert whole.best["top1"] > whole.latest["top1"]


def test_a_monitor_resumed_after_the_last_step_does_not_evaluate_again(tmp_path):
    first = KNNMonitor(k=20)
    run(trainer_for(tmp_path), first)
    text = (tmp_path / "metrics.jsonl").read_text()
    again = KNNMonitor(k=20)
    run(trainer_for(tmp_path, step=8), again)
    assert (tmp_path / "metrics.jsonl").read_text() == text
    assert again.latest == first.latest


def test_limits_are_in_the_protocol(tmp_path):
    hook = KNNMonitor(k=20, bank_limit=60, query_limit=30, every_epochs=None, baselines=False)
    run(trainer_for(tmp_path), hook)
    protocol = hook.latest["protocol"]
    assert "60 images" in protocol["bank"] and "30 images" in protocol["queries"]


def monitored(folder):
    """A monitor's latest result, and how many batches this rank fetched of the training split."""
    trainer, hook = trainer_for(folder), KNNMonitor(k=20, baselines=False)
    if distributed.rank():  # as in training, running statistics are each rank's own
        trainer.method.encoder.backbone.layers[2].running_mean += 1.0
    run(trainer, hook)
    return hook.latest, trainer.data.split("train").fetched


def test_two_ranks_share_the_features_and_both_know_the_result(tmp_path):
    (alone, fetched) = monitored(tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").unlink()
    (first, some), (second, others) = on_ranks(2, monitored, tmp_path)
    assert first == second == alone
    assert (tmp_path / "metrics.jsonl").read_text() == text  # one rank wrote
    assert (fetched, some, others) == (4, 2, 2)  # 2 batches of 256, at 2 evaluations


@pytest.mark.parametrize(
    "block, message",
    [
        ({"k": 0}, "knn.k: too small"),
        ({"temperature": 0.0}, "temperature"),
        ({"every_epochs": 0}, "every_epochs"),
        ({"bank_limit": 100}, "k = 200 .* bank of 100"),
        ({"query_limit": 0}, "query_limit"),
        ({"index": "lsh"}, "one of flat, ivf, hnsw"),
        ({"topk": 5}, "unknown key"),
    ],
)
def test_bad_settings_are_config_errors(block, message):
    with pytest.raises(ConfigError, match=message):
        bind(KNNMonitor, block, "knn")
