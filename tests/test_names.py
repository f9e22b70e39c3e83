"""Whatever a user has named is shown and written as it is, and interpreted by nothing."""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import kept_study
import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib.text import Text
from PIL import Image

from ssl_zoo import cli, config
from ssl_zoo.config import ConfigError
from ssl_zoo.runs import RunFolder
from ssl_zoo.study import grid
from ssl_zoo.study.report import Report, figure, kept, page, print_report, prose, tables
from ssl_zoo.system.files import write_json, write_text
from ssl_zoo.system.text import PlainConsole, one_line, show, visible

BYTE = os.fsdecode(b"caf\xe9")  # no UTF-8, as a file's name may be
NAMES = {  # as they are -> as a person sees them
    "[bold]MoCo[/]": "[bold]MoCo[/]",
    "<b>a</b> &amp; b": "<b>a</b> &amp; b",
    "a|b *c* `d` [e](f) ~~g~~": "a|b *c* `d` [e](f) ~~g~~",
    "_hidden $x^2$ 100% {} :cat:": "_hidden $x^2$ 100% {} :cat:",
    'größe, "猫"': 'größe, "猫"',
    f"{BYTE} \x1b[31m": r"caf\xe9 \x1b[31m",
}


def text_file(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")


def content(file: io.TextIOWrapper) -> str:
    file.flush()
    return file.buffer.getvalue().decode(file.encoding)


# ---------------------------------------------------------------- on a screen, in a file


@pytest.mark.parametrize("name, seen", NAMES.items())
def test_a_name_is_shown_as_it_is_but_for_what_is_no_character_or_moves_a_cursor(name, seen):
    assert visible(name) == visible(seen) == one_line(name) == seen
    assert visible(f"a\n{name}") == f"a\n{seen}" and one_line(f"a\n{name}") == rf"a\n{seen}"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_screen_of_any_encoding_shows_every_name(terminal):
    for encoding, shown in (("utf-8", "größe – [bold] :cat:"), ("ascii", r"gr\xf6\xdfe \u2013")):
        plain, rich = text_file(encoding), text_file(encoding)
        show(f"größe – [bold] :cat: {BYTE}\x1b", plain)
        console = PlainConsole(file=rich, force_terminal=terminal, width=99)
        console.print(f"größe – [bold] :cat: {BYTE}\x1b", style="bold")
        for said in map(content, (plain, rich)):
            assert shown in said and r"[bold] :cat: caf\xe9\x1b" in said


@pytest.mark.parametrize("name", [*NAMES, "a\nb", "\x85", "\u2028", "\ud800", "- a", "1e3", " "])
def test_files_give_names_back_as_they_were(name, tmp_path):
    path = tmp_path / "file"
    data = {"block": {name: name}, "items": [{"name": name}]}
    write_json(path, data)
    assert json.loads(path.read_text(encoding="utf-8")) == data
    config.dump(data, path)
    assert config.load(path).data == data
    folder = RunFolder(tmp_path)
    folder.record({"name": name, "step": 1})
    assert folder.metrics() == [{"name": name, "step": 1}]


def test_yaml_and_its_readers_see_letters_and_not_their_numbers():
    assert config.dump({"größe": "猫"}) == "{größe: 猫}\n"


def test_an_override_may_hold_the_bytes_of_a_path_but_no_control_character(tmp_path):
    write_text(tmp_path / "config.yaml", "a: 1")
    loaded = config.load(tmp_path / "config.yaml", [f"root=/data/{BYTE}"])
    assert loaded.data["root"] == f"/data/{BYTE}"
    with pytest.raises(ConfigError, match="root: not YAML: unacceptable character #x001b"):
        config.load(tmp_path / "config.yaml", ["root=/data/\x1b"])


def test_arms_of_any_alphabet_have_folders_of_their_own():
    assert grid.slug("größe 猫_2") == "größe-猫-2" and grid.slug("MoCo, 4096") == "moco-4096"


def test_no_part_of_the_package_prints_on_its_own():
    found = []
    for path in sorted(Path(cli.__file__).parents[1].rglob("*.py")):
        called = [c.func for c in ast.walk(ast.parse(path.read_text())) if isinstance(c, ast.Call)]
        if {"print", "Console"} & {getattr(name, "id", "") for name in called}:
            found.append(path.name)
    assert found == ["text.py"]


# ---------------------------------------------------------------- in a report


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    """Of an arm of each name, the first and the best of them on a sweep too."""
    runs = [
        kept_study.run(name, x, seed, 50.0 + seed - i)
        for i, name in enumerate(NAMES)
        for x in ([*NAMES][:3] if i == 0 else [next(iter(NAMES))])
        for seed in (0, 1)
    ]
    data = kept_study.study("of_names", runs, x="$K$|_k_", command="ssl-zoo `x` '<b>\x1b'")
    folder = tmp_path_factory.mktemp("names")
    table = kept.load(kept_study.write(folder, data))
    return Report(table, prose.below_table(table))


def arms(cells: list[str], table) -> list[str]:
    """Of the first column, without baselines."""
    width = len(tables.cells(table)[0])
    return cells[::width][-len(table.rows) :]


class Cells(HTMLParser):
    """What stands in the cells of tables, and which elements there are."""

    def __init__(self, text: str):
        super().__init__()
        self.cells, self.tags, self.inside = [], set(), False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside &= tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data


def test_markdown_makes_nothing_of_names(report):
    text = tables.markdown(report.table, report.sections)
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    seen = Cells(reader.render(text))
    first = len(tables.cells(report.table)[0])
    wanted = [NAMES[row.arm] for row in report.table.rows]
    assert arms(seen.cells[:-first] + seen.cells[-first:], report.table) == wanted
    assert "$K$|_k_" in seen.cells and not seen.tags & {"b", "a", "em", "s", "img"}
    assert r"<code>ssl-zoo `x` '&lt;b&gt;\x1b'</code>" in reader.render(text)


def test_the_page_makes_nothing_of_names(report, tmp_path):
    picture = tmp_path / "figure.png"
    Image.new("L", (1, 1)).save(picture)
    text = page.render(report.table, report.sections, picture)
    seen = Cells(text.partition("</table>")[0])
    assert arms(seen.cells, report.table) == [NAMES[row.arm] for row in report.table.rows]
    assert "b" not in Cells(text).tags and "\x1b" not in text
    write_text(tmp_path / "report.html", text)


def test_the_csv_has_each_name_in_one_cell(report, tmp_path):
    tables.write_csv(report.table, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[-len(report.table.rows) :]
    written = [row.arm.replace(BYTE, r"caf\udce9") for row in report.table.rows]
    assert [row["arm"] for row in rows] == written
    assert rows[0]["$K$|_k_"] == "[bold]MoCo[/]"


def test_the_figure_sets_no_formulas_and_leaves_no_name_out(report, tmp_path):
    drawn = figure._swept(report.table)
    legend = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert len([name for name in legend if name != "one seed"]) == len(NAMES)
    figure.draw(report.table, tmp_path / "figure.png")
    texts = [text for text in drawn.findobj(Text) if "x^2" in text.get_text()]
    assert texts and not any(text._preprocess_math(text.get_text())[1] for text in texts)
    assert "_hidden $x^2$ 100%" in texts[0]._preprocess_math(texts[0].get_text())[0]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_terminal_makes_nothing_of_names(report, encoding):
    screen = text_file(encoding)
    print_report(report, PlainConsole(file=screen, force_terminal=True, width=400))
    said = content(screen)
    for seen in NAMES.values():
        assert seen.encode(encoding, "backslashreplace").decode(encoding) in said
    assert not re.search("\x1b\\[31m", said)


# ---------------------------------------------------------------- from a folder of images to a run

CONFIG = """
data:
  dataset: {type: ImageFolder}
  views: {count: 2, ops: {crop: {type: RandomResizedCrop, size: 32}}}
  clean: {ops: {resize: {type: Resize, size: 32}, crop: {type: CenterCrop, size: 32}}}
  batch_size: 8
  workers: 0
backbone: {type: TinyNet, in_chans: 3}
method:
  type: Contrastive
  head: {type: Linear, out_features: 8}
  memory: {type: MoCoQueue, size: 16}
  loss: {type: InfoNCE, temperature: 0.1}
optimizer: {type: SGD, lr: 0.1}
train: {epochs: 1, precision: fp32}
evaluations: {knn: {type: KNN, k: 5}}
"""


@pytest.fixture
def images(tmp_path) -> Path:
    """A data set in which everything has a name of its own kind; its path is no UTF-8."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name in ("a", f"[b] <i> {BYTE}"):
            folder = tmp_path / BYTE / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{BYTE}\n\x1b[31m{i}.png")
    write_text(tmp_path / "config.yaml", CONFIG)
    return tmp_path / BYTE


def command(*words: str | Path, encoding: str = "utf-8") -> tuple[int, str, str]:
    """The exit status, standard output and standard error of a command."""
    out, err = text_file(encoding), text_file(encoding)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(list(map(str, words)))
    return status, content(out), content(err)


def test_a_run_works_in_any_folder_on_images_of_any_name_and_a_terminal_of_any_kind(images):
    run = images.parent / f"[bold]{BYTE}" / "seed0"
    words = ("train", images.parent / "config.yaml", f"data.dataset.root={images}", "--out", run)
    status, out, _ = command(*words, encoding="ascii")
    assert status == 0 and r"[bold]caf\xe9/seed0: finished; results in " in out
    assert r"[bold]caf\xe9/seed0: starting" in (run / "log.txt").read_text(encoding="utf-8")
    assert RunFolder(run).config()["data"]["dataset"]["root"] == str(images)
    status, out, _ = command("evaluate", "all", run, "--out", run / f"{BYTE}.json")
    assert status == 0 and r"caf\xe9/seed0/checkpoints/step_00000002.pt, step 2" in out
    result = json.loads((run / f"{BYTE}.json").read_text(encoding="utf-8"))
    assert result["source"]["path"].startswith(str(run))
    status, out, _ = command("data", "pack", run / "config.yaml", "--out", images / "pack")
    assert status == 0 and r"caf\xe9/pack/train.pack: 16 images" in out
    packed = f"data.dataset={{type: Packed, path: '{images / 'pack'}'}}"
    status, out, _ = command(*words[:2], packed, "--out", images / "packed")
    assert status == 0 and "finished" in out


def test_a_file_of_any_name_that_is_no_image_is_named_on_the_screen_and_in_error_txt(images):
    (images / "train" / "a" / f"{BYTE}\n\x1b[31m.jpg").write_bytes(b"x")
    run = images.parent / "run"
    words = ("train", images.parent / "config.yaml", f"data.dataset.root={images}", "--out", run)
    status, _, err = command(*words)
    assert status == 2 and err.count("\n") == 1
    assert r"caf\xe9/train/a/caf\xe9\n\x1b[31m.jpg: cannot be decoded" in err
    assert RunFolder(run).error().startswith(err.removeprefix("error: ").strip())


def test_an_error_that_cannot_be_written_down_is_still_the_error(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "error.txt").mkdir()  # what takes no text
    folder.write_error("why")
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(IsADirectoryError, match=r"error\.txt"):
        write_text(tmp_path / "error.txt", "why")
    RunFolder(tmp_path / "config.yaml" / "run").write_error("why")  # no folder can be made
