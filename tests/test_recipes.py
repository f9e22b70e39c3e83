"""Recipes by name, and a config shown as it is run."""

from pathlib import Path

import pytest

from ssl_zoo import config, experiment
from ssl_zoo.cli.command_line import main
from ssl_zoo.study.grid import expand


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_recipe_is_found_by_its_name_from_anywhere(capsys):
    assert main(["train", "digits/moco_v2", "--check"]) == 0
    assert capsys.readouterr().out == "digits/moco_v2: ok\n"


def test_a_grid_is_found_by_its_name_too():
    study = expand("ablation/momentum")
    assert study.name == "momentum" and study.out == Path("runs/ablation/momentum")


def test_a_file_of_ones_own_goes_before_a_recipe(tmp_path, capsys):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "moco_v2").write_text("sed: 1")
    assert main(["train", "digits/moco_v2", "--check"]) == 2
    assert "digits/moco_v2:1: sed: unknown key" in capsys.readouterr().err


def test_a_recipe_is_a_base_by_its_name_unless_a_file_has_it(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("_base_: digits/moco_v2\nseed: 5\n")
    assert config.load(own).data == config.load("digits/moco_v2").data | {"seed": 5}
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "moco_v2").write_text("seed: 4\nbest: null\n")
    assert config.load(own).data == {"seed": 5, "best": None}


def test_a_recipe_that_is_not_there_names_the_nearest(capsys):
    assert main(["train", "digits/moco", "--check"]) == 2
    assert "nearest:  digits/moco_v2" in capsys.readouterr().err


def test_recipes_are_listed_with_what_they_are(capsys):
    assert main(["list", "configs"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["imagenet/moco_v2"].strip().startswith("MoCo v2 (arXiv:2003.04297)")
    assert lines.keys() == config.recipes().keys() and not any("_base_" in name for name in lines)


@pytest.mark.parametrize("name", ["digits/moco_v2", "imagenet/dino", "cifar10/cmc"])
def test_what_is_shown_is_the_config_itself(name, tmp_path, capsys):
    assert main(["show", name, "seed=3"]) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    shown, meant = (
        experiment.parse(config.load(*of)).spelled_out()
        for of in (["shown.yaml"], [name, ["seed=3"]])
    )
    assert shown == meant


def test_each_line_says_where_it_comes_from(tmp_path, capsys):
    (tmp_path / "own.yaml").write_text(f"_base_: {config.find('digits/moco_v2')}\nseed: 4\n")
    assert main(["show", "own.yaml", "method.memory.size=77"]) == 0
    lines = (line.partition("#") for line in capsys.readouterr().out.splitlines())
    origins = {key.strip(): origin.strip() for key, _, origin in lines}
    assert origins["seed: 4"] == "own.yaml:2"
    assert origins["size: 77"] == "override 'method.memory.size=77'"
    assert origins["shuffle_bn: true"] == "default"
    assert origins["temperature: 0.2"] == "configs/digits/moco_v2.yaml:7"
    assert origins["type: Digits"].startswith("configs/_base_/digits.yaml:")


def test_a_name_with_a_dot_is_one_level(capsys):
    assert main(["show", "digits/moco_v2"]) == 0
    assert "\n  optimizer.lr:\n    type: Cosine " in capsys.readouterr().out
