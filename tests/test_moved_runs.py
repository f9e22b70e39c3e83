"""What a run is does not depend on where its files lie: resumed, and judged, without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_changed_data import contrastive, first_sitting, photos, picture, recipe, train

from ssl_zoo import cli, config, experiment
from ssl_zoo.backbones import LabPair, Timm, without_initial_weights
from ssl_zoo.config import BACKBONES, Part, bind
from ssl_zoo.engine import checkpoint
from ssl_zoo.runs import RunFolder

QUEUE = {"type": "MoCoQueue", "size": 64}
SMALL = {"name": "resnet18", "options": {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4]}}
PROBE = {"probe": {"type": "OnlineProbe"}, "knn": {"type": "KNN", "k": 5}}


def evaluate(name: str, path: Path, *words: str) -> dict:
    """Its result."""
    out = path.parent / "out.json"
    command = ["evaluate", name, str(path), *words, "--device", "cpu", "--out", str(out)]
    assert cli.main(command) == 0
    return json.loads(out.read_text())[name]


def refused(capsys, *words: str) -> str:
    assert cli.main([*map(str, words), "--device", "cpu"]) == 2
    return capsys.readouterr().err


# Initial weights.


def test_initial_weights_may_be_gone_once_there_is_a_checkpoint(tmp_path, capsys):
    file = tmp_path / "start.pth"
    torch.save(Timm(**SMALL).model.state_dict(), file)
    backbone = {"type": "Timm", **SMALL, "weights": str(file)}
    path = first_sitting(tmp_path, contrastive(QUEUE), backbone=backbone)
    whole = recipe(photos(tmp_path / "whole"), contrastive(QUEUE), backbone=backbone)
    assert train(whole) == 0
    cli.main(["evaluate", "knn", str(path), "--device", "cpu", "--out", str(tmp_path / "start")])
    assert json.loads((tmp_path / "start").read_text())["knn"]["of"]["network"] == "initial weights"
    file.unlink()
    assert train(path, "--resume") == 0
    ends = [checkpoint.read(RunFolder(f / "run").checkpoint(12)) for f in (tmp_path, whole.parent)]
    first, second = (end["method"] for end in ends)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert f"weights: {file}" in (tmp_path / "run" / "config.yaml").read_text()
    assert evaluate("knn", tmp_path / "run")["metrics"]["top1"] >= 0
    assert experiment.baselines_of(RunFolder(tmp_path / "run").config())  # for reports of a study
    for words in (
        ["--check"],
        ["--out", tmp_path / "new"],
        ["--out", tmp_path / "new", "--resume"],
    ):
        errors = refused(capsys, "train", path, *words)
        assert "backbone.weights: no such file" in errors and str(file) in errors
    assert not (tmp_path / "new").exists()
    assert "backbone.weights: no such file" in refused(capsys, "evaluate", "knn", path)


def test_of_a_network_inside_a_network_no_weights_are_read_either():
    block = {"type": "LabPair", "of": {"type": "Timm", **SMALL, "weights": "/no/such.pth"}}
    part = bind(BACKBONES, block, "backbone")
    assert isinstance(without_initial_weights(part)(), LabPair)
    assert part.kwargs["of"].kwargs["weights"] == "/no/such.pth"
    plain = Part(Timm, **SMALL)
    assert without_initial_weights(plain).spelled_out() == plain.spelled_out()


# Other images.


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose images have since been moved to moved/."""
    root = tmp_path_factory.mktemp("runs")
    path = recipe(photos(root), contrastive(QUEUE), evaluations=PROBE)
    assert train(path) == 0
    (root / "moved").mkdir()
    for split in ("train", "val"):
        (root / split).rename(root / "moved" / split)
    return root / "run"


def test_a_run_on_moved_images_is_judged_as_it_was(run):
    ends = RunFolder(run).result()["evaluations"]
    moved = f"data.dataset.root={run.parent / 'moved'}"
    for name in ("knn", "probe"):
        again = evaluate(name, run, moved)
        assert again["metrics"] == ends[name]["metrics"] and again["hash"] == ends[name]["hash"]
    assert evaluate("knn", run, moved, "k=1", "data.workers=1")["protocol"]["k"] == 1


def test_as_many_other_images_of_the_same_names_are_another_protocol(run, tmp_path):
    other = shutil.copytree(run.parent / "moved", tmp_path / "other")
    picture(other / "val" / "a" / "16.png", 4321)
    hashes = [
        evaluate("knn", run, f"data.dataset.root={root}")["hash"]
        for root in (run.parent / "moved", other)
    ]
    assert hashes[0] != hashes[1]


def test_the_images_of_another_config_judge_a_run(run, tmp_path):
    other = recipe(photos(tmp_path, "xy"), {"type": "Rotation"})
    result = evaluate("knn", run, "--data", str(other))
    assert result["of"]["data"]["classes"] == 2 and result["of"]["data"]["train_images"] == 32
    first = evaluate("knn", run, "--data", str(other), "data.clean.ops.crop.size=16")
    assert first["hash"] != result["hash"]
    data = config.load(other).data["data"]
    config.dump({"data": data}, tmp_path / "data_alone.yaml")
    assert evaluate("knn", run, "--data", str(tmp_path / "data_alone.yaml")) == result


@pytest.mark.parametrize("name", ["knn", "linear"])
def test_a_run_that_had_no_labels_is_judged_by_a_set_that_has_them(name, tmp_path):
    for i in range(24):
        picture(tmp_path / "flat" / "train" / f"{i}.png", i)
    path = recipe(tmp_path / "flat", contrastive(QUEUE), evaluations={})
    assert train(path) == 0
    labeled = recipe(photos(tmp_path / "labeled"), {"type": "Rotation"})
    words = ["k=5"] if name == "knn" else ["lrs=[1]", "epochs=1"]
    result = evaluate(name, path.parent / "run", "--data", str(labeled), *words)
    assert result["of"]["data"]["classes"] == 3 and 0 <= result["metrics"]["top1"] <= 100


def test_what_learned_the_runs_classes_is_not_judged_on_others(run, tmp_path, capsys):
    other = recipe(photos(tmp_path, "abd"), {"type": "Rotation"})
    errors = refused(capsys, "evaluate", "probe", run, "--data", other)
    assert "probe learned the classes of" in errors
    assert "3 ('a', 'b', 'c'); these images have others, 3 ('a', 'b', 'd')" in errors
    assert cli.main(["evaluate", "all", str(run), "--data", str(other), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "left out, as they learn beside a run: probe" in said and "knn: top1" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.batch_size=3"], ["data.batch_size", "makes no use", "dataset, clean, workers"]),
        (["data.dataset.rot=x"], ["data.dataset.rot", "unknown key", "root"]),
        (["--data", "/no/such.yaml"], ["no such file", "/no/such.yaml"]),
    ],
)
def test_other_images_that_cannot_be_are_refused(words, said, run, capsys):
    errors = refused(capsys, "evaluate", "knn", run, *words)
    assert all(word in errors for word in said)


def test_an_evaluation_with_images_of_its_own_does_not_take_the_runs(tmp_path, capsys):
    own = {
        "type": "KNN",
        "k": 5,
        "data": {"dataset": {"type": "ImageFolder", "root": str(tmp_path)}},
    }
    path = recipe(photos(tmp_path), contrastive(QUEUE), evaluations={"own": own})
    for words in (["data.dataset.root=/x"], ["--data", path]):
        errors = refused(capsys, "evaluate", "own", path, *words)
        assert "own: has a dataset of its own" in errors
    root = f"data={{dataset: {{root: {photos(tmp_path / 'two', 'ab')}}}}}"
    assert evaluate("own", path, root)["of"]["data"]["classes"] == 2
