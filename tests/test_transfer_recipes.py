"""Recipes of transfer, and the command that runs them."""

import json
from pathlib import Path

import pytest
import tiny_layouts as tiny
import torch

from ssl_zoo import cli, config
from ssl_zoo.backbones import Timm
from ssl_zoo.cli.transfer_command import recipe
from ssl_zoo.config import ConfigError
from ssl_zoo.experiment import Subject
from ssl_zoo.runs import RunFolder
from ssl_zoo.transfer.evaluation import Transfer, task_of
from ssl_zoo.weights import starts

RECIPES = [name for name in config.recipes() if name.startswith("transfer/")]
CLASSES = {"VOC": 20, "COCO": 80, "LVIS": 1203, "Cityscapes": 19, "TreeCrowns": 1}
SMALL = {"layers": [1, 1, 1, 1], "channels": [4, 8, 8, 8]}
# A config whose random weights are judged; nothing of its images is looked at.
CONFIG = f"""
data:
  dataset: {{type: Digits}}
  views: {{ops: {{}}}}
  clean: {{ops: {{normalize: {{type: Normalize, mean: [0.5, 0.4, 0.3], std: [0.2, 0.3, 0.4]}}}}}}
  batch_size: 8
backbone: {{type: Timm, name: resnet18, options: {json.dumps(SMALL)}}}
method: {{type: Rotation}}
optimizer: {{type: SGD, lr: 0.1}}
train: {{epochs: 1, precision: fp32}}
"""
QUICK = """
type: Transfer
model: {type: FasterRCNN, body: c4, min_size: [32], max_size: 48, regions: 8, proposals: 16}
optimizer: {type: SGD, lr: 0.01}
batch_size: 2
steps: 3
"""


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_whole_and_its_model_can_be_built(name):
    """Also by the name alone, from anywhere."""
    (part,) = recipe(Path(name.removeprefix("transfer/")), []).values()
    assert part.target is Transfer and part.beside().every_epochs is None
    given = part.arguments()
    task, kind = task_of(given["dataset"]), given["model"].target
    assert task in kind.tasks
    handed = {"classes": CLASSES[given["dataset"].type], "keypoints": 17}
    with torch.device("meta"):  # without numbers
        backbone = Timm(name="resnet18", options=SMALL)
        model = given["model"](backbone=backbone, **handed)
    assert sum(p.numel() for p in model.parameters()) > sum(
        p.numel() for p in backbone.parameters()
    )
    part()


def test_the_papers_tasks_have_recipes():
    known = {recipe(Path(name), []).popitem()[1].arguments()["dataset"].type for name in RECIPES}
    assert known >= {"VOC", "COCO", "LVIS", "Cityscapes"}
    (voc,) = recipe(Path("voc0712_c4"), []).values()
    assert voc.arguments()["steps"] == 24000
    (small,) = recipe(Path("voc07_c4"), ["steps=9", "schedule={type: Constant}"]).values()
    assert small.arguments()["steps"] == 9


def test_a_recipe_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="type: no transfer"):
        (tmp_path / "own.yaml").write_text("type: KNN\n")
        recipe(tmp_path / "own.yaml", [])
    with pytest.raises((ConfigError, OSError), match="voc0712"):
        recipe(Path("voc0712"), [])
    with pytest.raises(ConfigError, match="nearest:  batch_size"):
        recipe(Path("voc0712_c4"), ["batch_sise=4"])


def test_a_recipes_file_may_have_any_name(tmp_path):
    (tmp_path / "my own.v2.yaml").write_text("_base_: transfer/voc07_c4\n")
    assert list(recipe(tmp_path / "my own.v2.yaml", [])) == ["my_own_v2"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = {"type": "VOC", "root": str(tiny.voc(tmp_path / "voc"))}
    (tmp_path / "small.yaml").write_text(f"{QUICK}dataset: {json.dumps(dataset)}\n")
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


def test_the_command_trains_judges_and_goes_on(place, capsys):
    words = ["transfer", "small.yaml", "run.yaml", "steps=2", "--out", "found.json"]
    assert cli.main([*words, "--device", "cpu"]) == 0
    assert "small: AP" in capsys.readouterr().out
    found = json.loads((place / "found.json").read_text())["small"]
    assert found["main"] == "AP" and found["network"] == "random backbone"
    (folder,) = (place / "runs/transfer/run").glob("small-*/*")
    assert (folder / "best_and_worst.png").exists() and RunFolder(folder).checkpoints()
    saved = RunFolder(folder).checkpoints()[-1].read_bytes()
    assert cli.main([*words, "--device", "cpu"]) == 0  # only judges once more
    assert json.loads((place / "found.json").read_text())["small"] == found
    assert RunFolder(folder).checkpoints()[-1].read_bytes() == saved
    (place / "run.yaml").write_text(f"{CONFIG}seed: 1\n")  # other weights: trained anew
    assert cli.main([*words, "--device", "cpu"]) == 0
    assert len([*folder.parent.iterdir()]) == 2


def test_wrong_words_end_in_a_message(place, capsys):
    for words, said in (
        (["small.yaml", "nowhere"], "nowhere"),
        (["small.yaml", "run.yaml", "model.type=FCN"], "FCN does not learn what VOC has"),
        (["small.yaml", "run.yaml", "--init", "nowhere.pt"], "nowhere.pt"),
        (["small.yaml", "run.yaml", "batch_size=9"], "fewer than batch_size 9"),
    ):
        assert cli.main(["transfer", *words, "--device", "cpu"]) == 2
        assert said in capsys.readouterr().err


def subject(place):
    from ssl_zoo.weights.as_subject import subject_of

    return subject_of(place / "run.yaml", torch.device("cpu"))


def test_another_start_is_the_same_network_from_other_weights(place, monkeypatch):
    cpu, known = torch.device("cpu"), subject(place)
    random = starts.started(known, "random", cpu)
    (name,) = random.networks
    assert name == "random backbone" and random.untrained
    weights = {n: x + 1 for n, x in random.networks[name].state_dict().items()}

    def other(path, device):
        network = starts.started(known, "random", cpu).networks[name]
        network.load_state_dict(weights)
        return Subject(known.sections, {"backbone": network})

    monkeypatch.setattr(starts, "subject_of", other)
    (network,) = starts.started(known, "other.safetensors", cpu).networks.values()
    assert all(torch.equal(x, weights[n]) for n, x in network.state_dict().items())


def test_supervised_weights_come_with_their_own_colors_or_say_why_not(place, monkeypatch):
    cpu, known = torch.device("cpu"), subject(place)
    plain = starts.timm.create_model
    monkeypatch.setattr(
        starts.timm, "create_model", lambda name, pretrained=False, **s: plain(name, **s)
    )
    given = starts.started(known, "supervised", cpu)
    (name,) = given.networks
    assert name.startswith("supervised, timm's resnet18.")
    clean = given.sections["data"].arguments()["clean"].spelled_out()
    assert clean["ops"]["normalize"]["mean"] == [0.485, 0.456, 0.406]

    def unreachable(name, **settings):
        raise OSError("no network here")

    monkeypatch.setattr(starts.timm, "create_model", unreachable)
    with pytest.raises(ValueError, match=r"timm.s weights of resnet18 cannot be had: .*no network"):
        starts._published(known.sections["backbone"])
