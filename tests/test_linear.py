"""Probes trained side by side against each one trained alone by torch, and by scikit-learn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from ssl_zoo.config import ConfigError
from ssl_zoo.evaluation import linear, linear_layers
from ssl_zoo.evaluation.base import Context
from ssl_zoo.evaluation.features import Labeled
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed, rng
from ssl_zoo.testing.ranks import on_ranks

SETTINGS = [(0.03, 0.0), (1.0, 1e-3), (0.3, 1e-1)]


def clusters(n, seed, noise=1.0, classes=5, width=12):
    """Features [n, width] about one center a class, labels [n]."""
    g = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(classes, (n,), generator=g)
    return Labeled(centers[labels] + noise * torch.randn(n, width, generator=g), labels)


def probe(train, test, **settings):
    """The metrics and what was selected, as a result's file has them, and the protocol."""
    found = linear.Linear(**settings).judge(train, test)
    return {**found.metrics, **found.details, "protocol": found.protocol, "rows": found.rows}


def digits():
    """Pixels in [0, 1], for training and for testing."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    return Labeled(x[:1300], y[:1300]), Labeled(x[1300:], y[1300:])


def by_torch(x, y, lr, weight_decay, epochs, batch_size, momentum, seed):
    """The plain loop: nn.Linear, torch.optim.SGD, torch's cosine, autograd."""
    model = nn.Linear(x.shape[1], 5)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    batches = [
        rows
        for epoch in range(epochs)
        for rows in rng.permutation(len(x), seed, "linear", epoch).split(batch_size)
    ]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(batches))
    for rows in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    return model


@pytest.mark.parametrize("settings", [SETTINGS[1:2], SETTINGS], ids=["one", "three"])
def test_probes_are_what_torchs_sgd_trains_one_at_a_time(settings):
    x, y, _ = clusters(100, seed=0)  # 100 is no multiple of 32: the last batch is smaller
    how = {"epochs": 5, "batch_size": 32, "momentum": 0.9, "seed": 3}
    probes = linear.Probes(12, 5, *zip(*settings, strict=True)).fit(x, y, **how)
    for number, (lr, weight_decay) in enumerate(settings):
        model = by_torch(x, y, lr, weight_decay, **how)
        columns = slice(5 * number, 5 * number + 5)
        torch.testing.assert_close(probes.weight[:, columns].T, model.weight, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(probes.bias[columns], model.bias, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(probes.logits(x)[:, number], model(x), rtol=1e-5, atol=1e-5)
            expected = 100 * (model(x).argmax(1) == y).double().mean()
        assert float(probes.accuracy(x, y)[number, 0]) == pytest.approx(float(expected))
    weights = probes.weight.unflatten(1, (len(settings), 5))
    assert float(weights.abs().amax((0, 2)).min()) > 0.01  # something was learned by each


def test_no_probability_is_a_denormal_number():
    probes = linear.Probes(3, 4, [1.0, 1.0], [0.0, 0.0])
    probes.weight.copy_(500 * torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    found, plain = probes.probabilities(x), probes.logits(x).softmax(2)
    assert plain.min() == 0 and found.min() >= torch.finfo(torch.float32).tiny
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-20)


def test_top5_counts_the_five_likeliest(monkeypatch):
    monkeypatch.setattr(linear, "LOGITS_AT_ONCE", 40)  # over several chunks
    probes = linear.Probes(8, 8, [1.0], [0.0])
    probes.weight = torch.eye(8)
    x = torch.arange(8.0).repeat(8, 1)  # class 7 is likeliest, then 6, ...
    assert probes.accuracy(x, torch.arange(8)).tolist() == [[12.5, 62.5]]


def test_separable_classes_are_separated():
    train, test = clusters(400, seed=0, noise=0.1), clusters(200, seed=1, noise=0.1)
    found = probe(train, test, epochs=10)
    assert found["top1"] == 100.0
    assert max(p["held_out_top1"] for p in found["probes"] if p["held_out_top1"]) == 100.0


@pytest.mark.parametrize("standardize", [False, True])
def test_digits_as_well_as_scikit_learn(standardize):
    (x, y, _), (test, labels, _) = train_set, test_set = digits()
    reference = LogisticRegression(C=1.0, max_iter=2000).fit(x.numpy(), y.numpy())
    expected = 100 * reference.score(test.numpy(), labels.numpy())
    found = probe(train_set, test_set, epochs=60, standardize=standardize)
    assert found["top1"] == pytest.approx(expected, abs=2.0)
    assert expected > 85 and found["top5"] > 98


def test_standardized_features_have_mean_0_and_variance_1():
    x, *_ = clusters(300, seed=0)
    x[:, 3] = 4.0
    train, other = linear.standardized(x, x[:10])
    expected = torch.ones(12)
    expected[3] = 0.0
    torch.testing.assert_close(train.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.var(0, correction=0), expected)
    assert torch.equal(other, train[:10])


def test_the_scale_of_the_features_decides_which_lr_is_best():
    train, test = clusters(600, seed=0, noise=2.0), clusters(300, seed=1, noise=2.0)
    small = probe(*(Labeled(x / 30, y) for x, y, _ in (train, test)), epochs=10)
    plain = probe(train, test, epochs=10)
    assert small["lr"] > 5 * plain["lr"]
    assert small["top1"] == pytest.approx(plain["top1"], abs=5.0)


def test_test_labels_select_nothing():
    train, test = clusters(300, seed=0, noise=3.0), clusters(200, seed=1, noise=3.0)
    told = probe(train, test, epochs=5)
    lied = probe(train, test._replace(labels=(test.labels + 1) % 5), epochs=5)
    assert told["probes"] == lied["probes"] and told["lr"] == lied["lr"]
    assert told["top1"] > lied["top1"]


def test_the_chosen_probe_is_the_best_on_the_held_out_images_trained_again_on_all():
    train, test = clusters(300, seed=0, noise=2.0), clusters(200, seed=1, noise=2.0)
    lrs, decays = [1e-3, 0.1, 3.0], [0.0, 1e-2]
    found = probe(train, test, lrs=lrs, weight_decays=decays, epochs=4, seed=2)
    assert [(p["lr"], p["weight_decay"]) for p in found["probes"]] == [
        (lr, weight_decay) for weight_decay in decays for lr in lrs
    ]
    best = max(found["probes"], key=lambda p: p["held_out_top1"])
    assert (found["lr"], found["weight_decay"]) == (best["lr"], best["weight_decay"])
    model = by_torch(*train[:2], best["lr"], best["weight_decay"], 4, 256, 0.9, seed=2)
    accuracy = 100 * (model(test[0]).argmax(1) == test[1]).double().mean()
    assert found["top1"] == pytest.approx(float(accuracy))
    rows = found["rows"]
    with torch.no_grad():
        surest = model(test.features).softmax(1).max(1)
    assert torch.equal(rows.label, test.labels) and torch.equal(rows.prediction, surest.indices)
    torch.testing.assert_close(rows.score, surest.values, rtol=1e-4, atol=1e-5)
    # Held-out images are not trained on: on noise they are guessed at.
    g = torch.Generator().manual_seed(0)
    noise, labels = torch.randn(200, 300, generator=g), torch.randint(5, (200,), generator=g)
    noise = Labeled(noise, labels)
    guessed = probe(noise, noise, lrs=[1.0], held_out=0.5, epochs=20)
    assert guessed["top1"] == 100.0 and guessed["probes"][0]["held_out_top1"] < 45


def test_a_probe_that_diverges_is_said_to_and_disturbs_no_other():
    train, test = clusters(300, seed=0), clusters(100, seed=1)
    found = probe(train, test, lrs=[0.1, 1e38], weight_decays=[1e-2], epochs=3)
    alone = probe(train, test, lrs=[0.1], weight_decays=[1e-2], epochs=3)
    assert found["probes"][1]["held_out_top1"] is None
    assert found["probes"][0] == pytest.approx(alone["probes"][0])
    assert (found["lr"], found["top1"]) == (0.1, alone["top1"])
    with pytest.raises(ValueError, match="all 1 probes diverged"):
        probe(train, test, lrs=[1e38], weight_decays=[1e-2], epochs=3)


class Given:
    """A context whose features are there already, on rank 0."""

    device = torch.device("cpu")

    def features(self, split, precision, limit):
        assert precision == "bf16"
        return digits()[split == "test"] if distributed.is_main() else None


def of_digits():
    outcome = linear.Linear(epochs=2, seed=5, precision="bf16").evaluate(Given())
    return outcome._replace(rows=[column.tolist() for column in outcome.rows])


def test_a_seed_gives_the_same_on_any_number_of_ranks():
    first, second = on_ranks(2, of_digits)
    assert first == second == of_digits()
    assert first.protocol["precision"] == "bf16"


def test_the_protocol_names_what_the_number_depends_on():
    train, test = clusters(300, seed=0), clusters(100, seed=1)
    found = probe(train, test, lrs=[0.1, 1.0], epochs=2, seed=4)
    assert found["protocol"] == {
        "views": "clean, cached; not the augmented protocol of arXiv:1911.05722, section 4.1",
        "train": "300 images",
        "test": "100 images",
        "selection": "2 probes on 30 held-out training images, the best trained again on all",
        "epochs": 2,
        "batch_size": 256,
        "momentum": 0.9,
        "schedule": "cosine",
        "standardize": False,
        "seed": 4,
        "classes": 5,
        "precision": "fp32",
    }
    assert linear.LRS[0] == 1e-3 and linear.LRS[-1] == 100 and len(linear.LRS) == 31
    assert 30 * 0.8 < min(linear.LRS, key=lambda lr: abs(lr - 30)) < 30 * 1.25


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lrs": []}, "lrs: no values"),
        ({"lrs": [0.1, 0.0]}, r"lrs\[1\]: too small"),
        ({"weight_decays": [-1.0]}, r"weight_decays\[0\]: too small"),
        ({"epochs": 0}, "epochs: too small"),
        ({"batch_size": 0}, "batch_size: too small"),
        ({"momentum": 1.0}, "momentum: out of range"),
        ({"held_out": 0.0}, "held_out: out of range"),
        ({"held_out": 1.0}, "held_out: out of range"),
    ],
)
def test_bad_settings_are_config_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        linear.Linear(**settings)


def test_features_that_cannot_be_probed_are_errors_that_say_so():
    train, test = clusters(50, 0), clusters(20, 1)
    x, y, _ = train
    with pytest.raises(ValueError, match="held out leaves none"):
        probe(Labeled(x[:1], y[:1]), test)
    broken = x.clone()
    broken[3, 3] = float("inf")
    with pytest.raises(ValueError, match=r"linear: .* train split are not all finite"):
        probe(Labeled(broken, y), test)
    with pytest.raises(ValueError, match="linear needs labels: 50 of the 50"):
        probe(Labeled(x, y - 5), test)


# Several layers.


class Layered(nn.Module):
    """Maps at two strides, the coarser of which is noise."""

    num_features = 3

    def __init__(self):
        super().__init__()
        self.levels = [SimpleNamespace(stride=4), SimpleNamespace(stride=8)]

    def feature_maps(self, images):  # [n, 5, 4, 4]
        return [images, torch.rand(len(images), 3, 2, 2)]


class Blocks(nn.Module):
    depth, num_prefix_tokens = 2, 1

    def last_blocks(self, images, count):
        assert count == 2
        return [images, 2 * images]  # [n, 1 + L, F]


def test_each_layer_has_its_probes_and_the_held_out_images_choose(tmp_path):
    maps = {
        split: Labeled(x[:, :, None, None].expand(-1, -1, 4, 4), y)
        for split, (x, y, _) in {"train": clusters(300, 0), "test": clusters(100, 1)}.items()
    }

    class Images:
        def chosen(self, split, limit):
            return torch.arange(len(maps[split].labels))

        def clean_batches(self, split, device, *_, **__):
            x, y, _ = maps[split]
            yield x, y, torch.arange(len(y))

    context = Context(Layered(), "backbone", Images(), torch.device("cpu"), RunFolder(tmp_path))
    found = linear_layers.LinearLayers(lrs=[0.1, 1.0], epochs=3).evaluate(context)
    plain = [maps[split]._replace(features=maps[split].features.mean((2, 3))) for split in maps]
    alone = linear.Linear(lrs=[0.1, 1.0], epochs=3).judge(*plain)
    assert found.details["layer"] == "stride_4" and found.metrics["stride_8"] < 50
    assert found.metrics["top1"] == found.metrics["stride_4"] == alone.metrics["top1"] > 80
    assert torch.equal(found.rows.prediction, alone.rows.prediction)
    assert found.protocol["layers"] == ["stride_4", "stride_8"]


def test_of_a_vit_the_layers_are_its_blocks_over_patches():
    tokens = torch.randn(3, 5, 4)
    layers = linear_layers.LayerFeatures(Blocks())
    mean = tokens[:, 1:].mean(1)
    torch.testing.assert_close(layers(tokens), torch.cat([mean, 2 * mean], 1))
    assert layers.names == ["block_1", "block_2"] and layers.widths == [4, 4]
    with pytest.raises(ValueError, match=r"LinearLayers needs .* found Identity"):
        linear_layers.LinearLayers().begin(nn.Identity(), None, "cpu")
