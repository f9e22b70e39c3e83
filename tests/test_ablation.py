"""Grids: what they expand to, and studies that fail, are stopped, or are called a second time."""

import csv
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from ssl_zoo import config, experiment
from ssl_zoo.config import EVALUATIONS, ConfigError
from ssl_zoo.evaluation.base import Evaluation
from ssl_zoo.study import division, grid, launch, report
from ssl_zoo.system import hardware

BASE = """
seed: 7
data:
  dataset: {type: Digits}
  views:
    count: 2
    ops: {normalize: {type: Normalize, mean: [0.3], std: [0.4]}}
  clean:
    ops: {normalize: {type: Normalize, mean: [0.3], std: [0.4]}}
  batch_size: 32
backbone: {type: Timm, name: resnet18, in_chans: 1, small_images: true}
method:
  type: Contrastive
  head: {type: Linear, out_features: 16}
  memory: {type: MoCoQueue, size: 128, momentum: 0.99}
  loss: {type: InfoNCE, temperature: 0.1}
optimizer: {type: SGD, lr: 0.1}
train: {epochs: 2}
evaluations:
  knn: {type: KNN, k: 20}
"""

GRID = """
base: base.yaml
seeds: [0, 1]
set: {train.epochs: 3}
x: K
arms:
  MoCo:
    set: {method.memory: {type: MoCoQueue, momentum: 0.9}}
    sweep: {method.memory.size: [64, 256]}
  memory bank:
    set: {method.memory: {type: MemoryBank}}
    sweep: {method.memory.num_negatives: [64, 256]}
  <b>end-to-end</b>:
    set: {method.memory: {type: EndToEnd}}
    sweep:
      "64": {data.batch_size: 64, optimizer.lr: 0.2}
"""

# Stands in for `ssl-zoo train`: same arguments, same files, no training. `fake` in its own folder
# says how a run should go wrong.
TRAIN = """
import json, os, pathlib, re, signal, sys, time
written, *longer, _, folder, resume = sys.argv[1:]
folder, here = pathlib.Path(folder), pathlib.Path(__file__).parent
assert resume == "--resume" and pathlib.Path(written) == folder / "config.yaml"
if longer:
    epochs = longer[0].replace("train.epochs=", "train: {epochs: ")
    text = re.sub("train: {epochs: [0-9.]+", epochs, pathlib.Path(written).read_text())
    (folder / "config.yaml").write_text(text)
def write(name, text):
    (folder / "half").write_text(text)
    (folder / "half").replace(folder / name)
with open(here / "calls", "a") as file:
    file.write(str(folder.relative_to(here / "out")) + chr(10))
for line in (here / "fake").read_text().splitlines():
    where, how = line.split(": ", 1)
    if where not in str(folder):
        continue
    if how == "sleep":
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
        (here / "asleep").write_text(str(os.getpid()))
        time.sleep(60)
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "error.txt").write_text(how)
    sys.exit(1)
seed = int(folder.name[-1])
level = {"moco": 80, "memory-bank": 70}.get(folder.parts[-3], 60) + (folder.parts[-2] == "256")
block = re.search(r"k: (\\d+)", pathlib.Path(written).read_text())
k = block[1] if block else 0
lines = []
for epoch in range(1, 4):
    metrics = {"top1": level + 2 * seed - 3 + epoch, "top5": 99.0}
    lines.append({"kind": "train", "step": epoch, "epoch": epoch, "seconds": 1.0, "loss": 1.0})
    lines.append(lines[-1] | {"kind": "evaluation", "name": "knn", "hash": f"k{k}"} | metrics)
write("metrics.jsonl", "".join(json.dumps(line) + chr(10) for line in lines))
environment = {"versions": {"torch": "2.6"}, "device": "a <fake>"}
write("environment.json", json.dumps(environment))
knn = {"type": "KNN", "metrics": metrics, "main": "top1", "higher_is_better": True, "unit": "%",
       "protocol": {"k": k, "temperature": 0.07, "index": "flat"}, "hash": f"k{k}"}
evaluations = {"knn": knn} if block else {}
if (here / "probe").exists():
    evaluations["probe"] = knn | {"metrics": {"error": 100 - level}, "main": "error"}
result = {"evaluations": evaluations, "pretext_top1": 12.5,
          "loss": 1.0, "images_per_s": 1000.0, "peak_memory_gb": 0.5, "seconds": 90.0,
          "steps": 3, "epochs": 3.0}
write("result.json", json.dumps(result))
"""


class Study:
    """A folder with a base, a grid and a fake trainer, and what has happened in it."""

    def __init__(self, folder: Path):
        self.folder, self.out, self.grid = folder, folder / "out", folder / "grid.yaml"
        self.write(base=BASE, grid=GRID)
        (folder / "train.py").write_text(TRAIN)
        self.fake("")

    def write(self, **texts):
        for name, text in texts.items():
            (self.folder / f"{name}.yaml").write_text(text)

    def fake(self, how):
        (self.folder / "fake").write_text(how)

    def ablate(self, **kwargs):
        kwargs = {"out": self.out, "jobs": 1, **kwargs}
        train = [sys.executable, str(self.folder / "train.py")]
        return launch.run_study(self.grid, train=train, **kwargs)

    def expand(self, **kwargs):
        return grid.expand(self.grid, self.out, **kwargs)

    def calls(self):
        """Folders that the trainer was called for since the last look."""
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return lines

    def text(self, name):
        return (self.out / name).read_text()

    def table(self):
        with open(self.out / "table.csv", newline="") as file:
            return {(row["arm"], row["K"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def measured():
    """Seeds of the runs for which baselines were measured; nothing is really measured."""
    seeds = []

    def measure_baselines(cfg, name, wanted):
        seeds.append(cfg["seed"])
        k = cfg["evaluations"][name]["k"]
        if k > 60:
            raise ConfigError(f"evaluations.{name}", f"k = {k} of a bank of 60 images")
        start = 20.0 + 3 * cfg["seed"] + (cfg["backbone"]["name"] == "resnet34")
        top1 = {"raw pixels": 50.0, "random backbone": start}
        result = {"type": "KNN", "main": "top1", "higher_is_better": True, "unit": "%"}
        result |= {"protocol": {"k": k}, "hash": f"k{k}"}
        return {n: result | {"metrics": {"top1": top1[n], "top5": 99.0}} for n in wanted}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "measure_baselines", measure_baselines)
        patch.setattr(launch, "side_by_side", lambda measurers: launch.one_by_one)
        patch.setattr(division, "seconds_per_step", lambda *_, processes=1: 0.1)
        patch.setattr(launch, "gpus", lambda: [])
        yield seeds


@pytest.fixture
def study(tmp_path, measured, monkeypatch):
    """A study that has not begun; its figure is empty, because drawing one takes a while."""
    measured.clear()
    monkeypatch.setattr(report.figure, "draw", lambda table, path: path.touch())
    return Study(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, measured):
    """A study that has run, for tests that only look."""
    study = Study(tmp_path_factory.mktemp("finished"))
    assert study.ablate() == 0
    return study


ALL = [
    f"{arm}/{x}/seed{seed}"
    for seed in (0, 1)
    for arm, points in (("moco", "64 256"), ("memory-bank", "64 256"), ("b-end-to-end-b", "64"))
    for x in points.split()
]


# ---------------------------------------------------------------- what a grid expands to


def test_a_grid_expands_to_arms_times_points_times_seeds_seed_by_seed(study):
    runs = study.expand().runs
    assert [str(run.folder.relative_to(study.out)) for run in runs] == ALL


def test_arms_differ_from_the_base_in_what_the_grid_sets_and_nothing_else(study):
    runs = {str(run.folder.relative_to(study.out)): run.config for run in study.expand().runs}
    base = experiment.parse(config.load(study.folder / "base.yaml")).spelled_out()
    always = ["seed: 7 -> 1", "train.epochs: 2.0 -> 3.0"]
    moco, end = runs["moco/256/seed1"], runs["b-end-to-end-b/64/seed1"]
    memory = ["method.memory.size: 128 -> 256", "method.memory.momentum: 0.99 -> 0.9"]
    assert sorted(config.differences(base, moco)) == sorted(always + memory)
    assert end["method"]["memory"]["type"] == "EndToEnd" and "size" not in end["method"]["memory"]
    assert (end["data"]["batch_size"], end["optimizer"]["lr"]) == (64, 0.2)


def test_overrides_hold_for_every_arm_and_win_over_the_grid(study):
    runs = study.expand(overrides=["train.epochs=1", "evaluations.knn.k=5"]).runs
    settings = {(r.config["train"]["epochs"], r.config["evaluations"]["knn"]["k"]) for r in runs}
    assert settings == {(1, 5)}


def test_what_is_planned_runs_first_whatever_its_seed(study):
    contrast = 'compare: ["MoCo, 256 > MoCo, 64"]\n'
    study.write(grid=study.grid.read_text() + contrast)
    assert study.ablate() == 0
    planned = [name for name in ALL if name.startswith("moco/")]
    others = [name for name in ALL if name not in planned]
    assert study.calls() == planned + others
    rows = [(row.arm, row.x) for row in report.results.read(study.expand()).rows]
    assert rows[:3] == [("MoCo", "64"), ("MoCo", "256"), ("memory bank", "64")]  # the grid's order


def test_an_arm_may_have_its_own_seed_of_order_and_views(study):
    study.write(grid="base: base.yaml\narms: {A: {}, B: {set: {data.seed: 5}}}\n")
    a, b = (run.config for run in study.expand().runs)
    assert config.differences(a, b) == ["data.seed: None -> 5"]


def test_a_number_of_seeds_takes_the_place_of_the_grids(study):
    again = study.expand(seeds=3)
    assert [run.seed for run in again.runs] == [seed for seed in range(3) for _ in range(5)]
    assert again.command.endswith("--seeds 3")
    assert {run.folder for run in study.expand().runs} < {run.folder for run in again.runs}
    with pytest.raises(ConfigError, match=r"(?s)--seeds: no such number.*at least 1"):
        study.expand(seeds=0)


def test_another_base_takes_the_grids_place(study):
    study.write(other=BASE.replace("lr: 0.1", "lr: 0.7"))
    other = grid.expand(study.grid, base=study.folder / "other.yaml")
    assert other.runs[0].config["optimizer"]["lr"] == 0.7
    assert other.out == Path("runs/ablation/grid-other") and "--base" in other.command


def test_an_arm_without_a_sweep_is_one_run_a_seed(study):
    study.write(grid="base: base.yaml\narms: {A: {}, B: {set: {optimizer.lr: 0.2}}}\n")
    runs = study.expand().runs
    assert [str(run.folder.relative_to(study.out)) for run in runs] == ["a/seed0", "b/seed0"]


ZOO = """
arms:
  MoCo: {base: base.yaml}
  again: {base: base.yaml, set: {optimizer.lr: 0.2}}
  wide: {base: wide.yaml, sweep: {optimizer.lr: [0.3]}}
"""


def test_arms_may_have_bases_of_their_own(study):
    study.write(grid=ZOO, wide=BASE.replace("resnet18", "resnet34"))
    runs = study.expand().runs
    found = [(run.config["backbone"]["name"], run.config["optimizer"]["lr"]) for run in runs]
    assert found == [("resnet18", 0.1), ("resnet18", 0.2), ("resnet34", 0.3)]


def test_an_arm_without_a_base_takes_the_grids(study):
    study.write(grid="base: base.yaml" + ZOO.replace("{base: base.yaml}", "{}"))
    study.write(wide=BASE.replace("resnet18", "resnet34"))
    names = [run.config["backbone"]["name"] for run in study.expand().runs]
    assert names == ["resnet18", "resnet18", "resnet34"]


def test_arms_without_any_base_are_named(study):
    study.write(grid=ZOO.replace("{base: base.yaml}", "{}"))
    with pytest.raises(ConfigError, match=r"(?s)base: neither.*none for MoCo\n"):
        study.expand()


def test_another_base_for_arms_with_bases_of_their_own_is_an_error(study):
    study.write(grid=ZOO, wide=BASE)
    with pytest.raises(ConfigError, match=r"(?s)command line: base: .*MoCo, again, wide"):
        study.expand(base=study.folder / "base.yaml")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("seeds:", "seed:", r"grid.yaml:3: seed: unknown key.*nearest:\s+seeds"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "a list of seeds without repeats"),
        ("base: base.yaml", "base: bse.yaml", r"no such file.*nearest:.*base.yaml"),
        (
            "    sweep: {method.memory.size: [64, 256]}",
            "    swep: {}",
            r"grid.yaml:9: arms.MoCo.swep",
        ),
        ("{method.memory.size: [64, 256]}", "{method.memory.size: 64}", "neither one key"),
        ("  memory bank:", "  moco:", "two runs with one folder"),
        ("momentum: 0.9}", "momentun: 0.9}", r"arm 'MoCo'.*momentun: unknown key.*nearest:\s+mom"),
        ("type: EndToEnd", "type: EndToEdn", r"arm '<b>end-to-end</b>'.*nearest:\s+EndToEnd"),
    ],
)
def test_a_wrong_grid_is_an_error_that_says_where_before_anything_runs(study, old, new, message):
    assert old in GRID
    study.write(grid=GRID.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        study.ablate()
    assert re.search(message, str(error.value), re.DOTALL), str(error.value)
    assert not study.calls() and not study.out.exists()


@pytest.mark.parametrize(
    "key", ["method.memory.size=8", "method={}", "data.batch_size=4", "seed=3"]
)
def test_an_override_of_what_the_arms_differ_in_is_an_error(study, key):
    with pytest.raises(ConfigError, match="what the arms differ in"):
        study.expand(overrides=[key])


# ---------------------------------------------------------------- running


def test_a_study_runs_every_run_once_and_a_second_call_none(finished, capfd):
    assert finished.calls() == ALL
    assert finished.ablate() == 0
    assert finished.calls() == []
    assert capfd.readouterr().out.count("(finished)") == len(ALL)


def test_only_names_the_arms_to_run(study):
    assert study.ablate(only=["memory-bank"]) == 0
    assert study.calls() == [run for run in ALL if run.startswith("memory-bank")]
    with pytest.raises(ConfigError, match=r"nearest:\s+memory bank"):
        study.ablate(only=["memry bank"])


def test_a_failing_arm_leaves_the_others_alone_and_the_report_says_why(study, capfd):
    study.fake("moco/256: out of <memory> & time\nmemory-bank/64/seed1: die")
    assert study.ablate() == 1
    assert study.calls() == ALL
    page = study.text("report.html")
    assert "out of &lt;memory&gt; &amp; time" in page and "killed (SIGKILL)" in page
    assert "7 of 10 runs finished" in page
    assert "failed: MoCo, 256, seed 0: out of <memory> & time" in capfd.readouterr().out
    table = study.table()
    assert table["MoCo", "256"]["failed"] == "2" and table["MoCo", "256"]["knn_top1_mean"] == ""
    study.fake("")
    assert study.ablate() == 0
    assert study.calls() == ["moco/256/seed0", "moco/256/seed1", "memory-bank/64/seed1"]
    assert "Failed runs" not in study.text("report.html")


def test_a_run_without_result_or_message_has_failed(study):
    (study.folder / "train.py").write_text("")
    assert study.ablate(only=["MoCo"]) == 1
    assert "it ended without a result" in study.text("report.html")


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_study_stops_its_runs_reports_and_goes_on_there(study, number, jobs, capfd):
    study.fake("moco/256/seed0: sleep")
    file = study.folder / "kept.json"
    file.write_text("kept before")
    asleep = study.folder / "asleep"

    def stop():
        while not (asleep.exists() and asleep.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    assert study.ablate(only=["MoCo"], jobs=jobs, keep=file) == 130
    thread.join()
    assert "moco/256/seed0" in study.calls()
    with pytest.raises(ProcessLookupError):
        os.kill(int(asleep.read_text()), 0)
    assert not (study.out / "moco/256/seed0/result.json").exists()
    assert re.search(r"\d of 10 runs finished", study.text("report.html"))
    assert "the same command goes on from here" in capfd.readouterr().out
    assert file.read_text() == "kept before"
    study.fake("")
    assert study.ablate(only=["MoCo"], keep=file) == 0
    assert json.loads(file.read_text())["name"] == "grid"
    calls = study.calls()
    assert calls[0] == "moco/256/seed0" and "moco/64/seed0" not in calls
    assert len(list(study.out.glob("moco/*/seed?/result.json"))) == 4


def test_a_folder_of_another_config_is_an_error_that_names_the_keys(study):
    study.ablate(only=["MoCo"])
    before = study.text("moco/64/seed0/config.yaml")
    study.calls()
    with pytest.raises(ConfigError, match=r"method.loss.temperature: 0.1 -> 0.3") as error:
        study.ablate(overrides=["method.loss.temperature=0.3"])
    assert "MoCo, 64, seed 0" in str(error.value)
    assert study.calls() == [] and study.text("moco/64/seed0/config.yaml") == before


@pytest.mark.parametrize(
    ("trained", "asked", "differs"),
    [
        ([], ["method.loss.temperature=0.3"], "method.loss.temperature: 0.1 -> 0.3"),
        (["train.epochs=20"], [], "train.epochs: 20.0 -> 3.0"),
    ],
)
def test_runs_of_another_config_are_in_no_number_of_a_report(study, trained, asked, differs):
    assert study.ablate(only=["MoCo"], overrides=trained) == 0
    assert study.ablate(only=["memory bank"], overrides=asked) == 0
    assert study.ablate(report_only=True, overrides=asked) == 0
    row = study.table()["MoCo", "64"]
    assert row["knn_top1_mean"] == "" and study.table()["memory bank", "64"]["knn_top1_mean"]
    for page in ("table.md", "report.html"):
        said = study.text(page).replace("&gt;", ">").replace("\\>", ">")
        assert f"not counted, trained by another config: MoCo, 64, seed 0: {differs}" in said
    assert "| another config |" in study.text("table.md")


def test_a_score_that_is_no_number_is_lacking(study):
    study.ablate(only=["MoCo", "memory bank"])
    written = study.out / "moco/64/seed0/result.json"
    written.write_text(written.read_text().replace('"top1": 80', '"top1": NaN'))
    assert '"top1": NaN' in written.read_text()
    assert study.ablate(report_only=True) == 0
    assert study.table()["MoCo", "64"]["knn_top1_mean"] == "82.0"
    table = report.results.read(study.expand())
    found = report.verdicts.exploratory(table)
    (compared,) = (c for c in found if (c.a, c.b) == ("memory bank, 64", "MoCo, 64"))
    assert list(compared.differences) == [1] and compared.lacking == [0]


def test_finished_runs_go_on_for_more_epochs(study, capfd):
    study.ablate(only=["MoCo"])
    study.calls()
    longer = ["train.epochs=20"]
    study.ablate(only=["MoCo"], report_only=True, overrides=longer)
    assert "0 of 10 runs finished" in study.text("report.html")
    assert study.ablate(only=["MoCo"], overrides=longer) == 0
    said = "runs go on for longer: train.epochs 3 -> 20; no schedule depends on it"
    assert capfd.readouterr().out.count(said) == 1
    assert study.calls() == [run for run in ALL if run.startswith("moco")]
    assert "4 of 10 runs finished" in study.text("report.html")
    assert study.ablate(only=["MoCo"], overrides=longer) == 0 and study.calls() == []
    with pytest.raises(ConfigError, match=r"train.epochs: 20.0 -> 3.0"):
        study.ablate(only=["MoCo"])


def test_runs_of_before_a_key_existed_are_kept(study):
    study.ablate(only=["MoCo"])
    for path in study.out.glob("moco/*/*/config.yaml"):
        written = config.load(path).data
        del written["data"]["seed"], written["nudge_weights"]
        path.write_text(config.dump(written))
    study.calls()
    assert study.ablate(only=["MoCo"]) == 0 and study.calls() == []


def test_a_run_that_trained_nothing_takes_a_new_config(study):
    study.fake("moco: no")
    study.ablate(only=["MoCo"])
    study.fake("")
    assert study.ablate(only=["MoCo"], overrides=["method.loss.temperature=0.3"]) == 0


# ---------------------------------------------------------------- twins

TWINS = [f"moco-{kind}/64/seed{seed}" for seed in (0, 1) for kind in ("one-ulp", "data-seed")]


def test_twins_join_a_study_that_is_there_and_a_report_without_them_still_works(study):
    study.ablate()
    assert study.calls() == ALL
    assert study.ablate(aa=True) == 0 and study.calls() == TWINS
    assert "MoCo (one ulp)" in study.text("table.csv") and "--aa`" in study.text("table.md")
    study.ablate()
    assert study.calls() == [] and "one ulp" not in study.text("table.csv")


def test_a_twin_differs_from_its_original_in_one_key(study):
    runs = {(run.arm, run.x, run.seed): run.config for run in study.expand(aa=True).runs}
    assert len(runs) == 14
    for seed in (0, 1):
        ulp, order = (runs[f"MoCo ({kind})", "64", seed] for kind in ("one ulp", "data seed"))
        original = runs["MoCo", "64", seed]
        assert config.differences(original, ulp) == ["nudge_weights: False -> True"]
        assert config.differences(original, order) == [f"data.seed: None -> {1_000_000 + seed}"]


def test_twins_are_of_the_first_planned_contrasts_better_side_with_its_seeds(study):
    planned = "compare: ['memory bank, 256 > MoCo, 64']\nother_seeds: [7]\n"
    study.write(grid=planned + GRID)
    found = study.expand(aa=True)
    names = ["memory bank (one ulp)", "memory bank (data seed)"]
    assert found.twins == dict.fromkeys(names, ("memory bank", "256"))
    assert {(r.x, r.seed) for r in found.runs if r.arm in names} == {("256", 0), ("256", 1)}
    assert not study.expand().twins


def test_the_table_shows_what_twins_differ_by_and_takes_none_for_the_best_arm(study):
    """The fake trainer gives an arm that it does not know 60, and MoCo 80."""
    study.write(grid="compare: ['MoCo, 256 > memory bank, 64']\n" + GRID)
    (study.folder / "train.py").write_text(TRAIN.replace('{"moco"', '{"moco-one-ulp": 90, "moco"'))
    study.ablate(aa=True)
    header, _, *rows = study.text("table.md").splitlines()[2:]
    start = "| arm | K | seeds | knn top1, % | against MoCo | noise, against MoCo, 256 | pretext"
    assert header.startswith(start)
    assert "| MoCo (one ulp) | 256 | 2 | 92.00 ± 1.41 |  | +10.00 ± 0.00 |" in "\n".join(rows)
    assert "| memory bank | 256 | 2 | 72.00 ± 1.41 | -10.00 ± 0.00 |  |" in "\n".join(rows)
    (best,) = (row for row in rows if row.startswith("| **"))
    assert best.startswith("| **MoCo** | **256** |")
    said = rows[rows.index("## Noise floor, knn top1") :]
    assert any("MoCo (one ulp), 256 against MoCo, 256: +10.0 points" in row for row in said)
    assert any("MoCo (data seed), 256 against MoCo" in row and "-20.00" in row for row in said)
    others = "\n".join(rows[rows.index("## Exploratory") : rows.index("## Noise floor, knn top1")])
    assert "memory bank" in others and "data seed" not in others
    table = study.table()
    assert table["MoCo (one ulp)", "256"]["twin_of"] == "MoCo, 256"
    assert table["memory bank", "256"]["twin_of"] == ""
    assert "twin of: MoCo, 256" in study.text("report.html")


def test_twins_alone_make_no_column_of_the_first_arm(study):
    """In a grid whose arms have no point in common, nothing is compared with the first arm."""
    grid = "arms: {A: {sweep: {optimizer.lr: [1]}}, B: {sweep: {optimizer.lr: [2]}}}"
    study.write(grid=f"base: base.yaml\ncompare: ['B, 2 > A, 1']\n{grid}\n")
    study.ablate(aa=True)
    header = study.text("table.md").splitlines()[2]
    assert "against A" not in header and "| noise, against B, 2 |" in header


def test_a_twin_that_would_not_differ_is_an_error(study):
    with pytest.raises(ConfigError, match=r"(?s)'MoCo \(one ulp\)': nudge_weights: a twin of MoCo"):
        study.expand(aa=True, overrides=["nudge_weights=true"])
    study.expand(overrides=["nudge_weights=true"])


def test_a_twin_of_the_name_of_an_arm_is_an_error(study):
    study.write(grid="base: base.yaml\narms: {MoCo: {}, MoCo (one ulp): {}}\n")
    with pytest.raises(ConfigError, match="two runs with one folder"):
        study.expand(aa=True)


# ---------------------------------------------------------------- side by side


def threads(study):
    written = study.out.glob("*/*/seed?/config.yaml")
    return {config.load(path).data["train"]["threads"] for path in written}


def test_runs_side_by_side_leave_what_one_after_the_other_leaves(study, finished):
    study.fake("moco/256/seed0: sorry")
    assert study.ablate(jobs=3) == 1
    assert sorted(study.calls()) == sorted(ALL)
    study.fake("")
    assert study.ablate(jobs=3) == 0 and study.calls() == ["moco/256/seed0"]
    assert study.text("table.csv") == finished.text("table.csv")


def test_threads_are_settled_once_and_hold_whatever_jobs_is(study, monkeypatch, capfd):
    monkeypatch.setattr(hardware, "cores", lambda: 6)
    study.fake("moco/256: sorry")
    study.ablate(only=["MoCo"], jobs="auto")
    assert json.loads(study.text("study.json"))["threads"] == 1 and threads(study) == {1}
    assert (
        "runs at once: 4; threads of each: 1; a step takes 100 ms with 6" in capfd.readouterr().out
    )
    study.fake("")
    monkeypatch.setattr(division, "seconds_per_step", None)
    assert study.ablate(jobs=2) == 0 and threads(study) == {1}
    assert len(study.expand().runs) == 10 and study.expand().runs[0].config["train"]["threads"] == 1
    with pytest.raises(ConfigError, match=r"train.threads: 1 -> 2"):
        study.ablate(overrides=["train.threads=2"])


@pytest.mark.parametrize("jobs", [1, 2, 7])
@pytest.mark.parametrize("ratio, expected", [(1, 1), (10, 6)])
def test_threads_do_not_depend_on_jobs(study, monkeypatch, jobs, ratio, expected):
    monkeypatch.setattr(hardware, "cores", lambda: 6)
    monkeypatch.setattr(division, "seconds_per_step", lambda *_, processes=1: ratio**processes)
    study.ablate(only=["MoCo"], jobs=jobs)
    assert threads(study) == {expected}


def test_more_threads_than_cores_are_said_and_do_not_spin(study, monkeypatch, capfd):
    train = study.folder / "train.py"
    train.write_text("import os, sys; print('policy', os.environ.get('OMP_WAIT_POLICY'))\n" + TRAIN)
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    written = study.out / "moco/64/seed0/stdout.txt"
    for jobs, policy in ((2, "None"), (3, "PASSIVE")):
        study.fake("")
        study.ablate(only=["MoCo"], jobs=jobs, overrides=["train.threads=2"])
        said = "3 runs of 2 threads take turns on 4 cores" in capfd.readouterr().out
        assert written.read_text().split() == ["policy", policy] and said == (jobs == 3)
        (study.out / "moco/64/seed0/result.json").unlink()


def test_threads_are_settled_anew_while_nothing_is_trained(study, monkeypatch):
    for cores in (3, 6):
        monkeypatch.setattr(hardware, "cores", lambda: cores)  # noqa: B023
        monkeypatch.setattr(division, "seconds_per_step", lambda *_, processes=1: processes)
        study.fake("seed: sorry")
        study.ablate(only=["MoCo"], jobs=2)
        assert threads(study) == {cores}


def test_threads_that_the_config_asks_for_hold(study):
    study.ablate(overrides=["train.threads=3"], only=["MoCo"], jobs=2)
    assert threads(study) == {3}


@pytest.mark.parametrize("jobs", [0, "-1", "many"])
def test_jobs_that_are_no_number_of_runs_are_an_error(study, jobs):
    with pytest.raises(ConfigError, match="--jobs: no such number"):
        study.ablate(jobs=jobs)


def test_more_jobs_than_gpus_are_an_error(study, monkeypatch):
    monkeypatch.setattr(launch, "gpus", lambda: ["0", "1"])
    with pytest.raises(ConfigError, match=r"(?s)--jobs: more runs than GPUs.*at most 2"):
        study.ablate(jobs=3)
    assert study.calls() == [] and study.ablate(only=["MoCo"], jobs=2) == 0


def test_a_study_that_is_under_way_is_not_started_twice(study):
    study.out.mkdir()
    lock = launch.Lock(study.out / "study.lock")
    lock.acquire()
    with pytest.raises(FileExistsError, match="process"):
        study.ablate()
    assert study.ablate(report_only=True) == 0
    lock.release()
    assert study.calls() == [] and study.ablate(only=["MoCo"]) == 0


# ---------------------------------------------------------------- baselines


def test_baselines_are_measured_once_for_the_study_and_each_seed(study, measured):
    study.ablate(only=["memory bank"])
    assert measured == [0, 1]
    pixels, *random = json.loads(study.text("baselines.json"))
    assert [result["depends_on"]["seed"] for result in random] == [0, 1]
    assert random[0]["metrics"] != random[1]["metrics"]
    assert "seed" not in pixels["depends_on"] and pixels["protocol"]["k"] == 20
    study.ablate(only=["MoCo"])
    assert measured == [0, 1]


def test_baselines_are_measured_again_for_another_protocol(study, measured):
    study.fake("seed: no")
    study.ablate(only=["MoCo"])
    study.ablate(only=["MoCo"], overrides=["evaluations.knn.k=5"])
    assert measured == [0, 1, 0, 1]
    known = json.loads(study.text("baselines.json"))
    assert [result["protocol"]["k"] for result in known] == [20, 20, 20, 5, 5, 5]
    assert study.table()["raw pixels", ""]["knn_protocol"] == "KNN: k 5 (hash k5)"


def test_baselines_of_an_earlier_form_are_measured_again(study, measured):
    study.out.mkdir()
    (study.out / "baselines.json").write_text('{"measured": {}, "pixels": {}, "random": {}}')
    study.ablate(only=["MoCo"])
    assert measured == [0, 1] and ("random backbone", "") in study.table()


def test_each_backbone_among_the_arms_is_measured_and_the_same_one_once(study, measured):
    study.write(grid=ZOO, wide=BASE.replace("resnet18", "resnet34"))
    study.ablate()
    assert measured == [0, 0]
    known = json.loads(study.text("baselines.json"))
    names = [result["depends_on"].get("backbone", {}).get("name") for result in known]
    assert names == [None, "resnet18", "resnet34"]


def test_an_arm_whose_evaluation_is_impossible_leaves_the_others_alone(study, capfd):
    arms = "{MoCo: {}, bad: {set: {evaluations.knn.k: 99}}, other: {}}"
    study.write(grid=f"base: base.yaml\narms: {arms}\n")
    assert study.ablate() == 1
    assert study.calls() == ["moco/seed0", "other/seed0"]
    why = "evaluations.knn: k = 99 of a bank of 60 images"
    assert f"bad, seed 0  failed: {why}" in capfd.readouterr().out
    assert why in study.text("bad/seed0/error.txt") and why in study.text("report.html")


def test_who_shares_a_baseline_with_what_fails_measures_it_itself(study, measured, monkeypatch):
    """Raw pixels were to be measured with the first arm's own backbone, which cannot be built."""
    study.write(grid=ZOO, wide=BASE.replace("resnet18", "resnet34"))
    plain = experiment.measure_baselines

    def measure_baselines(cfg, name, wanted):
        if cfg["backbone"]["name"] == "resnet18":
            raise ValueError("no such backbone")
        return plain(cfg, name, wanted)

    monkeypatch.setattr(experiment, "measure_baselines", measure_baselines)
    assert study.ablate() == 1
    known = [result["baseline"] for result in json.loads(study.text("baselines.json"))]
    assert sorted(known) == ["random backbone", "raw pixels"]
    states = {o.run.arm: o.state for o in report.results.read(study.expand()).outcomes}
    assert sorted(states.values()) == ["failed", "failed", "finished"]


def test_a_study_without_evaluations_has_no_baselines_and_a_report(study, measured):
    study.write(base=BASE.replace("evaluations:\n  knn: {type: KNN, k: 20}", "evaluations: {}"))
    assert study.ablate(only=["MoCo"]) == 0
    assert measured == [] and not (study.out / "baselines.json").exists()
    header = study.text("table.md").splitlines()[2]
    assert header.startswith("| arm | K | seeds | pretext top-1, % |")
    assert "| MoCo | 256 | 2 | 12.5 |" in study.text("table.md")


# ---------------------------------------------------------------- the report


def test_table_has_mean_and_spread_over_seeds_and_paired_differences(finished):
    table = finished.table()
    moco, bank = table["MoCo", "256"], table["memory bank", "256"]
    assert float(moco["knn_top1_mean"]) == 82.0  # seeds: 81 and 83
    assert float(moco["knn_top1_std"]) == pytest.approx(2**0.5)
    assert float(bank["difference_mean"]) == -10.0 and float(bank["difference_std"]) == 0.0
    assert moco["difference_mean"] == "" and bank["seeds"] == "0 1"
    assert {("raw pixels", ""), ("random backbone", "")} < set(table)
    text = finished.text("table.md")
    assert "| **MoCo** | **256** | **2** | **82.00 ± 1.41** |" in text
    assert (
        "| memory bank | 64 | 2 | 71.00 ± 1.41 | -10.00 ± 0.00 | 12.5 | 1000 | 0.50 | 1.5 |" in text
    )
    assert "k 20; temperature 0.07; index flat (hash k20)" in text
    assert "| arm | K | seeds | knn top1, % | against MoCo |" in text


def test_page_stands_alone_and_escapes_what_it_quotes(finished):
    page = finished.text("report.html")
    assert 'src="data:image/png;base64,iVBOR' in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<b>" not in page and "&lt;b&gt;end-to-end&lt;/b&gt;" in page
    assert "a &lt;fake&gt;" in page and "seeds 0, 1" in page
    assert "type: MemoryBank" in page and "ssl-zoo ablate" in page


def test_a_table_that_is_not_finished_leaves_the_old_one(study, monkeypatch):
    study.ablate()
    before = study.text("table.csv")
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        study.ablate()
    assert study.text("table.csv") == before


def test_arms_with_different_starts_are_compared_each_with_its_own(study):
    study.write(grid="seeds: [0, 1]" + ZOO, wide=BASE.replace("name: resnet18", "name: resnet34"))
    study.ablate()
    with open(study.out / "table.csv", newline="") as file:
        first, *table = csv.DictReader(file)
    known = [r for r in json.loads(study.text("baselines.json")) if "seed" in r["depends_on"]]
    known = {
        (r["depends_on"]["backbone"]["name"], r["depends_on"]["seed"]): r["metrics"]["top1"]
        for r in known
    }
    assert first["arm"] == "raw pixels" and "random backbone" not in [r["arm"] for r in table]
    for row, name in zip(table, ("resnet18", "resnet18", "resnet34"), strict=True):
        start = [known[name, seed] for seed in (0, 1)]
        assert float(row["random_backbone"]) == pytest.approx(sum(start) / 2)
        gain = float(row["knn_top1_mean"]) - sum(start) / 2
        assert float(row["against_random_backbone_mean"]) == pytest.approx(gain)
    text = study.text("table.md")
    assert "| against MoCo | random backbone | against random backbone | pretext" in text
    assert "random backbone: knn top1 of each arm's own" in text
    assert "arms of one base see the same images" in study.text("report.html")


def test_arms_on_different_images_have_their_own_pixels(study):
    other = BASE.replace("Digits", "Synthetic").replace("in_chans: 1", "in_chans: 3")
    study.write(grid=ZOO, wide=other)
    study.ablate()
    header = study.text("table.md").splitlines()[2]
    assert "| raw pixels | against raw pixels | random backbone |" in header
    assert "raw pixels" not in study.text("table.csv")


def test_seeds_that_only_one_arm_has_are_left_out_of_the_differences(study):
    study.fake("memory-bank/64/seed1: no\nmoco/256/seed0: no")
    study.ablate(only=["MoCo", "memory bank"])
    table = study.table()
    assert float(table["memory bank", "64"]["difference_mean"]) == -10.0
    assert table["memory bank", "64"]["difference_std"] == ""
    assert float(table["memory bank", "256"]["difference_mean"]) == -10.0


def test_points_with_fewer_seeds_are_compared_by_the_seeds_they_share(study):
    study.write(grid="compare: ['MoCo, 256 > MoCo, 64']\nother_seeds: [1]\n" + GRID)
    study.ablate()
    table = study.table()
    assert table["MoCo", "64"]["seeds"] == "0 1" and table["memory bank", "64"]["seeds"] == "1"
    assert float(table["memory bank", "64"]["difference_mean"]) == -10.0
    assert table["memory bank", "64"]["difference_std"] == ""


def test_a_report_can_be_asked_for_before_anything_has_run(study, measured):
    assert study.ablate(report_only=True) == 0
    assert study.calls() == [] and measured == []
    assert "0 of 10 runs finished" in study.text("report.html")


def test_a_figure_of_nothing_and_of_arms_without_a_sweep_can_be_drawn(tmp_path, measured):
    study = Study(tmp_path)
    study.write(grid="base: base.yaml\nseeds: [0, 1]\narms: {MoCo: {}, other: {}}\n")
    study.ablate(report_only=True)
    nothing = (study.out / "figure.png").read_bytes()
    study.ablate(only=["MoCo"])
    something = (study.out / "figure.png").read_bytes()
    study.write(grid=ZOO, wide=BASE.replace("resnet18", "resnet34"))
    study.ablate()
    starts = (study.out / "figure.png").read_bytes()
    assert starts.startswith(b"\x89PNG") and starts != something
    assert nothing.startswith(b"\x89PNG") and something.startswith(b"\x89PNG")
    assert len(something) > len(nothing)


def test_sizes_stand_on_a_logarithmic_axis_and_the_rest_side_by_side():
    assert report.figure._positions(["256", "1024"]) == ({"256": 256.0, "1024": 1024.0}, True)
    assert report.figure._positions(["0.9", "0", "0.99"]) == ({"0": 0, "0.9": 1, "0.99": 2}, False)
    assert report.figure._positions(["on", "off"]) == ({"on": 0, "off": 1}, False)


class Error(Evaluation):
    metric, higher_is_better, unit = "error", False, ""


def test_every_evaluation_has_a_column_and_the_main_ones_direction_says_which_row_is_best(
    study, monkeypatch
):
    monkeypatch.setitem(EVALUATIONS.module_dict, "Error", Error)
    probe = "evaluations:\n  probe: {type: Error}\n"
    study.write(base=BASE.replace("evaluations:\n", probe))
    (study.folder / "probe").touch()
    study.ablate(only=["MoCo", "memory bank"])
    lines = study.text("table.md").splitlines()
    assert lines[2].startswith("| arm | K | seeds | probe error | against MoCo | knn top1, % |")
    (best,) = (line for line in lines if line.startswith("| **"))
    assert best.startswith("| **MoCo** | **256** | **2** | **19.00 ± 0.00** |")
    row = study.table()["memory bank", "64"]
    assert (row["probe_error_mean"], row["knn_top1_mean"]) == ("30.0", "71.0")
    study.ablate(only=["MoCo"], report_only=True, overrides=["best=knn.top1"])
    assert "| knn top1, % | against MoCo |" in study.text("table.md")


def test_two_protocols_in_one_column_are_a_warning(study):
    study.ablate(only=["MoCo"])
    written = study.out / "moco/64/seed0/result.json"
    written.write_text(written.read_text().replace('"k20"', '"other"'))
    study.ablate(report_only=True)
    text = study.text("table.md")
    assert "warning: knn was made in 2 ways" in text
    assert "(hash k20)" in text and "(hash other)" in text


# ---------------------------------------------------------------- the grids that come along

GRIDS = sorted((Path(__file__).parents[1] / "configs" / "ablation").glob("*.yaml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_grids_that_come_along_are_valid_also_with_the_papers_recipe(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for weights in re.findall(r"backbone\.weights: ([^\s}]+)", path.read_text()):
        Path(weights).parent.mkdir()  # the grid says how it is made, and here nothing reads it
        Path(weights).touch()
    own = grid.expand(path)
    if any("base" in block for block in own.blocks.values()):
        return  # another base is refused, see above
    settings = [own.common.get("set", {}), *(block.get("set", {}) for block in own.blocks.values())]
    if any(key.startswith("data.dataset.") for keys in settings for key in keys):
        return  # about one data set, whose keys another's recipe need not have
    paper = grid.expand(path, base=path.parents[1] / "imagenet" / "moco_v1.yaml")
    assert [str(run) for run in own.runs] == [str(run) for run in paper.runs]
    assert len(own.blocks) == len(paper.blocks) >= 1


@pytest.mark.parametrize("name", ["fig3", "fig3_imagenet", "demo"])
def test_figure_3_says_with_how_many_keys_an_arm_compares(name):
    (path,) = (path for path in GRIDS if path.stem == name)
    study = grid.expand(path)
    for run in (run for run in [*study.runs, *study.probes] if run.x is not None):
        memory, others = run.config["method"]["memory"], run.config["data"]["batch_size"] - 1
        assert int(run.x) == (memory.get("size") or memory.get("num_negatives") or others)
