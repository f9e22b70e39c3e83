"""tools/new_method.py writes methods that train, in a copy of the repository."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

import new_method

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
QUICK = ["data.dataset={type: Synthetic, size: 28, channels: 1, num_samples: 32}"]
QUICK += ["data.batch_size=16", "train.epochs=1", "evaluations.knn=null"]

# One process for all: torch takes seconds to import. The guide's method is written over a template.
SCRIPT = """
import json, sys
from pathlib import Path

import new_method

for kind in new_method.KINDS:
    new_method.create(f"my_{kind}", kind)
new_method.create("replaced_quarter", "predictive")
for path, text in json.loads(sys.argv[1]).items():
    Path(path).write_text(text)

import methods_page
from ssl_zoo import cli

assert cli.__file__.startswith(str(new_method.ROOT))
methods_page.write()
for config in sys.argv[2].split():
    words = ["train", f"configs/fashion_mnist/{config}.yaml", *sys.argv[3:]]
    assert cli.main([*words, "--out", f"runs/{config}", "--device", "cpu"]) == 0
"""
NAMES = ["my_contrastive", "my_predictive", "my_masked", "replaced_quarter"]


def copy(folder: Path) -> Path:
    for name in ("ssl_zoo", "configs", "docs", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def block(language: str) -> str:
    """The guide's first of a language: the method's file, and its config."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)
    return found[0]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy with a method of each kind and the guide's, each trained for two steps."""
    root = copy(tmp_path_factory.mktemp("clone"))
    guide = {
        "ssl_zoo/methods/replaced_quarter.py": block("python"),
        "configs/fashion_mnist/replaced_quarter.yaml": block("yaml"),
    }
    words = [json.dumps(guide), " ".join(NAMES), *QUICK]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = ['tools', '']\n{SCRIPT}", *words],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_trains(clone, name):
    result = json.loads((clone / "runs" / name / "result.json").read_text())
    assert result["steps"] == 2 and math.isfinite(result["loss"])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_on_the_page_and_in_the_study(clone, name):
    (line,) = (x for x in (clone / "docs" / "methods.md").read_text().splitlines() if name in x)
    assert f"../ssl_zoo/methods/{name}.py" in line and "| not run |" in line
    arm = f"  {new_method.class_name(name)}: {{base: ../fashion_mnist/{name}.yaml}}\n"
    assert (clone / "configs" / "ablation" / "zoo.yaml").read_text().count(arm) == 1


def test_what_is_written_is_formatted(clone):
    paths = [str(clone / "ssl_zoo" / "methods" / f"{name}.py") for name in NAMES]
    options = ["--config", str(ROOT / "pyproject.toml"), *paths]
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_guide_changes_four_lines_of_what_the_tool_writes():
    assert "python tools/new_method.py replaced_quarter --kind predictive" in GUIDE
    template = (new_method.TEMPLATES / "predictive.py").read_text()
    template = template.replace("NewMethod", new_method.class_name("replaced_quarter"))
    gone = set(template.splitlines()) - set(block("python").splitlines())
    assert len(gone) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MyIdea", "no name for a module"),
        ("my-idea", "no name for a module"),
        ("2ideas", "no name for a module"),
        ("_idea", "no name for a module"),
        ("lambda", "no name for a module"),
        ("none", "no name for a module"),
        ("linear", "class Linear, which its own file would mistake"),
        ("encoder", "class Encoder, which its own file would mistake"),
        ("../idea", "no name for a module"),
        ("rotation", "rotation.py is there already"),
        ("demo", "demo.yaml is there already"),
        ("jig_saw", "has a JigSaw already"),
    ],
)
def test_a_wrong_or_taken_name_is_refused_and_nothing_is_written(name, message, tmp_path):
    methods, configs = tmp_path / "ssl_zoo" / "methods", tmp_path / "configs" / "fashion_mnist"
    for folder in (methods, configs):
        folder.mkdir(parents=True)
    (methods / "rotation.py").touch()
    (methods / "puzzles.py").write_text("class JigSaw(Method):\n")
    (configs / "demo.yaml").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, FileExistsError), match=message):
        new_method.create(name, "predictive", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_line_says_what_is_wrong(capsys):
    assert new_method.main(["rotation"]) == 2
    assert "rotation.py is there already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        new_method.main(["my_idea", "--kind", "magic"])
