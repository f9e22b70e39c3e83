"""The kNN vote against its equation, and the monitor that must not be noticed by training."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ssl_zoo.config import EVALUATIONS, ConfigError, Part, bind
from ssl_zoo.engine.stop import StopSignal
from ssl_zoo.evaluation import features, knn
from ssl_zoo.evaluation.features import Labeled
from ssl_zoo.evaluation.knn import KNN
from ssl_zoo.evaluation.monitor import Monitor, Monitored
from ssl_zoo.ops.modes import frozen
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed
from ssl_zoo.testing.ranks import on_ranks


def clusters(n, classes=10, width=16, noise=1.5, seed=0):
    """Features [n, width] scattered about one center a class, labels [n]."""
    g = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(classes, (n,), generator=g)
    return Labeled(centers[labels] + noise * torch.randn(n, width, generator=g), labels)


def vote(bank, queries, **settings):
    return KNN(**settings).judge(bank, queries)


def plain_vote(bank, queries, k, temperature):
    """InstDisc's equation, one query and one neighbor at a time."""
    (bank, bank_labels, _), top1, top5 = bank, 0, 0
    for x, y in zip(queries.features, queries.labels.tolist(), strict=True):
        similarity = (bank @ x) / (bank.norm(dim=1) * x.norm())
        score = {}
        for j in similarity.argsort(descending=True)[:k].tolist():
            c = int(bank_labels[j])
            score[c] = score.get(c, 0.0) + math.exp(float(similarity[j]) / temperature)
        ranking = sorted(score, key=score.get, reverse=True)
        top1 += y == ranking[0]
        top5 += y in ranking[:5]
    return 100 * top1 / len(queries.labels), 100 * top5 / len(queries.labels)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (200, 0.07), (200, 1.0)])
def test_vote_equals_the_equation(k, temperature):
    bank, queries = clusters(400), clusters(150, seed=1)
    expected = plain_vote(bank, queries, k, temperature)
    found = vote(bank, queries, k=k, temperature=temperature).metrics
    assert (found["top1"], found["top5"]) == pytest.approx(expected, abs=1e-4)
    assert 20 < found["top1"] < 99  # a task on which being wrong would show


@pytest.mark.parametrize("k", [1, 20])
def test_the_nearest_neighbor_alone_is_what_one_neighbor_votes(k):
    bank, queries = clusters(400), clusters(150, seed=1)
    expected, _ = plain_vote(bank, queries, 1, 0.07)
    assert vote(bank, queries, k=k).metrics["nearest"] == pytest.approx(expected, abs=1e-4)


def test_vote_over_several_chunks_of_queries(monkeypatch):
    bank, queries = clusters(300), clusters(100, seed=1)
    whole = vote(bank, queries, k=20)
    monkeypatch.setattr(knn, "QUERIES_AT_ONCE", 32)
    chunks = vote(bank, queries, k=20)
    assert chunks._replace(rows=None) == whole._replace(rows=None)
    assert all(map(torch.equal, chunks.rows, whole.rows))


def test_rows_are_the_queries_and_agree_with_top1():
    bank, queries = clusters(300), clusters(100, seed=1)
    index = torch.arange(100) * 3
    found = vote(bank, queries._replace(index=index), k=20)
    rows = found.rows
    assert torch.equal(rows.index, index) and torch.equal(rows.label, queries.labels)
    hits = (rows.prediction == rows.label).float().mean()
    assert found.metrics["top1"] == pytest.approx(100 * hits)
    assert rows.score.min() > 0 and rows.score.max() <= 1
    first, second, *_ = rows.csv().splitlines()
    assert first == "index,label,prediction,score"
    assert second.startswith(f"0,{queries.labels[0]},{rows.prediction[0]},0.")
    # A prediction's score is its share of the votes.
    alone = vote(bank, Labeled(queries.features[:1], queries.labels[:1]), k=1).rows
    assert alone.score.tolist() == [1.0]


def test_a_small_temperature_does_not_overflow():
    bank, queries = clusters(300), clusters(100, seed=1)
    nearest = vote(bank, queries, k=1).metrics["top1"]
    assert vote(bank, queries, k=20, temperature=1e-4).metrics["top1"] == nearest


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_indices_come_close_to_the_exact_one(index):
    bank, queries = clusters(4000), clusters(500, seed=1)
    exact, close = (vote(bank, queries, k=50, index=i) for i in ("flat", index))
    assert close.metrics["top1"] == pytest.approx(exact.metrics["top1"], abs=2.0)
    assert close.protocol["index"].startswith(index + " (")


def test_a_query_without_a_neighbor_is_never_right(monkeypatch):
    class FindsNothing:
        def search(self, queries, k):  # as faiss answers where its lists or links end
            none = np.full((len(queries), k), -np.finfo(np.float32).max, np.float32)
            return none, np.full((len(queries), k), -1)

    monkeypatch.setattr(knn, "build_index", lambda *_: (FindsNothing(), "nothing"))
    bank = Labeled(torch.eye(4), torch.tensor([0, 0, 0, 1]))
    found = vote(bank, Labeled(torch.eye(4), torch.tensor([0, 0, 0, 1])), k=2)
    assert found.metrics == {"top1": 0.0, "top5": 0.0, "nearest": 0.0}
    assert found.rows.prediction.tolist() == [-1] * 4 and found.rows.score.tolist() == [0.0] * 4


def test_protocol_names_what_the_number_depends_on():
    protocol = vote(clusters(300), clusters(100, seed=1), k=20).protocol
    assert protocol == {
        "k": 20,
        "temperature": 0.07,
        "index": "flat",
        "bank": "train split, clean views, 300 images",
        "queries": "test split, clean views, 100 images",
        "normalized": True,
        "classes": 10,
        "precision": "fp32",
    }


def test_fewer_than_five_classes_have_a_top5_of_100():
    found = vote(clusters(200, classes=3), clusters(50, classes=3, seed=1), k=150)
    assert found.metrics["top5"] == 100.0 and found.protocol["classes"] == 3


def test_a_class_without_a_vote_is_not_among_the_top_five():
    bank = Labeled(torch.eye(4)[[0, 0, 1, 2, 3]], torch.tensor([0, 0, 1, 2, 3]))
    found = vote(bank, Labeled(torch.eye(4)[[0]], torch.tensor([3])), k=2)
    assert found.metrics["top5"] == 0.0


def test_k_beyond_the_bank_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"k = 200 .* bank of 100 images"):
        vote(clusters(100), clusters(10), k=200)


def test_unknown_labels_are_an_error_that_says_so():
    bank = clusters(50)
    bank.labels[:3] = -1
    with pytest.raises(ValueError, match="3 of the 50 images of the bank"):
        vote(bank, clusters(10), k=5)


def test_features_that_are_not_finite_are_an_error():
    bank = clusters(50)
    bank.features[4, 2] = float("nan")
    with pytest.raises(ValueError, match="bank are not all finite"):
        vote(bank, clusters(10), k=5)


def test_pixels_are_raw_up_to_32_and_averaged_beyond():
    small, large = torch.randn(2, 1, 28, 28), torch.randn(2, 3, 64, 64)
    assert torch.equal(knn.Pixels()(small), small.flatten(1))
    averaged = large.unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean((3, 5))
    torch.testing.assert_close(knn.Pixels()(large), averaged.flatten(1))


class ImageSet:
    """Features posing as images, and how often it was asked for some."""

    num_classes, baselines = 5, {}

    def __init__(self, features, labels, _):
        self.images, self.labels, self.fetched = features.view(-1, 1, 8, 8), labels, 0

    def __len__(self):
        return len(self.labels)

    def fetch(self, index):
        self.fetched += 1
        return self.images[index]


class Images:
    """The interface of Splits over noise around one picture a class; limits take the first."""

    def __init__(self):
        self.labeled = {"train": clusters(300, 5, 64), "test": clusters(40, 5, 64, seed=1)}
        self.sets = {name: ImageSet(*labeled) for name, labeled in self.labeled.items()}
        self.blocks, self.seed = {"dataset": Part(ImageSet)}, 0

    def split(self, name):
        return self.sets[name]

    def found(self):
        return []

    def chosen(self, split, limit=None):
        return torch.arange(len(self.split(split)))[:limit]

    def identity(self):
        return {"dataset": "clusters"}

    def clean_batches(self, split, device, batch_size=50, limit=None, share=(0, 1)):
        images, batches = self.split(split), self.chosen(split, limit).split(batch_size)
        for i in torch.arange(len(batches)).tensor_split(share[1])[share[0]]:
            index = batches[i]
            yield images.fetch(index), images.labels[index], index


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


STEPS_PER_EPOCH = 4


def trainer_for(folder, step=0, total_steps=8):
    """What a hook sees of a trainer."""
    torch.manual_seed(0)
    networks = {"backbone": Noisy()}
    trainer = SimpleNamespace(
        method=SimpleNamespace(networks=lambda: networks),
        step=step,
        total_steps=total_steps,
        epoch=0.0,
        device=torch.device("cpu"),
        precision="fp32",
        folder=RunFolder(folder),
        status={},
        results={},
        stop=StopSignal(),
        say=print,
        paused=nullcontext,
        steps_in=lambda epochs: max(1, round(epochs * STEPS_PER_EPOCH)),
    )
    trainer.record = lambda kind, **values: (
        distributed.is_main()
        and trainer.folder.record({"kind": kind, "step": trainer.step, **values})
    )
    return trainer


class Saves:
    """Stands in for the hook that saves: which steps it was asked to save, and which is best."""

    def __init__(self):
        self.steps, self.best = set(), None

    def save(self, trainer):
        self.steps.add(trainer.step)

    def keep_as_best(self, trainer):
        assert trainer.step in self.steps
        self.best = trainer.step


def monitor(baselines=True, images=None, **block):
    part = bind(EVALUATIONS, {"type": "KNN", "k": 20, **block}, "evaluations.knn", Monitored)
    data = SimpleNamespace(splits=images or Images())
    return Monitor({"knn": part}, data, Saves(), baselines=baselines)


def forget(trainer):
    """Weights that depend on the step alone and see fewer pixels at every step."""
    weight = trainer.method.networks()["backbone"].layers[1].weight
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=g))
        weight[:, 64 >> trainer.step :] = 0.0


def run(trainer, hook, stop=None, learn=lambda trainer: None):
    hook.begin(trainer.method, trainer.device)
    hook.before_train(trainer)
    while trainer.step < (stop or trainer.total_steps):
        trainer.step += 1
        learn(trainer)
        hook.after_step(trainer, None, {})
    if stop is None:
        hook.after_train(trainer)


def written(trainer, kind):
    return [line for line in trainer.folder.metrics() if line["kind"] == kind]


def test_features_come_in_order_and_in_evaluation_mode():
    backbone, data = Noisy(), Images()
    found, labels, _ = features.extract(backbone, data.clean_batches("train", "cpu"), "cpu")
    images, expected_labels, _ = data.labeled["train"]
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
    backbone = trainer.method.networks()["backbone"]
    random_state = torch.get_rng_state()
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = [m.training for m in backbone.modules()]
    run(trainer, monitor())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert [m.training for m in backbone.modules()] == modes
    assert True in modes and False in modes
    assert torch.is_grad_enabled()


def test_module_modes_come_back_after_an_error():
    backbone = Noisy()
    modes = [m.training for m in backbone.modules()]
    with pytest.raises(RuntimeError), frozen(backbone):
        raise RuntimeError
    assert [m.training for m in backbone.modules()] == modes


@pytest.mark.parametrize(
    "every_epochs, steps", [(1.0, [4, 8, 10]), (0.5, [2, 4, 6, 8, 10]), (2.5, [10]), (None, [10])]
)
def test_monitor_evaluates_every_so_many_epochs_and_at_the_end(tmp_path, every_epochs, steps):
    trainer = trainer_for(tmp_path, total_steps=10)
    hook = monitor(baselines=False, every_epochs=every_epochs)
    run(trainer, hook)
    lines = written(trainer, "evaluation")
    assert [line["step"] for line in lines] == steps == sorted(hook.checkpoints.steps)
    top1 = hook.latest["knn"]["metrics"]["top1"]
    assert trainer.status["evaluation knn"] == f"knn {top1:.2f}%" and top1 == lines[-1]["top1"]
    assert (
        trainer.results["evaluations"] == hook.latest == {"knn": trainer.folder.evaluation("knn")}
    )
    protocol = hook.latest["knn"]["protocol"]
    assert protocol["bank"] == "train split, clean views, 300 images"
    assert protocol["queries"] == "test split, clean views, 40 images"


def test_baselines_are_measured_once_before_the_first_step(tmp_path):
    trainer, images = trainer_for(tmp_path), Images()
    run(trainer, monitor(images=images))
    baselines = written(trainer, "baseline")
    assert [(line["baseline"], line["step"]) for line in baselines] == [
        ("raw pixels", 0),
        ("random backbone", 0),
    ]
    pixels = vote(images.labeled["train"], images.labeled["test"], k=20)
    assert baselines[0]["top1"] == pixels.metrics["top1"]
    run(trainer_for(tmp_path), monitor(images=images), stop=1)
    assert written(trainer, "baseline") == baselines


def test_a_resumed_monitor_repeats_nothing_and_knows_its_best(tmp_path):
    whole, resumed = (monitor(every_epochs=0.5) for _ in range(2))
    run(trainer_for(tmp_path / "whole"), whole, learn=forget)
    run(trainer_for(tmp_path), monitor(every_epochs=0.5), stop=4, learn=forget)
    trainer = trainer_for(tmp_path, step=4)
    run(trainer, resumed, learn=forget)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert (resumed.latest, resumed.best_value) == (whole.latest, whole.best_value)
    lines = written(trainer, "evaluation")
    assert whole.best_value == max(line["top1"] for line in lines)
    assert whole.best_value > whole.latest["knn"]["metrics"]["top1"]
    assert trainer.results["best"] == {"metric": "knn.top1", "value": whole.best_value}
    best = next(line["step"] for line in lines if line["top1"] == whole.best_value)
    assert whole.checkpoints.best == best


def test_a_monitor_resumed_after_the_last_step_does_not_evaluate_again(tmp_path):
    first, again = monitor(), monitor()
    run(trainer_for(tmp_path), first)
    text = (tmp_path / "metrics.jsonl").read_text()
    run(trainer_for(tmp_path, step=8), again)
    assert (tmp_path / "metrics.jsonl").read_text() == text
    assert again.latest == first.latest


def test_limits_are_in_the_protocol(tmp_path):
    hook = monitor(False, train_limit=60, test_limit=30, every_epochs=None)
    run(trainer_for(tmp_path), hook)
    protocol = hook.latest["knn"]["protocol"]
    assert "60 images" in protocol["bank"] and "30 images" in protocol["queries"]


def on_a_rank(folder):
    """A monitor's latest result, and how many batches this rank fetched of the training split."""
    trainer, images = trainer_for(folder), Images()
    hook = monitor(False, images)
    if distributed.rank():  # as in training, running statistics are each rank's own
        trainer.method.networks()["backbone"].layers[2].running_mean += 1.0
    run(trainer, hook)
    return hook.latest, images.split("train").fetched


def test_two_ranks_share_the_features_and_both_know_the_result(tmp_path):
    (alone, fetched) = on_a_rank(tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").unlink()
    (first, some), (second, others) = on_ranks(2, on_a_rank, tmp_path)
    assert first == second == alone
    assert (tmp_path / "metrics.jsonl").read_text() == text  # one rank wrote
    assert (fetched, some, others) == (4, 2, 2)  # 2 batches of 256, at 2 evaluations


@pytest.mark.parametrize(
    "block, message",
    [
        ({"k": 0}, "knn.k: too small"),
        ({"temperature": 0.0}, "temperature"),
        ({"every_epochs": 0}, "every_epochs"),
        ({"train_limit": 100}, "k = 200 .* bank of 100"),
        ({"test_limit": 0}, "test_limit"),
        ({"index": "lsh"}, "one of flat, ivf, hnsw"),
        ({"topk": 5}, "unknown key"),
    ],
)
def test_bad_settings_are_config_errors(block, message):
    with pytest.raises(ConfigError, match=message):
        bind(EVALUATIONS, {"type": "KNN", **block}, "knn", Monitored)
