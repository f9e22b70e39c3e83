"""Evaluations that train: against a plain loop, without a trace on the run, and to be resumed."""

from __future__ import annotations

import copy
import math
import os
from functools import partial
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest
import torch
from timm.layers import DropPath
from timm.optim import param_groups_layer_decay
from tiny import TinyNet, same, stopped_at
from torch import nn
from torch.nn import functional as F

import ssl_zoo as sz
from ssl_zoo import config
from ssl_zoo.backbones import fits
from ssl_zoo.backbones.timm import Timm
from ssl_zoo.config import EVALUATIONS, ConfigError, Part, bind
from ssl_zoo.data import Splits, Views
from ssl_zoo.data.datasets.bundled import Digits
from ssl_zoo.data.image.color import Normalize
from ssl_zoo.data.image.geometry import RandomResizedCrop
from ssl_zoo.engine.stop import Interrupted
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.evaluation import classifier, features
from ssl_zoo.evaluation.base import UNTRAINED, Context, hashed, identity, measure
from ssl_zoo.evaluation.classifier import TrainedClassifier, Tuned
from ssl_zoo.evaluation.fine_tune import FineTune
from ssl_zoo.evaluation.labeled_views import LabeledViews, crops_and_flips
from ssl_zoo.evaluation.linear_augmented import LinearAugmented
from ssl_zoo.evaluation.semi_supervised import SemiSupervised, listed, part_of_each
from ssl_zoo.experiment.by_hand import keep, results_of
from ssl_zoo.ops.batchnorm import split_batchnorm
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed
from ssl_zoo.system.files import sha256
from ssl_zoo.system.rng import random_state, seed_all
from ssl_zoo.testing.ranks import on_ranks
from ssl_zoo.weights import file as weights
from ssl_zoo.weights.as_subject import subject_of

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


NORMALIZE = Part(Normalize, mean=[0.3], std=[0.4])


CROP = Part(RandomResizedCrop, size=8, scale=(0.6, 1.0))
VIEWS = Part(Views, ops={"crop": CROP, "normalize": NORMALIZE})


class Net(nn.Module):
    """A convolution, and where it has found what: digits can be told apart by it, untrained."""

    num_features = 64

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)
        self.norm = split_batchnorm(nn.Sequential(nn.BatchNorm2d(4)), 2)

    def layers(self):
        return [list(self.conv.parameters()), list(self.norm.parameters())]

    def forward(self, images):
        return self.norm(self.conv(images)).relu().flatten(1)


def splits(limit=100):
    return Splits(
        3,
        dataset=Part(Digits, limit=limit),
        clean=Part(Views, ops={"normalize": NORMALIZE}),
        workers=0,
    )


def backbone():
    torch.manual_seed(0)
    network = Net()
    network(torch.randn(64, 1, 8, 8))  # running statistics of its own
    return network


def context(folder, network=None, of=None):
    network = network or backbone()
    return Context(network, "backbone", of or splits(), CPU, RunFolder(folder))


def quick(**changed):
    few = {"lrs": [1.0], "epochs": 3, "milestones": [2], "batch_size": 32, "views": VIEWS}
    return LinearAugmented(**few | changed)


FEW = {"epochs": 3, "batch_size": 32, "views": VIEWS}
EACH = {
    "linear": quick(),
    "few labels": SemiSupervised(share=0.4, **FEW),
    "fine-tuning": FineTune(lrs=[0.01], warmup_epochs=1, **FEW),
}
each = pytest.mark.parametrize("evaluation", EACH.values(), ids=EACH)


def state_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


# The frozen backbone.


def test_a_linear_layer_on_crops_is_what_a_plain_loop_trains(tmp_path):
    of, network = splits(), backbone()
    found = quick(weight_decay=0.01).evaluate(context(tmp_path, network, of))
    seed_all(of.seed)
    layer = torch.nn.Linear(64, 10)
    torch.nn.init.normal_(layer.weight, std=0.01)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
    views, images = VIEWS(), of.split("train").images
    batches = LabeledViews(of, views, torch.arange(100), 32, drop_last=False)
    assert batches.steps_per_epoch == 4  # the last of 4 images
    seen = []
    network.eval()
    for step, (epoch, index) in enumerate(batches.sampler.steps(0, 12)):
        optimizer.param_groups[0]["lr"] = 1.0 if step < 8 else 0.1
        (view,) = views(images[index], of.seed, epoch, index)
        with torch.no_grad():
            h = network(view)
        seen.append(h)
        optimizer.zero_grad()
        F.cross_entropy(layer(h), of.split("train").labels[index]).backward()
        optimizer.step()
    assert not torch.equal(seen[0][:4], seen[4][:4])
    test = features.extract_split(network, of, "test", CPU)
    with torch.no_grad():
        best = layer(test.features).softmax(1).max(1)
    torch.testing.assert_close(found.rows.score, best.values, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.rows.prediction, best.indices)
    hits = 100 * (best.indices == test.labels).float().mean().item()
    assert found.metrics["top1"] == pytest.approx(hits) and hits > 40


def test_the_recipe_for_imagenet_is_the_papers_and_what_the_defaults_are():
    block = config.load(ROOT / "configs/imagenet/moco_v1_linear.yaml").data["evaluations"]["linear"]
    assert block.pop("every_epochs") is None
    spelled = bind(EVALUATIONS, block).spelled_out()
    views = spelled.pop("views")["ops"]
    usual = bind(EVALUATIONS, {"type": "LinearAugmented"}).spelled_out()
    assert usual.pop("views") is None and spelled == usual
    assert list(views) == ["crop", "flip", "normalize"] and views["crop"]["size"] == 224


def test_the_usual_views_are_crops_of_the_clean_size_flips_and_clean_colors():
    views = crops_and_flips(splits())
    assert list(views.ops) == ["crop", "flip", "normalize"] and views.count == 1
    assert views.ops["crop"].size == [8, 8] and views.ops["crop"].scale == (0.08, 1.0)
    assert views.ops["normalize"].undo(torch.zeros(1, 1, 1, 1)).item() == pytest.approx(0.3)


@each
def test_what_is_judged_stays_as_it_was_and_so_do_random_states(evaluation, tmp_path):
    network = backbone().train()
    network.conv.eval()
    before, modes = state_of(network), [m.training for m in network.modules()]
    part = Part(type(evaluation))
    random = random_state(CPU)
    measure(part, evaluation, context(tmp_path, network))
    assert same(state_of(network), before) and same(random_state(CPU), random)
    assert [m.training for m in network.modules()] == modes
    assert all(p.grad is None for p in network.parameters())


def test_lr_is_selected_on_training_images_that_are_not_learned_from(tmp_path, monkeypatch):
    seen = {}
    plain = classifier.LabeledViews

    def watched(splits, views, images, *others):
        seen[len(seen)] = images
        return plain(splits, views, images, *others)

    monkeypatch.setattr(classifier, "LabeledViews", watched)
    found = quick(lrs=[1e-6, 1.0, 1e38], held_out=0.2).evaluate(context(tmp_path))
    assert [len(images) for images in seen.values()] == [80, 100]
    low, right, high = found.details["trials"]
    assert high["held_out_top1"] is None and right["held_out_top1"] > low["held_out_top1"]
    assert found.details["lr"] == 1.0
    alone = quick(lrs=[1.0]).evaluate(context(tmp_path / "alone"))
    assert alone.metrics == found.metrics and alone.details["trials"] == []


# All weights.


def test_all_weights_of_a_copy_are_what_a_plain_loop_trains(tmp_path, monkeypatch):
    of, network = splits(64), backbone()
    found = {}
    plain = TrainedClassifier._trained

    def watched(*args):
        found["classifier"] = plain(*args)
        return found["classifier"]

    monkeypatch.setattr(TrainedClassifier, "_trained", watched)
    evaluation = EACH["fine-tuning"]
    outcome = evaluation.evaluate(context(tmp_path, network, of))
    seed_all(of.seed)
    model = nn.Sequential(copy.deepcopy(network), nn.Linear(64, 10))
    model[0].norm[0].groups = 1
    torch.nn.init.normal_(model[1].weight, std=0.01)
    torch.nn.init.zeros_(model[1].bias)
    conv, norm, head = model[0].conv, model[0].norm, model[1]
    rates = {head: 0.01, norm: 0.0075, conv: 0.005625}
    groups = [
        {"params": [p], "lr": rate, "weight_decay": 0.05 if p.ndim > 1 else 0.0, "base": rate}
        for module, rate in rates.items()
        for p in module.parameters()
    ]
    optimizer = torch.optim.AdamW(groups)
    images, labels = of.split("train").images, of.split("train").labels
    batches = LabeledViews(of, VIEWS(), torch.arange(64), 32, drop_last=True)
    for step, (epoch, index) in enumerate(batches.sampler.steps(0, 6)):
        at = step / 2
        scale = at if at < 1 else (1 + math.cos(math.pi * (at - 1) / 2)) / 2
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * scale
        optimizer.zero_grad()
        (view,) = VIEWS()(images[index], of.seed, epoch, index)
        F.cross_entropy(model(view), labels[index]).backward()
        optimizer.step()
    trained = found["classifier"]
    pairs = [(trained.backbone, model[0]), (trained.head, model[1])]
    for ours, theirs in pairs:
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    model.eval()
    test = of.split("test").images.float() / 255
    with torch.no_grad():
        best = model((test - 0.3) / 0.4).softmax(1).max(1)
    torch.testing.assert_close(outcome.rows.score, best.values, rtol=1e-4, atol=1e-5)
    assert torch.equal(outcome.rows.prediction, best.indices)


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        ("vit_tiny_patch16_224", "head", {"depth": 2, "embed_dim": 12, "num_heads": 2}),
        ("resnet18", "fc", {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}),
        (
            "vit_tiny_patch16_224",
            "head",
            {"depth": 2, "embed_dim": 12, "num_heads": 2, "global_pool": "avg"},
        ),
        ("convnext_tiny", "head.fc", {"depths": [1, 1, 1, 1], "dims": [4, 4, 8, 8]}),
    ],
)
def test_rates_of_layers_are_timms(name, head, options):
    whole = Tuned(Timm(name=name, options=options), 5, CPU)
    model = copy.deepcopy(whole.backbone.model)
    place, _, name = head.rpartition(".")
    setattr(model.get_submodule(place), name, whole.head)
    left_out = getattr(model, "no_weight_decay", set)()
    expected = [
        (*p.shape, group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(
            model, 0.05, no_weight_decay_list=left_out, layer_decay=0.5
        )
        for p in group["params"]
    ]
    found = [
        (*p.shape, group["lr"] / 2, group["weight_decay"])
        for group in FineTune(layer_decay=0.5).optimizer(whole, 2.0).param_groups
        for p in group["params"]
    ]
    assert sorted(found) == sorted(expected) and len({rate for *_, rate, _ in found}) > 3


def test_a_backbone_that_does_not_tell_its_layers_has_one_rate_or_is_refused_first():
    assert fits(Net(), "layers")  # which has them and no more
    network = nn.Linear(4, 3)
    network.num_features = 3
    with pytest.raises(ValueError, match=r"needs a backbone's layers\(\), which Linear does not"):
        FineTune().begin(network, splits(), CPU)
    flat = FineTune(layer_decay=1).optimizer(Tuned(network, 5, CPU), 0.1)
    assert {group["lr"] for group in flat.param_groups} == {0.1}


# A few labels.


def test_a_share_of_each_class_is_drawn_by_seed_and_no_class_is_left_out():
    labels = torch.tensor([0] * 50 + [4] * 20 + [7] * 3)
    drawn = part_of_each(labels, 0.1, seed=0)
    assert labels[drawn].tolist() == [0] * 5 + [4] * 2 + [7]
    assert torch.equal(drawn, part_of_each(labels, 0.1, seed=0))
    assert not torch.equal(drawn, part_of_each(labels, 0.1, seed=1))


class Named:
    """The names that SimCLR's lists and an ImageNet of folders give."""

    files: ClassVar = ["n01/n01_1.JPEG", "n01/n01_2.JPEG", "n02/n02_1.JPEG", "n02/n01_2.JPEG"]

    def __len__(self):
        return len(self.files)

    def names(self, index):
        return [self.files[i] for i in index]


def test_a_few_labels_have_to_be_worth_more_with_the_features_than_without(tmp_path):
    few = {"share": 0.4, "epochs": 2, "batch_size": 32, "every_epochs": None}
    run = sz.train(
        "digits/moco_v2",
        out=tmp_path / "run",
        method={"memory": {"size": 32}},
        backbone=partial(TinyNet, in_chans=1),
        data={"dataset": {"type": "Digits", "limit": 100}},
        batch_size=32,
        evaluations={"knn": None, "few": {"type": "SemiSupervised", **few}},
        epochs=1,
    )
    (line,) = (line for line in run.metrics if line["kind"] == "baseline")
    assert line["baseline"] == UNTRAINED and line["step"] == 0 and line["top1"] >= 0


def test_a_list_names_the_images(tmp_path):
    file = tmp_path / "1percent.txt"
    file.write_bytes(b"n02_1.JPEG\r\n\nn01_1.JPEG \nn02_1.JPEG\nn02/n01_2.JPEG\n")
    assert listed(file, Named()).tolist() == [0, 2, 3]
    for text, message in (
        ("n09_1.JPEG\nn01_1.JPEG", r"1percent\.txt: 1 of the 2 names are not among .*'n09_1.JPEG'"),
        ("n01_2.JPEG", "1 of the 1 names are each of several images: 'n01_2.JPEG'"),
        ("\n", "no names of images in it"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            listed(file, Named())
    with pytest.raises(ValueError, match=r"nowhere\.txt: No such file"):
        SemiSupervised(file=str(tmp_path / "nowhere.txt")).check(splits())


def test_the_hash_covers_which_images_a_file_lists_and_not_where_it_lies(tmp_path):
    hashes = []
    for name, text in (("a", "3\n5\n"), ("b", "5\n3"), ("c", "3\n6")):
        (tmp_path / name).write_text(text)
        block = {"type": "SemiSupervised", "file": str(tmp_path / name)}
        part = bind(EVALUATIONS, block)
        hashes.append(hashed(identity(part, part(), splits(), "backbone")))
    assert hashes[0] == hashes[1] != hashes[2]


# Stopped and resumed.


@each
def test_a_resumed_evaluation_is_the_uninterrupted_one(evaluation, tmp_path, monkeypatch):
    whole = evaluation.evaluate(context(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped at step 2"):
        stopped_at(patch, 1)
        evaluation.evaluate(context(tmp_path / "parts"))
    parts = evaluation.evaluate(context(tmp_path / "parts"))
    (folder,) = (tmp_path / "parts").glob("*/whole")
    lines = RunFolder(folder).metrics()
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)) and len(steps) == 2  # what was done was not done again
    assert parts.metrics == whole.metrics and same([*parts.rows], [*whole.rows])


def test_two_do_not_train_the_same_in_one_folder_at_once(tmp_path, monkeypatch):
    evaluation, fit = EACH["linear"], Trainer.fit
    holders = []

    def watched(trainer):
        holders.append(trainer.folder.lock.holder())
        with pytest.raises(FileExistsError, match="is being written to by"):
            evaluation.evaluate(context(tmp_path))
        fit(trainer)

    monkeypatch.setattr(Trainer, "fit", watched)
    evaluation.evaluate(context(tmp_path))
    assert len(holders) == 1 and str(os.getpid()) in holders[0]
    (folder,) = tmp_path.glob("*/whole")
    assert not RunFolder(folder).lock.holder()


def test_numbers_of_several_processes_are_of_another_protocol(monkeypatch):
    alone, tuned = [], EACH["fine-tuning"]
    for world in (1, 2):
        monkeypatch.setattr(classifier.distributed, "world", lambda world=world: world)
        alone.append([e.depends_on(splits()) for e in (tuned, EACH["linear"])])
    assert alone == [[{}, {}], [{"processes": 2}, {}]]


@each
def test_what_other_weights_have_trained_in_the_folder_is_not_gone_on_with(evaluation, tmp_path):
    other = backbone()
    torch.nn.init.zeros_(other.conv.weight)
    evaluation.evaluate(context(tmp_path / "one"))
    found = evaluation.evaluate(context(tmp_path / "one", other)).rows.score
    assert same(found, evaluation.evaluate(context(tmp_path / "two", other)).rows.score)


def test_a_copy_to_train_drops_nothing():
    vit = Timm(
        name="vit_tiny_patch16_224",
        options={"drop_path_rate": 0.5, "depth": 2, "proj_drop_rate": 0.1},
    )
    assert {m.drop_prob for m in vit.modules() if isinstance(m, DropPath)} == {0.5}
    tuned = classifier.copy_to_train(vit, CPU)
    assert {m.drop_prob for m in tuned.modules() if isinstance(m, DropPath)} == {0.0}
    assert {m.p for m in tuned.modules() if isinstance(m, nn.Dropout)} == {0.0}
    assert {m.drop_prob for m in vit.modules() if isinstance(m, DropPath)} == {0.5}


def test_of_a_file_of_weights_they_go_on_beside_it(tmp_path, monkeypatch):
    narrow = {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 8]}
    block = {"type": "Timm", "name": "resnet18", "in_chans": 1, "options": narrow}
    file = tmp_path / "weights.safetensors"

    def saved(seed):
        torch.manual_seed(seed)
        state = weights.build(block).model.state_dict()
        weights.write(file, state, weights.Header(block, {"ops": {}}))

    def evaluated():
        subject = subject_of(file, CPU)
        keys = ["lrs=[1.0]", "epochs=2", "milestones=[]", "batch_size=50"]
        parts = subject.parts("linearaugmented", keys)
        subject.judge_on(Part(Digits, limit=100), parts)
        ((name, result, outcome),) = subject.evaluate(parts, CPU)
        keep(subject, name, result, outcome)
        return result["hash"]

    def trained():
        (folder,) = tmp_path.glob(f"*/file_{sha256(file)[:12]}/linearaugmented-*/*/whole")
        return [line["step"] for line in RunFolder(folder).metrics()]

    saved(0)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped at step 2"):
        stopped_at(patch, 1)
        evaluated()
    digest = evaluated()
    assert len(trained()) == len(set(trained())) == 2  # what was done was not done again
    assert [of.result["hash"] for of in results_of(file)] == [digest]
    saved(1)  # another network under the name
    assert not list(results_of(file))
    assert evaluated() == digest and len(trained()) == 2
    assert [of.result["hash"] for of in results_of(file)] == [digest]
    assert {path.name for path in tmp_path.iterdir()} == {file.name, f"{file.name}.evaluations"}


def on_a_rank(folder):
    of, network = splits(), backbone()
    network.norm[0].running_mean += distributed.rank()  # each rank has its own; rank 0's count
    tuned = FineTune(lrs=[0.01], warmup_epochs=0, **FEW | {"epochs": 1})
    once = quick(epochs=1, milestones=[]), tuned
    with mock.patch.object(os, "fsync"):
        return [
            evaluation.evaluate(context(folder / type(evaluation).__name__, network, of)).rows.score
            for evaluation in once
        ]


def test_two_ranks_train_one_classifier_on_one_network(tmp_path):
    frozen, _ = on_a_rank(tmp_path / "one")
    first, second = on_ranks(2, on_a_rank, tmp_path / "two")
    torch.testing.assert_close(first[0], frozen, rtol=1e-3, atol=1e-4)
    assert same(first, second)


# What cannot be trained on.


def test_a_class_without_training_images_is_never_said_and_gaps_do_not_matter(tmp_path):
    of = splits(60)
    train, test = of.split("train").labels, of.split("test").labels
    train.mul_(2), test.mul_(2)
    test[:5] = 25
    quick().check(of)
    found = quick().evaluate(context(tmp_path, of=of))
    assert found.protocol["classes"] == 26 and set(found.rows.prediction.tolist()) <= set(
        train.tolist()
    )
    right = found.rows.prediction == found.rows.label
    assert found.metrics["top1"] == pytest.approx(100 * right.float().mean().item())


def test_bad_settings_are_config_errors():
    with pytest.raises(ConfigError, match="milestones: the training ends after 50 epochs"):
        LinearAugmented(epochs=50)
    with pytest.raises(ConfigError, match="lrs: no values"):
        LinearAugmented(lrs=[])
    with pytest.raises(ConfigError, match="warmup_epochs: the warm-up would not end"):
        FineTune(epochs=3)
    for given in ({}, {"share": 0.1, "file": "1percent.txt"}):
        with pytest.raises(ConfigError, match="share: which images"):
            SemiSupervised(**given)


def test_images_that_cannot_be_learned_from_are_refused_before_anything_is_paid_for():
    with pytest.raises(ValueError, match="1 of 1 training images held out to select lr leaves"):
        quick(lrs=[1.0, 2.0], train_limit=1).check(splits())
    with pytest.raises(ValueError, match="must first bring them to one"):
        varied = splits()
        varied.split("train").varies = True
        quick(views=Part(Views, ops={"normalize": NORMALIZE})).check(varied)
    unknown = splits()
    unknown.split("train").labels[:2] = -1
    with pytest.raises(ValueError, match="LinearAugmented needs labels: 2 of the 100"):
        quick().check(unknown)
