"""Figures in README.md and docs stand in marked blocks, and are what results/ says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import kept_study
import pytest

from ssl_zoo.config import ConfigError

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

import results_blocks
from results_blocks import END, render


@pytest.fixture
def folder(tmp_path):
    kept_study.write(tmp_path, kept_study.fig3())
    return tmp_path


def block(folder, asked, inside=""):
    """What is rendered between the marks."""
    text = render(f"<!-- results: {asked} -->{inside}{END}", "page.md", folder)
    assert text.endswith(END)
    return text.removesuffix(END).partition(" -->")[2]


def error_of(folder, asked):
    with pytest.raises(ConfigError) as caught:
        block(folder, asked)
    return str(caught.value)


@pytest.mark.parametrize("page", results_blocks.pages(), ids=lambda path: path.name)
def test_the_pages_have_what_would_be_rendered(page):
    text = page.read_text(encoding="utf-8")
    assert render(text, page.name) == text, "run: python tools/results_blocks.py"


def test_pictures_of_kept_studies_are_drawn_from_what_is_kept():
    for picture, kept in results_blocks.figures().items():
        again = "run: python tools/results_blocks.py"
        assert results_blocks.drawn_from(picture) == results_blocks.source(kept), again


def test_a_number_stays_in_its_sentence(folder):
    text = f"MoCo has <!-- results: fig3.json number MoCo, 32 -->old{END} here."
    rendered = render(text, "page.md", folder)
    assert rendered == text.replace("old", "67.00 ± 4.90")
    assert render(rendered, "page.md", folder) == rendered
    assert block(folder, "fig3.json number MoCo, 4096 | images_per_s") == "800"
    assert block(folder, "fig3.json number end-to-end, 31 | peak_memory_gb") == "1.50 ± 0.00"


def test_a_verdict_is_the_sentence_of_the_paired_runs(folder):
    planned = block(folder, "fig3.json verdict MoCo, 4096 > MoCo, 32")
    assert planned.startswith("MoCo, 4096 is better than MoCo, 32 by 3.0")
    assert planned.endswith("p 0.023")  # 2 / 2^8, of three contrasts
    exploratory = block(folder, "fig3.json verdict MoCo, 32 > end-to-end, 31")
    assert "end-to-end, 31 is better than MoCo, 32 by 3.0" in exploratory
    assert exploratory.endswith("p 0.0078 (exploratory)")
    assert "cannot tell" in block(folder, "fig3.json verdict MoCo, 4096 > end-to-end, 31")
    baseline = block(folder, "fig3.json verdict MoCo, 32 > raw pixels")
    assert baseline.startswith("MoCo, 32 is better than raw pixels by 47.0 points (")
    with pytest.raises(ConfigError, match="no arm, or no point of one"):
        block(folder, "fig3.json verdict MoCo, 32 > raw pixel")


def test_a_table_has_a_row_for_each_point(folder):
    table = block(folder, "fig3.json table | knn, seconds").strip().splitlines()
    assert table[0] == "|  | seeds | knn, % | seconds |"
    assert "| MoCo, 4096 | 8 | 70.00 ± 4.88 | 80.50 ± 0.53 |" in table
    assert len(table) == 2 + 4
    everything = block(folder, "fig3.json table").strip().splitlines()[0]
    assert everything.count("|") == 8 and "| images/s | peak GB |" in everything


def test_baselines_that_are_asked_for_are_rows_of_the_table(folder):
    table = block(folder, "fig3.json table raw pixels | knn").strip().splitlines()
    assert len(table) == 2 + 4 + 1 and table[-1].startswith("| raw pixels | 1 | 20.00")
    assert "no baseline of knn" in error_of(folder, "fig3.json table raw pixel | knn")


def test_differences_of_several_pairs_in_several_quantities(folder):
    pairs = "MoCo, 4096 > MoCo, 32; MoCo, 32 > raw pixels"
    table = block(folder, f"fig3.json differences {pairs} | knn").strip().splitlines()
    assert table[0] == "|  | knn, % |" and len(table) == 2 + 2
    assert table[2] == "| MoCo, 4096 less MoCo, 32 | +3.0 (2.9 to 3.1) |"
    assert table[3].startswith("| MoCo, 32 less raw pixels | +47.0 (")


def test_the_main_evaluation_over_epochs(folder):
    lines = block(folder, "fig3.json epochs MoCo, 4096; end-to-end, 31").strip().splitlines()
    assert lines[0] == "| epochs | 1 | 2 |"
    assert lines[2:] == ["| MoCo, 4096 | 70.50 | 70.00 |", "| end-to-end, 31 | 70.50 | 70.00 |"]
    assert "nobody" in error_of(folder, "fig3.json epochs MoCo, 4096; nobody")


def test_a_study_is_table_verdicts_and_origin(folder):
    text = block(folder, "fig3.json study", "\n")
    assert text.startswith("\n\n|") and text.count("\n- ") == 3
    origin = "`ssl-zoo ablate configs/ablation/fig3.yaml`, 2026-11-28, commit 0123456"
    assert f"From {origin}, 2 cores, a <fake>, torch 2.15.0, bf16." in text


def test_runs_that_are_not_finished_are_not_counted(folder):
    data = kept_study.fig3()
    for run in data["runs"]:
        if run["arm"] == "MoCo" and run["seed"] == 7:
            run["state"], run["scores"] = "unfinished", {}
        if run["arm"] == "memory bank":
            run["state"], run["scores"] = "not run", {}
    kept_study.write(folder, data)
    assert "| MoCo, 32 | 7 | 66.00 ± 4.32 |" in block(folder, "fig3.json table | knn")
    assert "without seed 7" in block(folder, "fig3.json verdict MoCo, 4096 > MoCo, 32")
    assert block(folder, "fig3.json number memory bank, 4096") == "not run yet"


def test_what_was_judged_in_another_way_is_not_compared(folder):
    data = kept_study.fig3()
    data["runs"][0]["made_otherwise"] = {"knn": {"protocol": "KNN: k 1", "hash": "3c4d"}}
    kept_study.write(folder, data)
    assert "without seed 0" in block(folder, "fig3.json verdict MoCo, 4096 > MoCo, 32")


def test_what_was_not_run_has_its_command_and_no_number(tmp_path):
    for asked in ("fig3.json number MoCo, 32", "fig3.json study", "fig3.json table"):
        command = "ssl-zoo ablate configs/ablation/fig3.yaml"
        assert block(tmp_path, asked) == f"not run yet: `{command}`"


def test_mistakes_are_named_with_the_page(folder):
    assert "page.md" in error_of(folder, "fig3.json nunber MoCo, 32")
    assert "nearest:  number" in error_of(folder, "fig3.json nunber MoCo, 32")
    assert "nearest:  MoCo, 32" in error_of(folder, "fig3.json number MoCo, 33")
    assert "nearest:  knn" in error_of(folder, "fig3.json number MoCo, 32 | kn")
    assert "one quantity at most" in error_of(folder, "fig3.json number MoCo, 32 | knn, seconds")
    assert "nearest:  fig3.json" in error_of(folder, "fig4.json table")
    for text in (f"<!-- results: fig3.json origin -->{END}{END}", "<!-- results: fig3.json origin"):
        with pytest.raises(ConfigError, match="not closed"):
            render(text, "page.md", folder)


def test_a_file_that_is_no_kept_study_is_an_error(folder):
    (folder / "fig3.json").write_text(json.dumps({"zoo": {}}))
    error = error_of(folder, "fig3.json table")
    assert "fig3.json: no kept study" in error and "the keys zoo" in error and "format 1" in error
    (folder / "fig3.json").write_text("{")
    assert "not JSON" in error_of(folder, "fig3.json table")


def test_a_value_comes_from_a_file_of_any_form(folder):
    (folder / "floor.json").write_text(json.dumps({"by arm": {"raw pixels": 18.06}}))
    assert block(folder, "floor.json value by arm / raw pixels") == "18.06"
    assert "nearest:  raw pixels" in error_of(folder, "floor.json value by arm / raw pixel")
    assert "none at all" in error_of(folder, "floor.json value by arm / raw pixels / top1")


def test_a_new_kind_is_a_function(folder, monkeypatch):
    monkeypatch.setitem(results_blocks.KINDS, "seeds", lambda kept, of, q: str(kept.data["seeds"]))
    assert block(folder, "fig3.json seeds") == "[0, 1, 2, 3, 4, 5, 6, 7]"


MEASURED = {
    "command": "python benchmarks/floor.py",
    "commit": "0123456",
    "date": "2026-11-28",
    "machine": "2 cores of a <fake>",
    "threads": 2,
    "tables": {
        "queue": {
            "title": "The queue",
            "columns": {"K": "", "queue, ms": ".1f", "of the step": ".1%"},
            "rows": [[1024, 4.62, 0.00412], [65536, 51.0, None]],
            "about": "Batch 256.",
            "medians": "3 rounds",
        }
    },
}


def test_what_a_benchmark_has_measured(folder):
    (folder / "speed_floor.json").write_text(json.dumps(MEASURED))
    assert block(folder, "speed_floor.json measured queue", "\n").strip().splitlines() == [
        "| K | queue, ms | of the step |",
        "| --- | --- | --- |",
        "| 1024 | 4.6 | 0.4% |",
        "| 65536 | 51.0 |  |",
        "",
        "Batch 256. Medians of 3 rounds.",
    ]
    assert block(folder, "speed_floor.json cell queue / 1024 / of the step") == "0.4%"
    told = "`python benchmarks/floor.py`, commit 0123456, 2026-11-28; 2 cores of a <fake>"
    assert block(folder, "speed_floor.json told") == told
    assert "nearest:  queue" in error_of(folder, "speed_floor.json measured queu")
    assert "nearest:  1024" in error_of(folder, "speed_floor.json cell queue / 1025 / K")
    no_column = "speed_floor.json cell queue / 1024 / of step"
    assert "nearest:  of the step" in error_of(folder, no_column)
    assert "no such table" in error_of(folder, "fig3.json measured queue")


def test_what_was_not_measured_has_its_command(tmp_path):
    command = "python benchmarks/peers.py --out results/speed_peers.json"
    assert block(tmp_path, "speed_peers.json measured summary") == f"not run yet: `{command}`"
    for name in results_blocks.kept_results.SPEED:
        assert (results_blocks.ROOT / "benchmarks" / f"{name}.py").exists()


def test_rows_and_their_span(folder):
    rows = [{"kind": "normal", "found": 80.5}, {"kind": "skewed", "found": 77.0}]
    (folder / "kinds.json").write_text(json.dumps({"something": rows, "seed": 0}))
    table = block(folder, "kinds.json rows something").strip().splitlines()
    assert table[0] == "| kind | found |" and table[2:] == [
        "| normal | 80.5 |",
        "| skewed | 77.0 |",
    ]
    assert block(folder, "kinds.json span something / found") == "77.0 to 80.5"
    assert "nearest:  something" in error_of(folder, "kinds.json rows somethin")
    assert "nearest:  found" in error_of(folder, "kinds.json span something / foun")


def test_no_speed_is_typed_by_hand():
    """On the page of speeds a number with a unit of what is measured stands in a block."""
    units = "%|x|images/s|us|ms|s|GB|MB|GFLOP|GFLOP/s|times|points"
    typed = re.compile(f"[0-9] ?({units})(?![0-9a-z/])(?! [0-9])")
    for figure in ("took 3.5 ms", "1.3x", "within 5%", "142 images/s.", "2 GB"):
        assert typed.search(figure)
    assert not typed.search("ResNet-18 at 32 x 32") and not typed.search("3 samples")
    page = (results_blocks.ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for line in results_blocks.BLOCK.sub("", page).splitlines():
        assert not typed.search(line), f"a figure that is in no file of results: {line}"
