"""Probes trained side by side against each one trained alone by torch, and by scikit-learn."""

from __future__ import annotations

import pytest
import torch
from ranks import on_ranks
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from ssl_zoo.config import ConfigError
from ssl_zoo.evaluation import linear
from ssl_zoo.evaluation.features import Features, Labelled
from ssl_zoo.system import rng

SETTINGS = [(0.03, 0.0), (1.0, 1e-3), (0.3, 1e-1)]


def clusters(n, seed, noise=1.0, classes=5, width=12):
    """Features [n, width] about one centre a class, labels [n]."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(classes, (n,), generator=g)
    return centres[labels] + noise * torch.randn(n, width, generator=g), labels


def digits():
    """Pixels in [0, 1]: training features and labels, test features and labels."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    return x[:1300], y[:1300], x[1300:], y[1300:]


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
    x, y = clusters(100, seed=0)  # 100 is no multiple of 32: the last batch is smaller
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
    found = linear.probe(*train, *test, epochs=10)
    assert found["top1"] == 100.0
    assert max(p["held_out_top1"] for p in found["probes"] if p["held_out_top1"]) == 100.0


@pytest.mark.parametrize("standardize", [False, True])
def test_digits_as_well_as_scikit_learn(standardize):
    x, y, test, labels = digits()
    reference = LogisticRegression(C=1.0, max_iter=2000).fit(x.numpy(), y.numpy())
    expected = 100 * reference.score(test.numpy(), labels.numpy())
    found = linear.probe(x, y, test, labels, epochs=60, standardize=standardize)
    assert found["top1"] == pytest.approx(expected, abs=2.0)
    assert expected > 85 and found["top5"] > 98


def test_standardized_features_have_mean_0_and_variance_1():
    x, _ = clusters(300, seed=0)
    x[:, 3] = 4.0
    train, other = linear.standardized(x, x[:10])
    expected = torch.ones(12)
    expected[3] = 0.0
    torch.testing.assert_close(train.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.var(0, correction=0), expected)
    assert torch.equal(other, train[:10])


def test_the_scale_of_the_features_decides_which_lr_is_best():
    train, test = clusters(600, seed=0, noise=2.0), clusters(300, seed=1, noise=2.0)
    small = linear.probe(train[0] / 30, train[1], test[0] / 30, test[1], epochs=10)
    plain = linear.probe(*train, *test, epochs=10)
    assert small["lr"] > 5 * plain["lr"]
    assert small["top1"] == pytest.approx(plain["top1"], abs=5.0)


def test_test_labels_select_nothing():
    train, (test, labels) = clusters(300, seed=0, noise=3.0), clusters(200, seed=1, noise=3.0)
    told = linear.probe(*train, test, labels, epochs=5)
    lied = linear.probe(*train, test, (labels + 1) % 5, epochs=5)
    assert told["probes"] == lied["probes"] and told["lr"] == lied["lr"]
    assert told["top1"] > lied["top1"]


def test_the_chosen_probe_is_the_best_on_the_held_out_images_trained_again_on_all():
    train, test = clusters(300, seed=0, noise=2.0), clusters(200, seed=1, noise=2.0)
    lrs, decays = [1e-3, 0.1, 3.0], (0.0, 1e-2)
    found = linear.probe(*train, *test, lrs=lrs, weight_decays=decays, epochs=4, seed=2)
    assert [(p["lr"], p["weight_decay"]) for p in found["probes"]] == [
        (lr, weight_decay) for weight_decay in decays for lr in lrs
    ]
    best = max(found["probes"], key=lambda p: p["held_out_top1"])
    assert (found["lr"], found["weight_decay"]) == (best["lr"], best["weight_decay"])
    model = by_torch(*train, best["lr"], best["weight_decay"], 4, 256, 0.9, seed=2)
    accuracy = 100 * (model(test[0]).argmax(1) == test[1]).double().mean()
    assert found["top1"] == pytest.approx(float(accuracy))
    # Held-out images are not trained on: on noise they are guessed at.
    g = torch.Generator().manual_seed(0)
    noise, labels = torch.randn(200, 300, generator=g), torch.randint(5, (200,), generator=g)
    guessed = linear.probe(noise, labels, noise, labels, lrs=[1.0], held_out=0.5, epochs=20)
    assert guessed["top1"] == 100.0 and guessed["probes"][0]["held_out_top1"] < 45


def test_a_probe_that_diverges_is_said_to_and_disturbs_no_other():
    train, test = clusters(300, seed=0), clusters(100, seed=1)
    found = linear.probe(*train, *test, lrs=[0.1, 1e38], weight_decays=[1e-2], epochs=3)
    alone = linear.probe(*train, *test, lrs=[0.1], weight_decays=[1e-2], epochs=3)
    assert found["probes"][1]["held_out_top1"] is None
    assert found["probes"][0] == pytest.approx(alone["probes"][0])
    assert (found["lr"], found["top1"]) == (0.1, alone["top1"])
    with pytest.raises(ValueError, match="all 1 probes diverged"):
        linear.probe(*train, *test, lrs=[1e38], weight_decays=[1e-2], epochs=3)


def of_digits():
    x, y, test, labels = digits()
    features = Features(Labelled(x, y), Labelled(test, labels), "bf16")
    return linear.of_features(features, epochs=2, seed=5)


def test_a_seed_gives_the_same_on_any_number_of_ranks():
    first, second = on_ranks(2, of_digits)
    assert first == second == of_digits()
    assert first["protocol"]["precision"] == "bf16"


def test_the_protocol_names_what_the_number_depends_on():
    train, test = clusters(300, seed=0), clusters(100, seed=1)
    found = linear.probe(*train, *test, lrs=[0.1, 1.0], epochs=2, seed=4)
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
    }
    assert linear.LRS[0] == 1e-3 and linear.LRS[-1] == 100 and len(linear.LRS) == 31
    assert 30 * 0.8 < min(linear.LRS, key=lambda lr: abs(lr - 30)) < 30 * 1.25


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lrs": []}, "lrs: no values"),
        ({"lrs": [0.1, 0.0]}, "lrs: too small"),
        ({"weight_decays": [-1.0]}, "weight_decays: too small"),
        ({"epochs": 0}, "epochs: too small"),
        ({"batch_size": 0}, "batch_size: too small"),
        ({"momentum": 1.0}, "momentum: too large"),
        ({"held_out": 0.0}, "held_out: too small"),
        ({"held_out": 1.0}, "held_out: too large"),
    ],
)
def test_bad_settings_are_config_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        linear.probe(*clusters(50, 0), *clusters(20, 1), **settings)


def test_features_that_cannot_be_probed_are_errors_that_say_so():
    (x, y), test = clusters(50, 0), clusters(20, 1)
    with pytest.raises(ValueError, match="held out leaves none"):
        linear.probe(x[:1], y[:1], *test)
    broken = x.clone()
    broken[3, 3] = float("inf")
    with pytest.raises(ValueError, match=r"linear: .* train split are not all finite"):
        linear.probe(broken, y, *test)
    with pytest.raises(ValueError, match="linear needs labels: 50 of the 50"):
        linear.probe(x, y - 5, *test)
