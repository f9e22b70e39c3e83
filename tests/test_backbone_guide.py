"""docs/add_a_backbone.md: its network as a plug-in and from Python."""

import json
import os
import re
import sys

import pytest
import torch

from ssl_zoo import cli
from ssl_zoo.config import BACKBONES
from ssl_zoo.system import plugins


@pytest.fixture
def folder(root, tmp_path, monkeypatch):
    """With the guide's files; what a plug-in leaves in this process is taken away again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(plugins, "_files", {})
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(BACKBONES, "_module_dict", dict(BACKBONES.module_dict))
    text = (root / "docs/add_a_backbone.md").read_text(encoding="utf-8")
    for name, language in (("py", "python"), ("yaml", "yaml")):
        (tmp_path / f"small_cnn.{name}").write_text(blocks(text, language)[0])
    yield text
    sys.modules.pop("small_cnn", None)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def test_the_guides_backbone_trains_as_a_plug_in_and_from_python(folder, tmp_path):
    words = re.search(r"^ssl-zoo (train .*)$", folder, flags=re.MULTILINE)[1].split()
    quick = ["train.epochs=0.2", "--no-baselines", "--device", "cpu"]
    assert cli.main([*words, *quick]) == 0
    (result,) = tmp_path.glob("runs/small_cnn/*/result.json")
    assert json.loads(result.read_text())["steps"] == 2
    _, in_python, own_test = blocks(folder, "python")
    names = {}
    exec(in_python.replace("epochs=5", "epochs=0.2, device='cpu'"), names)
    assert names["backbone"](torch.randn(3, 1, 8, 8)).shape == (3, 64)
    exec(own_test, names)
    assert "small_cnn.py" in os.environ[plugins.VARIABLE]
