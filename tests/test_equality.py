"""benchmarks/equality.py: others' loops step as ours does, and its report is arithmetic."""

from __future__ import annotations

import json

import pytest
import torch

DIGITS = """
_base_: {base}
data:
  dataset: {{type: Digits, limit: 128}}
  views:
    ops:
      crop: {{type: RandomResizedCrop, size: 16, scale: [0.3, 1.0]}}
  batch_size: 16
backbone: {{in_chans: 1, options: {{channels: [8, 8, 8, 16]}}}}
method:
  memory: {{size: 64}}
"""


@pytest.fixture
def equality(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import equality

    return equality


@pytest.fixture
def start(root, tmp_path, monkeypatch):
    """A run of 8 steps on digits at its start, in double precision; the same each time."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    import equality_workers

    config = tmp_path / "tiny.yaml"
    config.write_text(DIGITS.format(base=root / "configs/textures/moco_v1.yaml"))
    monkeypatch.setattr(torch.Tensor, "float", equality_workers.float_or_double)
    monkeypatch.setattr(equality_workers, "CONFIG", config)
    threads = torch.get_num_threads()

    def make(method: str):
        overrides = [*equality_workers.RECIPES[method], "train.epochs=1"]
        return equality_workers.Start(config, overrides, tmp_path / "run", double=True)

    yield make
    torch.set_num_threads(threads)


def contenders(method: str) -> dict:
    from equality_workers import CONTENDERS

    return CONTENDERS[method]


def gap(a, b) -> float:
    """The largest difference between two tensors, lists of them or state_dicts."""
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape
        return float((a - b).abs().max())
    if isinstance(a, list):
        return gap(torch.stack(a), torch.stack(b))
    assert a.keys() == b.keys()
    return max(gap(a[name], b[name]) for name in a)


def test_algorithm_1_steps_as_ours_does(start):
    by, first = contenders("moco"), start("moco")
    mine, theirs = by["ours"](start("moco")), by["Algorithm 1"](first)
    assert len(mine.losses) == len(theirs.losses) == 8
    assert mine.losses[0].dtype == mine.queue.dtype == torch.float64
    for name in mine._fields:  # losses, backbones with their statistics, queue
        assert gap(getattr(mine, name), getattr(theirs, name)) < 1e-9, name
    # 8 steps of 16 went twice through the 64 slots; the weights have moved by far more than that.
    assert (mine.queue - first.queue).abs().amax(dim=1).min() > 1e-2
    assert gap(mine.backbone, first.backbone().state_dict()) > 1e-3


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_lightlys_parts_step_as_ours_do(start, method):
    by = contenders(method)
    mine, theirs = by["ours"](start(method)), by["lightly"](start(method))
    assert gap(mine.losses, theirs.losses) < 1e-9
    assert gap(mine.backbone, theirs.backbone) < 1e-9


def test_lightlys_moco_differs_by_its_draws_for_shuffle_bn_alone(start, monkeypatch):
    from lightly.models import utils

    by, first = contenders("moco"), start("moco")
    mine, steps = by["ours"](start("moco")), iter(range(8))
    orders = {"randperm": lambda n, **_: first.order(next(steps), n)}
    monkeypatch.setattr(utils, "torch", Proxy(torch, orders))
    theirs = by["lightly"](first)
    assert gap(mine.losses, theirs.losses) < 1e-9
    assert gap(mine.backbone, theirs.backbone) < 1e-9
    assert gap(mine.queue, theirs.queue) < 1e-9


class Proxy:
    """A module with some names replaced."""

    def __init__(self, module, replaced: dict):
        self.module, self.replaced = module, replaced

    def __getattr__(self, name: str):
        return self.replaced.get(name) or getattr(self.module, name)


def test_every_contender_is_judged_by_the_same_evaluation(start):
    by = contenders("moco")
    one, other = start("moco"), start("moco")
    first, second = one.judge(by["ours"](one).backbone), other.judge(other.backbone().state_dict())
    assert first["hash"] == second["hash"]
    assert first["metrics"]["top1"] != second["metrics"]["top1"]


def test_a_line_says_what_ran_and_how_it_was_judged(start, tmp_path):
    from equality_workers import Task, run

    whole = run(Task("moco", "Algorithm 1", 3, 0.5), tmp_path)
    assert (whole["by"], whole["seed"], whole["steps"]) == ("Algorithm 1", 3, 4)
    assert len(whole["losses"]) == 4 and whole["protocol"]["k"] == 20
    assert 0 < whole["knn"] < 100 and len(whole["evaluation"]) == 12
    short = run(Task("moco", "Algorithm 1", 3, 0.5, double=True), tmp_path)
    assert "knn" not in short and short["losses"] != whole["losses"]
    assert short["losses"][0] == pytest.approx(whole["losses"][0], rel=1e-4)


def test_the_interval_is_that_of_the_t_distribution(equality):
    # Four differences of mean 0.1 and deviation 0.2: 0.1 -+ 2.3534 x 0.2 / 2.
    spread = 0.2 * 0.75**0.5
    found = equality.equivalence([0.1 - spread, 0.1 + spread] * 2, 1.0)
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((-0.13534, 0.33534), abs=1e-5)
    assert found.shown


@pytest.mark.parametrize("shift, shown", [(0.0, True), (0.9, False), (-0.9, False)])
def test_two_one_sided_tests_agree_with_the_interval(equality, shift, shown):
    found = equality.equivalence([shift - 0.3, shift + 0.3, shift + 0.1, shift - 0.1], 1.0)
    assert found.shown is shown
    assert (found.low > -1.0 and found.high < 1.0) is shown


def test_equal_runs_and_single_ones(equality):
    assert equality.equivalence([0.0, 0.0, 0.0], 1.0) == (0.0, 0.0, 0.0, 0.0)
    assert not equality.equivalence([1.5, 1.5], 1.0).shown
    with pytest.raises(ValueError, match="two seeds or more, found 1"):
        equality.equivalence([0.1], 1.0)


def line(by: str, seed: int, knn: float = 60.0, **changed) -> dict:
    losses = [5.0, 5.0 + knn / 1e6]
    ran = {
        "method": "moco",
        "by": by,
        "seed": seed,
        "epochs": 6.0,
        "steps": 7260,
        "knn": knn,
        "double": False,
    }
    where = {"commit": "abc", "date": "2026-01-02", "machine": "one", "protocol": {"k": 20}}
    return ran | {"losses": losses, "evaluation": "h", **where} | changed


def test_what_is_there_is_left_out(equality, tmp_path):
    path = tmp_path / "runs.jsonl"
    done = [line("ours", 0), line("lightly", 0), line("ours", 1)]
    whole = "".join(json.dumps(x) + "\n" for x in done)
    path.write_text(whole + '{"method": "moco", "by": "light')  # killed here
    assert equality.finished_runs(path) == done
    assert path.read_text() == whole
    left = equality.missing(done, ["moco"], [0, 1], None)
    assert [(x.by, x.seed, x.epochs) for x in left] == [
        ("ours", 0, 0.04),  # in double precision
        ("Algorithm 1", 0, 0.04),
        ("Algorithm 1", 0, 6.0),
        ("Algorithm 1", 1, 6.0),
        ("lightly", 1, 6.0),
    ]
    assert len(equality.missing(done, ["simclr"], [0, 1], None)) == 2 + 4
    with pytest.raises(ValueError, match="of 6 epochs, expected 1; give another --out"):
        equality.missing(done, ["moco"], [0], 1.0)


def test_runs_are_done_once(equality, tmp_path, monkeypatch):
    asked = []

    def trained(task):
        asked.append((task.by, task.double))
        if asked == [("ours", True)]:
            raise RuntimeError("killed")
        return line(task.by, task.seed) | {"seconds": 60.0, "double": task.double}

    monkeypatch.setattr(equality, "trained", trained)
    assert equality.run(tmp_path, ["moco"], [0], None, 1) == 1
    assert equality.run(tmp_path, ["moco"], [0], None, 1) == 0
    whole = [(by, False) for by in ("ours", "Algorithm 1", "lightly")]
    assert asked == [("ours", True), ("Algorithm 1", True), *whole, ("ours", True)]


def test_the_report_pairs_by_seed(equality, tmp_path, capsys):
    lines = [line("ours", s, 60.0 + s) for s in (0, 1, 2)]
    lines += [line("Algorithm 1", s, 60.0 + s + shift) for s, shift in ((1, 0.2), (2, -0.2))]
    lines += [line("lightly", 0, 63.0)]
    short = {"double": True, "steps": 48, "epochs": 0.04}
    lines += [
        line("ours", 0, **short),
        line("Algorithm 1", 0, **short, losses=[5.0, 5.00006 + 1e-9]),
    ]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    equality.report(tmp_path, tmp_path / "results" / "equality.json")
    kept = json.loads((tmp_path / "results" / "equality.json").read_text())
    plain, lightly = kept["rows"]
    assert plain["seeds"] == [1, 2] and plain["ours"] == [61.0, 62.0]
    assert plain["mean"] == 0.0 and plain["within"] is False
    assert plain["losses"]["fp32"] == pytest.approx(2e-7, rel=0.01)
    assert plain["losses"]["double"] == pytest.approx(1e-9, rel=0.01)
    assert lightly["seeds"] == [0] and not {"low", "within"} & lightly.keys()
    shown = capsys.readouterr().out
    assert "| moco, 6 epochs | Algorithm 1 | 2 | 61.50 | 61.50 | " in shown
    assert "-1.26 to +1.26 | not shown" in shown and "two seeds or more" in shown
    assert "; in double precision 1e-09 in 48 |" in shown


@pytest.mark.parametrize("changed", [{"epochs": 1.0}, {"evaluation": "other"}, {"steps": 3}])
def test_runs_that_cannot_be_compared_are_refused(equality, changed):
    with pytest.raises(ValueError, match=f"more than one {next(iter(changed))}"):
        equality.compared([line("ours", 0), line("lightly", 0, **changed)])
