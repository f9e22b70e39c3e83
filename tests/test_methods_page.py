"""docs/methods.md is what its tool writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ssl_zoo import config
from ssl_zoo.study.baselines import Baselines
from ssl_zoo.study.grid import Study, expand

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

import methods_page

ROOT = Path(__file__).resolve().parents[1]
PROTOCOL = {"k": 200, "temperature": 0.07, "normalized": True}


@pytest.fixture(scope="module", autouse=True)
def entries():
    """Reading every config once is enough."""
    found, in_color = methods_page.entries(), methods_page.arms(methods_page.COLOR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods_page, "entries", lambda: found)
        patch.setattr(methods_page, "arms", lambda grid: in_color)
        yield found


def knn(top1):
    return {
        "type": "KNN",
        "metrics": {"top1": top1, "top5": 99.0},
        "main": "top1",
        "protocol": PROTOCOL,
        "hash": "1a2b",
    }


def finished(grid, folder, arms) -> Study:
    """A study in which these arms are finished."""
    study = expand(grid, folder / grid.stem)
    known = Baselines(study.out / "baselines.json")
    for run in study.runs:
        if run.arm in arms:
            run.folder.mkdir(parents=True)
            config.dump(run.config, run.folder / "config.yaml")
            result = {"evaluations": {"knn": knn(80.25)}}
            (run.folder / "result.json").write_text(json.dumps(result))
            environment = {"versions": {"torch": "2.15.0"}, "device": "cpu: a <fake>", "cores": 2}
            environment |= {"git_commit": "0123456789", "started": "2026-11-22T18:00:00+0000"}
            (run.folder / "environment.json").write_text(json.dumps(environment))
            if None in known.of(run)["knn"].values():
                for name, top1 in (("raw pixels", 79.5), ("random backbone", 70.0)):
                    key = {"evaluation": "knn", "baseline": name}
                    of = {"depends_on": run.baselines["knn"][name]}
                    known.known.append(knn(top1) | key | of)
                known.path.write_text(json.dumps(known.known))
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return finished(methods_page.ZOO, tmp_path_factory.mktemp("gray"), ("BYOL", "MAE"))


@pytest.fixture(scope="module")
def in_color(tmp_path_factory):
    return finished(methods_page.COLOR, tmp_path_factory.mktemp("color"), ("CMC",))


def line(page: str, name: str) -> str:
    """Of the first table."""
    page = page.partition("## In color")[0]
    (found,) = (text for text in page.splitlines() if text.startswith(f"| [{name}]"))
    return found


def test_the_page_is_what_would_be_written():
    page = methods_page.render(methods_page.known_results())
    assert methods_page.PAGE.read_text() == page, "run: python tools/methods_page.py"


def test_check_says_that_a_page_is_old(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(methods_page, "PAGE", tmp_path / "methods.md")
    assert methods_page.main(["--check"]) == 1
    assert "python tools/methods_page.py" in capsys.readouterr().out
    assert not methods_page.PAGE.exists()
    methods_page.PAGE.write_text(methods_page.render(methods_page.known_results()))
    assert methods_page.main(["--check"]) == 0


def test_every_method_and_every_arm_has_a_line(entries):
    page = methods_page.render({})
    arms = [run.arm for run in expand(methods_page.ZOO).runs]
    files = {path.stem for path in (ROOT / "ssl_zoo" / "methods").glob("[!_]*.py")}
    assert set(arms) <= {entry.name for entry in entries}
    assert files == {entry.file.stem for entry in entries}
    for entry in entries:
        assert "| not run |" in line(page, entry.name)


def test_a_line_says_what_the_code_says():
    rotation = line(methods_page.render({}), "Rotation")
    lines = len((ROOT / "ssl_zoo" / "methods" / "rotation.py").read_text().splitlines())
    assert (
        f"| pretext | features, 1 view | [rotation.py](../ssl_zoo/methods/rotation.py) | {lines}"
        in rotation
    )
    assert "https://arxiv.org/abs/1803.07728" in rotation
    simclr = line(methods_page.render({}), "SimCLR")  # its base is not its own
    assert "2002.05709" in simclr and "2 views" in simclr and "imagenet/simclr.yaml" in simclr
    assert "labels" in line(methods_page.render({}), "Supervised")
    assert "tokens" in line(methods_page.render({}), "MAE")


def test_figures_come_from_a_study_against_each_arms_own_start(study):
    results = methods_page.study_results(study.out)
    assert results["arms"]["MAE"] == {
        **{"knn": [80.25], "random": [10.25], "pixels": [0.75]},
        **{"date": "2026-11-22", "commit": "0123456"},
        **{"machine": "2 cores, a <fake>", "torch": "2.15.0"},
    }
    assert set(results["arms"]) == {"BYOL", "MAE"}
    page = methods_page.render({"zoo": results})
    assert line(page, "BYOL").endswith("| 80.2 | +10.2 | +0.8 | – |")
    assert "| not run |  |  |  |" in line(page, "SimCLR")
    said = "Measured 2026-11-22 at commit 0123456 with `ssl-zoo ablate"
    assert said in page and "seeds 0, on 2 cores, a <fake>, torch 2.15.0" in page


def test_the_study_in_color_has_a_table_of_its_own(in_color):
    results = methods_page.study_results(in_color.out)
    assert set(results["arms"]) == {"CMC"}
    above, below = methods_page.render({"zoo_color": results}).split("## In color")
    assert line(above, "CMC").endswith("| [in color](#in-color) |  |  |  |")
    assert "(../configs/photographs/cmc.yaml)" in line(above, "CMC")
    assert "| not run |" in line(above, "Colorization") and "80.2" not in above
    assert line(below, "CMC").endswith("| 80.2 | +10.2 | +0.8 | – |")
    assert line(below, "MoCo v2").endswith("| not run |  |  |  |")
    assert "`ssl-zoo ablate configs/ablation/zoo_color.yaml`, seeds 0" in below
    # An arm of one name in both studies: each table has its own study's figures.
    assert line(methods_page.render({"zoo_color": results}), "MoCo v2").count("not run") == 1
    of = results["arms"]["CMC"]
    arms = {"MoCo v2": of | {"knn": [12.34]}, "Supervised": of | {"knn": [20.0]}}
    above, below = methods_page.render({"zoo": {**results, "arms": arms}}).split("## In color")
    assert line(above, "MoCo v2").endswith("| 12.3 | +10.2 | +0.8 | -7.7 |")
    assert line(above, "Supervised").endswith("| 20.0 | +10.2 | +0.8 | – |")
    assert line(below, "MoCo v2").endswith("| not run |  |  |  |")


def test_a_study_of_one_arm_leaves_the_others_figures(study):
    arm = {**methods_page.study_results(study.out)["arms"]["MAE"], "commit": "fedcba9"}
    known = {"arms": {"MAE": arm, "SimCLR": arm, "Gone": arm}, "protocol": ["an older one"]}
    results = methods_page.study_results(study.out, known=known)
    commits = {name: of["commit"] for name, of in results["arms"].items()}
    assert commits == {"BYOL": "0123456", "MAE": "0123456", "SimCLR": "fedcba9"}
    assert results["protocol"][0] == "an older one" and len(results["protocol"]) == 2
    assert "at commit 0123456 and fedcba9 with" in methods_page.said(results)


def test_a_study_leaves_the_figures_of_the_other(study, in_color, tmp_path, monkeypatch):
    monkeypatch.setattr(methods_page, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(methods_page, "write", lambda: methods_page.PAGE)
    for folder in (study.out, in_color.out, study.out):
        assert methods_page.main(["--study", str(folder)]) == 0
    arms = {name: set(of["arms"]) for name, of in methods_page.known_results().items()}
    assert arms == {"zoo": {"BYOL", "MAE"}, "zoo_color": {"CMC"}}


def test_a_folder_names_its_study(study, capsys):
    assert methods_page.main(["--study", str(study.out.parent), "--check"]) == 2
    assert "expected a folder named zoo or zoo_color" in capsys.readouterr().err


def test_figures_of_another_config_are_left_out(study, capsys):
    (run,) = (run for run in study.runs if run.arm == "BYOL")
    written = run.folder / "config.yaml"
    text = written.read_text()
    written.write_text(text.replace("momentum: 0.98", "momentum: 0.5"))
    assert written.read_text() != text
    known = methods_page.known_results()["zoo"]
    assert set(methods_page.study_results(study.out)["arms"]) == {"MAE"}
    assert "left out: BYOL" in capsys.readouterr().out
    assert "BYOL" not in methods_page.study_results(study.out, known=known)["arms"]
    written.write_text(text)


def test_a_folder_without_a_finished_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        methods_page.study_results(tmp_path / "zoo")
