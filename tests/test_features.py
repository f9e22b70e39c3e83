"""Features are the same on any number of ranks, and each protocol gets them once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest import mock

import faiss
import pytest
import torch
from test_data_loader import data_of, folder  # noqa: F401  (a fixture)
from torch import nn

from ssl_zoo import cli
from ssl_zoo.evaluation import features, knn, linear
from ssl_zoo.evaluation.features import Labeled
from ssl_zoo.system import distributed
from ssl_zoo.testing.ranks import on_ranks

DIGITS = str(Path(__file__).resolve().parents[1] / "configs" / "digits" / "moco_v2.yaml")
NOTHING = {"train": None, "test": None}  # on all ranks but the first


def network(rank=0):
    """A small network whose running statistics are the rank's own, as in training."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    net[1].running_mean.fill_(0.1 + rank)
    net[1].running_var.fill_(0.5 + rank)
    return net.to(memory_format=torch.channels_last)


def extracted(block, batch_size=8, limits=None):
    backbone = network(distributed.rank())
    before = {name: x.clone() for name, x in backbone.state_dict().items()}
    with mock.patch.dict(features.BATCH_SIZE, cpu=batch_size):
        splits = data_of(**block).splits
        found = {
            name: features.extract_split(backbone, splits, name, "cpu", (limits or {}).get(name))
            for name in ("train", "test")
        }
    assert all(torch.equal(x, before[name]) for name, x in backbone.state_dict().items())
    return found


def assert_equal(some, other):
    for split in ("train", "test"):
        for a, b in zip(some[split], other[split], strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype


@pytest.mark.parametrize("limits", [{}, {"train": 21, "test": 3}])
def test_two_ranks_extract_what_one_does(limits):
    alone = extracted({}, 8, limits)
    first, second = on_ranks(2, extracted, {}, 8, limits)
    assert second == NOTHING
    assert_equal(first, alone)
    splits, train = data_of().splits, alone["train"]
    count = limits.get("train", len(splits.split("train")))
    images, labels, _ = next(splits.clean_batches("train", "cpu", 1000, limits.get("train")))
    assert len(train.features) == len(labels) == count
    assert torch.equal(train.labels, labels)
    assert torch.equal(splits.split("train").labels[train.index], labels)
    with torch.no_grad():
        torch.testing.assert_close(train.features, network().eval()(images))


def test_two_ranks_with_workers_that_decode_files(folder):  # noqa: F811
    block = {"dataset": folder, "workers": 1, "batch_size": 4}
    first, second = on_ranks(2, extracted, block, 5)
    assert second == NOTHING
    assert_equal(first, extracted(block, 5))
    assert len(first["train"].features) == 12 and len(first["test"].features) == 6


def test_a_rank_without_a_batch_gives_no_rows():
    first, *others = on_ranks(3, extracted, {"batch_size": 15}, 64)
    assert others == [NOTHING, NOTHING]
    assert_equal(first, extracted({}, 64))


def rows_on_main():
    rows = 3 + distributed.rank() * torch.ones(2 * distributed.rank() + 1, 4)
    with mock.patch.object(distributed, "ROWS_SENT_AT_ONCE", 2):
        return distributed.to_main(rows)


def test_rows_arrive_in_rank_order_whatever_their_number():
    first, *others = on_ranks(3, rows_on_main)
    assert others == [None, None]
    assert first.tolist() == [
        [value] * 4 for value, n in ((3, 1), (4, 3), (5, 5)) for _ in range(n)
    ]


def test_the_networks_precision_is_not_that_of_the_images():
    net, made, seen = network(), [], []
    net.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))

    def batches():
        for position in torch.arange(4).split(2):
            made.append(torch.is_autocast_enabled("cpu"))
            yield torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64), position

    features.extract(net, batches(), "cpu", "bf16")
    assert made == [False, False] and seen == [True, True]


def test_the_waiting_ranks_threads_are_borrowed_and_given_back(monkeypatch):
    own = torch.get_num_threads()
    with distributed.borrowed_threads() as alone:
        assert alone == own
    monkeypatch.setattr(distributed, "world", lambda: 3)
    monkeypatch.setattr(distributed.os, "sched_getaffinity", lambda pid: range(own * 2))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(KeyError), distributed.borrowed_threads() as lent:
        assert lent == torch.get_num_threads() == own * 2  # of 3 x own, what may be used
        raise KeyError
    assert torch.get_num_threads() == own


def test_faiss_searches_with_torchs_threads_and_keeps_its_own(monkeypatch):
    before, seen = faiss.omp_get_max_threads(), []
    search = faiss.IndexFlatIP.search

    def watched(self, *arguments):
        seen.append(faiss.omp_get_max_threads())
        return search(self, *arguments)

    monkeypatch.setattr(faiss.IndexFlatIP, "search", watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: before + 2)
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    knn.KNN(k=5).judge(Labeled(x, y), Labeled(x, y))
    assert seen == [before + 2] and faiss.omp_get_max_threads() == before


def test_evaluate_all_is_all_evaluations_on_one_extraction(tmp_path, capsys, monkeypatch):
    run = str(tmp_path / "run")
    quick = [
        "backbone.options={layers: [1, 1, 1, 1], channels: [8, 8, 8, 8]}",
        "data.batch_size=64",
        "train.epochs=1",
        "evaluations.knn=null",
    ]
    assert cli.main(["train", DIGITS, *quick, "--out", run, "--device", "cpu"]) == 0
    extract, calls = features.extract, []
    monkeypatch.setattr(
        features, "extract", lambda *given: calls.append(len(given)) or extract(*given)
    )
    found = {}
    options = {"knn": ["k=20"], "linear": ["epochs=3", "lrs=[0.1, 1, 10]"]}
    options["all"] = [f"{name}.{option}" for name in options for option in options[name]]
    for name, words in options.items():
        out = tmp_path / f"{name}.json"
        capsys.readouterr()
        words = ["evaluate", name, run, *words, "--out", str(out), "--device", "cpu"]
        assert cli.main(words) == 0
        found[name] = json.loads(out.read_text())
        shown = capsys.readouterr().out
        for evaluation in found[name].keys() - {"source"}:
            top1 = found[name][evaluation]["metrics"]["top1"]
            assert f"{evaluation}: top1 {top1:.2f}%" in shown and "precision fp32" in shown
            rows = (tmp_path / f"{name}.{evaluation}.csv").read_text().splitlines()[1:]
            hits = [row.split(",")[1] == row.split(",")[2] for row in rows]
            assert len(rows) == 360 and top1 == pytest.approx(100 * sum(hits) / 360)
    assert len(calls) == 2 * 3  # train and test, once a command
    assert found["all"] == found["knn"] | found["linear"]
    assert found["linear"]["linear"]["lr"] in (0.1, 1.0, 10.0)
    assert found["linear"]["linear"]["protocol"]["views"] == linear.VIEWS


@pytest.mark.parametrize(
    "words, message",
    [
        (["knn", "k=0"], r"evaluations\.knn\.k: too small"),
        (["knn", "k=50", "train_limit=20"], "k = 50 .* bank of 20"),
        (["knn", "bank_limit=20"], r"evaluations\.knn\.bank_limit.*[^$]*now train_limit"),
        (["linear", "lrs=[0.1, -1]"], r"evaluations\.linear\.lrs\[1\]: too small"),
        (["linear", "epoch=0"], r"evaluations\.linear\.epoch: unknown key[^$]*nearest: +epochs"),
        (["linear", "lrs=[]"], r"lrs: no values"),
        (["all", "knn.test_limit=0"], r"evaluations\.knn\.test_limit: too small"),
        (["all", "k=20"], "evaluations.k: not a block"),
        (["kn"], r"no evaluation of this name[^$]*'kn'[^$]*one of all, knn, [^$]*nearest: +knn"),
        (["onlineprobe"], "OnlineProbe is trained beside a method"),
    ],
)
def test_bad_options_are_refused_in_words(words, message, capsys):
    name, *options = words
    assert cli.main(["evaluate", name, DIGITS, *options, "--device", "cpu"]) == 2
    assert re.search(message, capsys.readouterr().err)
