"""A study boiled down to one file, and back."""

import json

import pytest
from test_ablation import Study, measured  # noqa: F401  (a fixture)

from ssl_zoo.config import ConfigError
from ssl_zoo.study import report
from ssl_zoo.study.report import kept, results, tables

# Two classes of 50 images, of which 40 and 41 are named right: 81%, as the fake trainer has it.
HITS = [(label, label if i < 40 + label else 9) for label in (0, 1) for i in range(50)]
ROWS = "index,label,prediction,score\n" + "".join(f"0,{a},{b},0.9\n" for a, b in HITS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, measured):  # noqa: F811
    """A study of which one run has failed, its file, and what that holds."""
    study = Study(tmp_path_factory.mktemp("whole"))
    study.fake("moco/256/seed1: out of memory")
    compare = "compare: ['MoCo, 256 > memory bank, 256']\nx: K"
    study.write(grid=study.grid.read_text().replace("x: K", compare))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.figure, "draw", lambda table, path: path.touch())
        study.ablate()
        rows = study.out / "moco/256/seed0/evaluations/knn/rows.csv"
        rows.parent.mkdir(parents=True)
        rows.write_text(ROWS)
        file = study.folder / "results" / "grid.json"
        assert study.ablate(report_only=True, keep=file) == 0
    return study, file, json.loads(file.read_text())


def test_a_kept_study_gives_the_tables_that_its_folders_give(whole):
    study, file, _ = whole
    from_folders, again = results.read(study.expand()), kept.load(file)
    assert tables.cells(again) == tables.cells(from_folders)
    assert tables.notes(again) == tables.notes(from_folders)
    assert again.study.contrasts == from_folders.study.contrasts
    for ours, theirs in zip(again.outcomes, from_folders.outcomes, strict=True):
        assert ours.curve(again.main) == theirs.curve(from_folders.main)
        assert (str(ours.run), ours.state) == (str(theirs.run), theirs.state)


def test_a_kept_study_says_how_it_was_made(whole):
    _, _, data = whole
    assert data["command"].startswith("ssl-zoo ablate ") and "--out" not in data["command"]
    assert data["contrasts"] == ["MoCo, 256 > memory bank, 256"] and data["seeds"] == [0, 1]
    assert data["machine"]["torch"] == "2.6" and data["x"] == "K" and data["main"] == "knn"
    assert data["evaluations"]["knn"]["protocol"].endswith("index flat (hash k20)")
    assert data["config"]["train"]["epochs"] == 3 and "seed" not in data["config"]
    (point,) = (p["set"] for p in data["points"] if p["arm"] == "<b>end-to-end</b>")
    assert point["data"] == {"batch_size": 64} and point["optimizer"] == {"lr": 0.2}
    assert point["method"]["memory"]["type"] == "EndToEnd"


def test_a_run_that_is_not_finished_is_kept_as_such(whole):
    states = {(run["arm"], run["x"], run["seed"]): run for run in whole[2]["runs"]}
    failed = states["MoCo", "256", 1]
    assert failed["state"] == "failed" and failed["scores"] == {}
    assert sum(run["state"] == "finished" for run in states.values()) == 9


def test_what_each_class_got_is_kept(whole):
    (classes,) = whole[2]["classes"]
    assert (classes["arm"], classes["x"], classes["seeds"]) == ("MoCo", "256", [0])
    assert (classes["images"], classes["right"]) == (50, [40, 41])
    again = kept.load(whole[1])
    (row,) = (row for row in again.rows if (row.arm, row.x) == ("MoCo", "256"))
    assert again.hits(row, again.main, [0]).right.tolist() == [40, 41]
    assert again.hits(row, again.main, [1]) is None


def test_a_point_of_a_kept_study_has_the_recipe_of_its_runs(whole):
    study, file, _ = whole
    for run in study.expand().runs:
        assert kept.load(file).recipes[run.arm, run.x] == kept.recipe(run)


def test_a_grid_names_a_kept_study_relative_to_itself(whole):
    study, *_ = whole
    written = study.grid.read_text()
    study.write(grid="kept: ../results/grid.json\n" + written)
    assert study.expand().kept == study.folder.parent / "results" / "grid.json"
    study.write(grid=written)


def test_folders_of_another_config_are_not_kept(whole, tmp_path):
    study, *_ = whole
    other = study.expand(overrides=["method.loss.temperature=0.3"])
    with pytest.raises(ConfigError, match=r"(?s)MoCo, 64, seed 0.*method.loss.temperature: 0.1"):
        kept.write(other, tmp_path / "kept.json")
    assert not (tmp_path / "kept.json").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0}'])
def test_a_file_that_is_no_kept_study_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "kept.json").write_text(text)
    with pytest.raises(ValueError, match=r"kept\.json: (not JSON|no kept study)"):
        kept.load(tmp_path / "kept.json")
