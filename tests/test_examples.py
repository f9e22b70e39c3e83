"""The examples, and the code in docs/python.md and the README, run as they stand but shorter."""

import re
import runpy
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def python_blocks(path):
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_parts_in_a_loop_of_ones_own_learn_to_tell_the_positive(capsys):
    runpy.run_path(str(EXAMPLES / "own_loop.py"))
    said = capsys.readouterr().out
    assert int(said.split()[-1].removesuffix("%")) > 30  # of 1025 keys; by chance a tenth of one


@pytest.fixture
def executed(tmp_path):
    """The notebook's cells after it has run over 32 pictures."""
    folder = tmp_path / "pictures" / "more"
    folder.mkdir(parents=True)
    for number in range(32):
        pixels = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save((folder if number % 2 else folder.parent) / f"{number}.png")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    first = notebook.cells[1]
    first.source = first.source.replace("size, epochs = 64, 20", "size, epochs = 16, 1")
    assert "epochs = 16, 1" in first.source
    return (
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}})
        .execute()
        .cells
    )


def test_the_notebook_runs_and_its_progress_is_one_line(executed):
    train = next(cell for cell in executed if "run = sz.train(" in cell.source)
    shown = [o["data"]["text/plain"] for o in train.outputs if o.output_type == "display_data"]
    assert sum("step 2/2" in text for text in shown) == 1
    assert any("finished; results in runs/pictures" in text for text in shown)
    pictures = [
        o for cell in executed for o in cell.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    assert len(pictures) == 2  # the loss, and what looks alike


def test_the_readme_begins_with_a_run_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = python_blocks(ROOT / "README.md")[0]
    for long, short in (
        ("size=4096", "size=64"),
        ('backbone="resnet18"', 'backbone="resnet10t"'),
        ("size=32", 'size=32, batch_size=12, evaluations={"knn": {"k": 2}}'),
        ("epochs=5", "epochs=1"),
        ('"linear"', '"linear", epochs=2'),
    ):
        assert long in code
        code = code.replace(long, short)
    images = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8)
    labeled = torch.utils.data.TensorDataset(images, torch.arange(24) % 2)
    names = {"train_set": labeled, "test_set": labeled}
    exec(code, names)
    assert names["run"].result["steps"] == 2 and "knn" in names["run"].result["evaluations"]
    assert names["backbone"].embed(images[:3]).shape == (3, 512)


def test_the_python_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in python_blocks(ROOT / "docs" / "python.md"):
        exec(block.replace("epochs=1", "epochs=0.2"), names)
    assert names["features"].shape == (4, 32)
