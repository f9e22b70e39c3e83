"""ssl-zoo new, and the guides that show what it writes: it trains, and passes its test, at once."""

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_zoo import cli
from ssl_zoo.cli import new_command
from ssl_zoo.cli.new_command import class_name, create
from ssl_zoo.config import ConfigError
from ssl_zoo.testing.ranks import start

ROOT = Path(__file__).resolve().parents[1]
# Of each guide: what it writes, and where its code is.
GUIDES = {
    "replaced_quarter": ("method", "add_a_method.md"),
    "recent_keys": ("memory", "add_a_memory.md"),
    "nearest_mean": ("evaluation", "add_an_evaluation.md"),
    "stripes": ("dataset", "add_a_dataset.md"),
}
NO_CACHE = shutil.ignore_patterns("__pycache__")
METHODS = {f"my_{kind}": kind for kind in new_command.METHODS}


def blocks(guide: str, language: str) -> list[str]:
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def written(folder: Path) -> Path:
    """A method of each kind and what the guides write, with the method's guide's own code."""
    for name, kind in METHODS.items():
        create("method", name, folder, kind)
    for name, (what, _) in GUIDES.items():
        create(what, name, folder)
    return folder


# As plug-ins, in an empty folder.


def use_all(folder: Path) -> None:
    """In a process of its own, whose registries nobody else has."""
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(ROOT)  # for processes of its own
    sys.path.insert(0, str(folder))
    with open("said", "w") as said, contextlib.redirect_stdout(said):
        for name in [*METHODS, *GUIDES]:
            words = ["train", f"{name}.yaml", "--plugin", f"{name}.py", "--device", "cpu"]
            assert cli.main([*words, "train.epochs=0.2", "--no-baselines"]) == 0, name
        for name, (_, guide) in GUIDES.items():
            code = blocks(guide, "python")[1]
            assert "epochs=5" in code
            exec(code.replace("epochs=5", "epochs=0.2"), {"__name__": name})
        tests = [f"test_{name}.py" for name in GUIDES]
        # What is compiled takes the longest, and is of the encoder alone.
        assert pytest.main(["-q", "-p", "no:cacheprovider", "-k", "not compiled", *tests]) == 0


@pytest.fixture(scope="module")
def plug_ins(tmp_path_factory):
    folder = written(tmp_path_factory.mktemp("plug_ins"))
    (folder / "replaced_quarter.py").write_text(blocks("add_a_method.md", "python")[0])
    process = start(use_all, folder)
    process.join(400)
    assert process.exitcode == 0, (folder / "said").read_text()
    return folder


@pytest.mark.parametrize("name", [*METHODS, *GUIDES])
def test_what_is_written_trains_as_a_plug_in(plug_ins, name):
    (result,) = (plug_ins / "runs" / name).glob("seed0/result.json")
    found = json.loads(result.read_text())
    assert found["steps"] > 0 and math.isfinite(found["loss"])


def test_what_is_written_passes_its_test(plug_ins):
    said = (plug_ins / "said").read_text()
    assert int(re.search(r"(\d+) passed", said)[1]) > 30 and "failed" not in said


def test_the_guides_runs_from_python_are_there(plug_ins):
    runs = {path.parent.name for path in (plug_ins / "runs").glob("*in_python/result.json")}
    assert len(runs) == len(GUIDES)


def test_what_is_written_is_linted_and_formatted(tmp_path):
    folder = written(tmp_path)
    # Whose imports are whose, and so their order, depends on where a file lies.
    options = ["--config", str(ROOT / "pyproject.toml"), str(folder)]
    for command in (["format", "--check"], ["check", "--ignore", "I001"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_shows_what_is_written(name, tmp_path):
    what, guide = GUIDES[name]
    create(what, name, tmp_path)
    code, _, test = blocks(guide, "python")
    text = (ROOT / "docs" / guide).read_text()
    assert f"ssl-zoo new {what} {name}\n" in text
    assert test == (tmp_path / f"test_{name}.py").read_text()
    assert blocks(guide, "yaml")[0] == (tmp_path / f"{name}.yaml").read_text()
    template = (tmp_path / f"{name}.py").read_text()
    if what == "method":  # four lines are changed
        assert len(set(template.splitlines()) - set(code.splitlines())) == 4
    else:
        assert code == template


# In a checkout.


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository in which all has been written, and the methods trained."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("ssl_zoo", "configs", "docs", "tools"):
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=NO_CACHE)
    written(root)
    script = (
        "import sys; sys.path[:0] = ['tools', '']\n"
        "import methods_page\n"
        "from ssl_zoo import cli\n"
        f"assert cli.__file__.startswith({str(root)!r})\n"
        "methods_page.write()\n"
        "dataset = '{type: Synthetic, size: 28, channels: 1, num_samples: 32}'\n"
        "quick = ['data.batch_size=16', 'train.epochs=1', 'evaluations.knn=null']\n"
        "for name in sys.argv[1].split():\n"
        "    words = ['train', f'fashion_mnist/{name}', f'data.dataset={dataset}', *quick]\n"
        "    assert cli.main([*words, '--out', f'runs/{name}', '--device', 'cpu']) == 0\n"
        "for name in sys.argv[2].split():\n"
        "    assert cli.main(['train', name, '--check']) == 0\n"
    )
    others = "digits/recent_keys digits/nearest_mean stripes/moco_v2"
    done = subprocess.run(
        [sys.executable, "-c", script, " ".join(METHODS), others],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("name", METHODS)
def test_a_method_in_a_checkout_trains_and_is_on_the_page_and_in_the_study(checkout, name):
    result = json.loads((checkout / "runs" / name / "result.json").read_text())
    assert result["steps"] == 2 and math.isfinite(result["loss"])
    (line,) = (x for x in (checkout / "docs" / "methods.md").read_text().splitlines() if name in x)
    assert f"../ssl_zoo/methods/{name}.py" in line and "| not run |" in line
    arm = f"  {class_name(name)}: {{base: ../fashion_mnist/{name}.yaml}}\n"
    assert (checkout / "configs" / "ablation" / "zoo.yaml").read_text().count(arm) == 1


# Names.


@pytest.mark.parametrize(
    ("what", "name", "message", "nearest"),
    [
        ("method", "MyIdea", "no name for a module", "my_idea"),
        ("method", "my-idea", "no name for a module", "my_idea"),
        ("method", "2ideas", "no name for a module", ""),
        ("method", "_idea", "no name for a module", "idea"),
        ("method", "lambda", "no name for a module", ""),
        ("method", "none", "no name for a module", ""),
        ("method", "../idea", "no name for a module", "idea"),
        ("method", "linear", "mistake its class Linear", ""),
        ("memory", "lookup", "mistake its class Lookup", ""),
        ("method", "rotation", "ssl_zoo.methods.rotation has a method Rotation already", ""),
        ("memory", "mo_co_queue", "has a memory MoCoQueue already", ""),
        ("dataset", "digits", "has a dataset Digits already", ""),
        ("evaluation", "json", "the name of a module that Python has", ""),
    ],
)
def test_a_wrong_or_taken_name_is_refused_and_nothing_is_written(
    what, name, message, nearest, tmp_path
):
    with pytest.raises(ConfigError, match=message) as caught:
        create(what, name, tmp_path)
    assert caught.value.nearest == nearest
    assert not [*tmp_path.rglob("*")]


@pytest.mark.parametrize("taken", ["my_idea.py", "my_idea.yaml", "test_my_idea.py"])
def test_nothing_is_overwritten(taken, tmp_path):
    (tmp_path / taken).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{taken} is there already"):
        create("memory", "my_idea", tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_the_command_says_what_was_written_and_what_to_type_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "memory", "my_keys"]) == 0
    assert capsys.readouterr().out == (
        "wrote my_keys.py\nwrote my_keys.yaml\nwrote test_my_keys.py\nnext:\n"
        "  ssl-zoo train my_keys.yaml --plugin my_keys.py\n  python -m pytest test_my_keys.py\n"
    )
    assert cli.main(["new", "memory", "my_keys"]) == 2
    assert "my_keys.py is there already" in capsys.readouterr().err
    assert cli.main(["new", "memory", "more_keys", "--kind", "masked"]) == 2
    assert "only a method has a kind" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["new", "head", "my_head"])
