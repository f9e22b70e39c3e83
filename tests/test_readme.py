"""What the README and docs say is what is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ssl_zoo import cli, config, experiment
from ssl_zoo.cli.command_line import parsed
from ssl_zoo.config import MEMORY, bind
from ssl_zoo.study.grid import expand

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {
    "CONFIG": "configs/digits/moco_v2.yaml",
    "GRID": "configs/ablation/momentum.yaml",
    "NAME": "fashion_mnist",
}


def blocks(language: str, text: str = README) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def commands() -> list[tuple[str, str]]:
    """(file, command) of every ssl-zoo command in an unmarked code block."""
    found = []
    for path in DOCS:
        for block in blocks("", path.read_text()):
            lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
            found += [(path.name, line) for line in lines if line.startswith("ssl-zoo ")]
    return found


def test_the_whole_rotation_example_is_the_file_and_its_config():
    *_, code = blocks("python")
    assert code == (ROOT / "ssl_zoo" / "methods" / "rotation.py").read_text()
    assert (ROOT / "configs" / "fashion_mnist" / "rotation.yaml").read_text() in README


def test_the_three_mechanisms_are_valid_blocks():
    found = re.findall(r"memory: (\{type: \w+[^#\n]*\})", "\n".join(blocks("yaml")))
    memories = [bind(MEMORY, config.loads(f"m: {text}", "README").data["m"]) for text in found]
    assert {part.type for part in memories} == {"MoCoQueue", "MemoryBank", "EndToEnd"}


@pytest.mark.parametrize(("file", "command"), commands(), ids=lambda x: str(x)[:60])
def test_every_command_in_the_docs_is_accepted(file, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [EXAMPLES.get(word, word) for word in shlex.split(command)[1:]]
    arguments = parsed(words)
    if words[0] == "train":
        experiment.parse(config.load(arguments.config, arguments.overrides))
    elif words[0] == "ablate":
        study = expand(arguments.grid, arguments.out, arguments.overrides, arguments.base)
        assert study.runs


def test_the_config_error_shown_is_the_one_given(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (shown,) = (b for b in blocks("") if "error:" in b)
    command, _, message = shown.partition("\n")
    assert cli.main(shlex.split(command.removeprefix("$ "))[1:]) == 2
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    missing = [x for x in links if not x.startswith("http") and not (path.parent / x).exists()]
    assert not missing


def test_every_config_folder_and_grid_is_named():
    text = "\n".join(path.read_text() for path in DOCS)
    for grid in (ROOT / "configs" / "ablation").glob("*.yaml"):
        assert f"`{grid.stem}`" in text


def test_no_page_holds_the_marks_of_an_unfinished_merge():
    pages = [*DOCS, ROOT / "CHANGELOG.md", *sorted((ROOT / "configs").rglob("*.yaml"))]
    marks = re.compile("^(<<<<<<<|=======|>>>>>>>)( |$)", flags=re.MULTILINE)
    assert not [path.name for path in pages if marks.search(path.read_text())]
