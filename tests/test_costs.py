"""What a step costs: which points are probed, when, and what is made of the numbers."""

import json
import subprocess

import pytest
from test_ablation import Study, measured  # noqa: F401  (a fixture)

from ssl_zoo import config, experiment
from ssl_zoo.config import ConfigError
from ssl_zoo.study import costs, report
from ssl_zoo.study.costs import Cost

SWEEP = "costs:\n  MoCo: {method.memory.size: [256, 512]}\nx: K"


@pytest.fixture
def study(tmp_path, measured, monkeypatch):  # noqa: F811
    """A study that asks for costs; what was probed is in `probed`."""
    study = Study(tmp_path)
    study.write(grid=study.grid.read_text().replace("x: K", SWEEP))
    study.probed = []

    def probe(run):
        study.probed.append((run.arm, run.x))
        return Cost(run.arm, run.x, 10.0, 1.0, 32, 1, costs._hash(run))

    monkeypatch.setattr(costs, "_probe", probe)
    monkeypatch.setattr(report.figure, "draw", lambda table, path: path.touch())
    return study


POINTS = [("MoCo", "64"), ("MoCo", "256"), ("memory bank", "64"), ("memory bank", "256")]
POINTS += [("<b>end-to-end</b>", "64"), ("MoCo", "512")]


def test_points_of_the_grid_and_further_ones_are_probed_once_after_the_runs(study):
    assert study.ablate() == 0
    assert study.probed == POINTS
    assert len(study.calls()) == 10 and len(study.expand().runs) == 10
    assert [(c["arm"], c["x"]) for c in json.loads(study.text("costs.json"))] == POINTS
    assert "MoCo, 512: 10.0 ms, 1.00 GB" in study.text("table.md")
    study.probed.clear()
    assert study.ablate() == 0 and study.probed == []


def test_a_probe_of_another_config_is_made_again(study):
    study.out.mkdir()
    costs.measure(study.expand(), study.expand().blocks, print)
    study.probed.clear()
    other = study.expand(overrides=["method.loss.temperature=0.3"])
    costs.measure(other, other.blocks, print)
    assert study.probed == POINTS


def test_of_arms_that_are_not_asked_for_no_cost_is_probed_and_none_forgotten(study):
    of_moco = [point for point in POINTS if point[0] == "MoCo"]
    assert study.ablate(only=["MoCo"]) == 0 and sorted(study.probed) == sorted(of_moco)
    study.probed.clear()
    assert study.ablate(only=["memory bank"]) == 0
    assert study.probed == [point for point in POINTS if point[0] == "memory bank"]
    kept = {(cost["arm"], cost["x"]) for cost in json.loads(study.text("costs.json"))}
    assert kept == {*of_moco, *study.probed}


def test_nothing_is_probed_that_is_not_asked_for_or_while_runs_are_left(study):
    study.fake("moco/256/seed0: no")
    assert study.ablate(report_only=True) == 0 and study.probed == []
    study.write(grid=study.grid.read_text().replace(SWEEP, "x: K"))
    assert study.expand().probes == [] and study.ablate() == 1 and study.probed == []


def test_a_probe_that_fails_is_said_and_leaves_the_others_alone(study, monkeypatch, capfd):
    probe = costs._probe

    def fail(run):
        if run.x == "512":
            raise subprocess.CalledProcessError(
                1, "python", stderr="Traceback\nValueError: no room"
            )
        return probe(run)

    monkeypatch.setattr(costs, "_probe", fail)
    assert study.ablate() == 1
    assert "it could not be told: ValueError: no room" in capfd.readouterr().out
    assert len(json.loads(study.text("costs.json"))) == len(POINTS) - 1


@pytest.mark.parametrize(
    "text, message",
    [("{MoCOO: {}}", r"(?s)costs: no arm of this name.*MoCo"), ("{MoCo: {a: 1}}", "neither one")],
)
def test_wrong_costs_are_an_error(study, text, message):
    study.write(grid=study.grid.read_text().replace(SWEEP, f"costs: {text}\nx: K"))
    with pytest.raises(ConfigError, match=message):
        study.expand()


def test_a_line_through_the_two_largest_points_says_where_the_limit_is_met():
    assert costs.meets([(0, 9.0), (1000, 2.0), (2000, 4.0)], 8.0) == 4000
    assert costs.meets([(1000, 2.0), (2000, 2.0)], 8.0) is None
    assert costs.meets([(1000, 2.0), (2000, 9.0)], 8.0) is None


def test_only_sizes_among_those_probed_are_extrapolated_to():
    def cost(arm, x, gb):
        return Cost(arm, x, 1.0, gb, 32, 1, "")

    flat = [cost("MoCo", "1000", 1.0), cost("MoCo", "65536", 1.1)]
    steep = [cost("end-to-end", "1000", 2.0), cost("end-to-end", "2000", 4.0)]
    assert costs.extrapolated([*flat, *steep]) == {"end-to-end": 4000}
    assert costs.extrapolated(steep) == {}


def test_a_step_of_a_run_has_a_time_and_takes_memory(tmp_path):
    text = """
data: {dataset: {type: Digits}, views: {ops: {}}, clean: {ops: {}}, batch_size: 16}
backbone: {type: TinyNet}
method:
  type: Contrastive
  head: {type: Linear, out_features: 8}
  memory: {type: MoCoQueue, size: 64}
  loss: {type: InfoNCE}
optimizer: {type: SGD, lr: 0.1}
train: {epochs: 1}
"""
    (tmp_path / "tiny.yaml").write_text(text)
    resolved = experiment.parse(config.load(tmp_path / "tiny.yaml")).spelled_out()
    seconds, peak = experiment.cost_of_step(resolved, threads=1, steps=4)
    assert 0 < seconds < 10 and peak > 1e7
