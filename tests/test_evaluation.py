"""Evaluations as registered parts: what follows from a new one, and what training notices."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import random
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny import same
from torch import nn

from ssl_zoo import cli, config, evaluation, experiment, memory
from ssl_zoo.config import EVALUATIONS, Config, ConfigError, PositiveFloat, bind
from ssl_zoo.data import Data, ImageSet
from ssl_zoo.data.datasets import bundled
from ssl_zoo.data.image import Views
from ssl_zoo.engine import checkpoint
from ssl_zoo.engine.optimizers import SGD
from ssl_zoo.engine.stop import Interrupted
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.evaluation import features
from ssl_zoo.evaluation.base import Evaluation, Outcome, Rows
from ssl_zoo.evaluation.monitor import baseline_network
from ssl_zoo.methods.supervised import Supervised
from ssl_zoo.runs import RunFolder
from ssl_zoo.study import grid, report
from ssl_zoo.system import distributed
from ssl_zoo.system.rng import random_state
from ssl_zoo.testing.ranks import on_ranks

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "configs" / "digits" / "moco_v2.yaml"
CPU = torch.device("cpu")
QUICK = [
    ("backbone", {"type": "TinyNet", "norm": True, "bn_groups": 2}),
    "data.dataset.limit=160",
    "data.batch_size=32",
    "train.precision=fp32",
    "train.log_every=2",
    "train.epochs=2",
    "method.memory.size=64",
    "evaluations.knn=null",
]
KNN = ("evaluations.knn", {"type": "KNN", "k": 20})
PROBE = ("evaluations.probe", {"type": "OnlineProbe"})
EVERYTHING = [KNN, PROBE, ("evaluations.linear", {"type": "Linear", "epochs": 2})]


def make(folder, *overrides, baselines=False):
    cfg = config.load(DIGITS, [*QUICK, *overrides])
    trainer = experiment.build_trainer(cfg, CPU, RunFolder(folder), baselines)
    trainer.console = Console(file=io.StringIO())
    return trainer


def trained(folder, *overrides, **settings):
    trainer = make(folder, *overrides, **settings)
    trainer.resume()
    trainer.fit()
    return trainer


def lines(folder, kind="evaluation"):
    return [line for line in RunFolder(folder).metrics() if line["kind"] == kind]


# One new file and a block of YAML.

# As docs/evaluation.md has it.
DOC = (ROOT / "docs" / "evaluation.md").read_text()
NEW_EVALUATION = DOC.partition("```python\n")[2].partition("```")[0]
NEW_MEMORY = '''
from ssl_zoo.config import MEMORY
from ssl_zoo.memory.end_to_end import EndToEnd

@MEMORY.register_module()
class TheBatch(EndToEnd):
    """The keys of the batch."""
'''
GRID = """
base: {base}
set:
  train: {{epochs: 3}}
  data: {{batch_size: 64, dataset: {{limit: 320}}}}
  backbone.options: {{layers: [1, 1, 1, 1], channels: [4, 4, 4, 4]}}
  evaluations.knn: {{type: MeanNorm, every_epochs: 1}}
  best: knn.norm
arms:
  mine: {{set: {{method.memory: {{type: TheBatch}}}}}}
"""


def add_file(package, folder, name, text):
    """A file more in a package's folder, as the package finds it when it is imported."""
    folder.mkdir()
    (folder / f"{name}.py").write_text(text)
    package.__path__.append(str(folder))
    try:
        exec(Path(package.__file__).read_text(), vars(package))
    finally:
        package.__path__.pop()


def test_a_new_evaluation_or_memory_is_one_new_file_and_a_block(tmp_path, capsys):
    """Monitor, best.pt, a grid's report and the command follow; nothing else is edited."""
    add_file(evaluation, tmp_path / "evaluation", "mean_norm", NEW_EVALUATION)
    add_file(memory, tmp_path / "memory", "the_batch", NEW_MEMORY)
    (tmp_path / "grid.yaml").write_text(GRID.format(base=DIGITS))
    try:
        study = grid.expand(tmp_path / "grid.yaml", tmp_path / "study")
        for run in study.runs:
            run.files.begin(run.config, {})
            trainer = experiment.build_trainer(Config(run.config), CPU, run.files)
            trainer.fit()
        report.write_report(study)
        assert cli.main(["evaluate", "knn", str(run.folder), "--device", "cpu"]) == 0
    finally:
        del config.EVALUATIONS.module_dict["MeanNorm"], config.MEMORY.module_dict["TheBatch"]
    assert type(trainer.method.memory).__name__ == "TheBatch"
    written, result = lines(run.folder), run.files.result()
    last = written[-1]["norm"]
    assert [line["step"] for line in written] == [5, 10, 15]
    assert result["evaluations"]["knn"]["metrics"]["norm"] == last
    best = min(written, key=lambda line: line["norm"])  # lower is better
    assert result["best"] == {"metric": "knn.norm", "value": best["norm"]}
    saved = checkpoint.read(run.folder / "checkpoints" / "best.pt")
    assert saved["trainer"]["step"] == best["step"]
    rows = list(csv.DictReader((run.folder / "evaluations" / "knn" / "rows.csv").open()))
    mean = sum(float(row["score"]) for row in rows) / len(rows)
    assert mean == pytest.approx(last, rel=1e-5)
    table = (tmp_path / "study" / "table.md").read_text()
    assert "knn norm" in table and f"{last:.2f}" in table
    assert f"knn: norm {last:.2f}  (" in capsys.readouterr().out


# Training does not notice.


@EVALUATIONS.register_module()
class TrainsAProbe(Evaluation):
    """Trains a copy of the backbone on augmented images; for tests."""

    wants = "backbone"

    def __init__(self, *, lr: PositiveFloat = 0.1, epochs: PositiveFloat = 2.0):
        self.lr, self.epochs = lr, epochs

    def evaluate(self, context):
        blocks, splits = context.splits.blocks, context.splits
        ops = {"crop": {"type": "RandomResizedCrop", "size": 8}}
        views = bind(Views, {"ops": ops | blocks["clean"].spelled_out()["ops"]})
        data = Data(
            7,
            dataset=blocks["dataset"],
            views=views,
            clean=blocks["clean"],
            batch_size=32,
            workers=0,
        )
        backbone = copy.deepcopy(context.backbone)
        method = Supervised(backbone, data.num_classes, data.labels)
        context.train(method, data, SGD(method, lr=self.lr), epochs=self.epochs, log_every=1)
        test = features.extract_split(backbone, splits, "test", context.device)
        return distributed.attempt(lambda: self.outcome(method, test))

    @torch.no_grad()
    def outcome(self, method, test):
        logits = method.encoder.head(test.features)
        rows = Rows.of(test, logits.argmax(1), logits.softmax(1).amax(1))
        top1 = 100 * (rows.prediction == rows.label).float().mean().item()
        weights = float(sum(p.double().sum() for p in method.parameters()))
        return Outcome({"top1": top1, "weights": weights}, {"epochs": self.epochs}, rows)


AUGMENTED = ("evaluations.augmented", {"type": "TrainsAProbe", "every_epochs": None})
MLP = {"type": "MLP", "out_features": 16}
METHODS = {
    "moco": [],
    "memory bank": [("method.memory", {"type": "MemoryBank", "num_negatives": 32})],
    "byol": [("method", {"type": "BYOL", "head": MLP, "predictor": MLP})],
    "swav": [("method", {"type": "SwAV", "prototypes": 20, "head": MLP})],
    "rotation": [("method", {"type": "Rotation"})],
}


def everything(trainer):
    """All that training has moved or logged, but for times."""
    state = trainer.parallel.state_dict()
    times = ("seconds", "images_per_s")
    logged = lines(trainer.folder.path, "train")
    return state, [{k: v for k, v in line.items() if k not in times} for line in logged]


@pytest.mark.parametrize("method", METHODS)
def test_no_evaluation_changes_a_bit_of_training(method, tmp_path):
    overrides = METHODS[method]
    plain = everything(trained(tmp_path / "none", *overrides))
    more = [*overrides, *EVERYTHING, AUGMENTED, "evaluations.augmented.every_epochs=1"]
    found = trained(tmp_path / "all", *more, baselines=True)
    assert len(found.results["evaluations"]) == 4
    assert same(everything(found), plain)


# A trainer inside another's run.


def interrupted_at(monkeypatch, step, how):
    """Every trainer calls `how` after this step of training `inside` the run."""
    plain = Trainer.train_step

    def train_step(self, batch):
        if "augmented" in str(self.folder.path) and self.step == step:
            how(self)
        return plain(self, batch)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_a_trainer_inside_is_interrupted_and_both_go_on(tmp_path, monkeypatch):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    whole = trained(tmp_path / "whole", AUGMENTED)
    folder = tmp_path / "parts"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 4, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match=r"stopped at step 5; saved .*augmented"):
            trained(folder, AUGMENTED)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    run = RunFolder(folder)
    assert run.checkpoints()[-1].name == "step_00000010.pt" and not run.finished
    (path,) = run.inside("evaluations", "augmented").path.glob("step_00000010-*")
    inside = RunFolder(path)  # and by the hash of what is measured
    assert inside.checkpoints()[-1].name == "step_00000005.pt"
    parts = trained(folder, AUGMENTED)
    assert run.finished
    steps = [line["step"] for line in inside.metrics()]
    assert steps == list(range(1, 11))  # what was done was not done again
    ends = [t.results["evaluations"]["augmented"]["metrics"] for t in (whole, parts)]
    assert ends[0] == ends[1]
    assert same(everything(parts)[0], everything(whole)[0])


def test_a_trainer_inside_leaves_random_states_and_modes(tmp_path):
    trainer = make(tmp_path, AUGMENTED)
    backbone, seen = trainer.method.encoder.backbone, []
    monitor = trainer.hooks["evaluations"]
    plain = monitor._evaluate

    def watched(trainer, names):
        before = random_state(CPU), [m.training for m in backbone.modules()]
        plain(trainer, names)
        assert same(before, (random_state(CPU), [m.training for m in backbone.modules()]))
        seen.append(list(names))

    monitor._evaluate = watched
    trainer.fit()
    assert seen[-1] == ["augmented"]


# What is lost when one fails: nothing.


@EVALUATIONS.register_module()
class Fails(Evaluation):
    """Fails while told to; for tests."""

    broken = True

    def judge(self, train, test, device="cpu"):
        if Fails.broken:
            raise RuntimeError("a disk is full")
        return Outcome({"top1": 1.0}, {})


def test_an_evaluation_that_fails_loses_nothing_and_is_made_up_for(tmp_path, monkeypatch):
    fails = ("evaluations.fails", {"type": "Fails", "every_epochs": None})
    monkeypatch.setattr(Fails, "broken", True)
    with pytest.raises(RuntimeError, match="a disk is full"):
        trained(tmp_path, KNN, fails)
    run = RunFolder(tmp_path)
    assert run.checkpoints()[-1].name == "step_00000010.pt" and not run.finished
    monkeypatch.setattr(Fails, "broken", False)
    made = lines(tmp_path)
    trained(tmp_path, KNN, fails)
    assert lines(tmp_path)[: len(made)] == made  # kNN is not made again
    assert [line["name"] for line in lines(tmp_path)[len(made) :]] == ["fails"]
    assert list(run.result()["evaluations"]) == ["knn", "fails"]


def test_a_resume_from_before_the_newest_result_makes_each_evaluation_once(tmp_path):
    trained(tmp_path, KNN)
    made = lines(tmp_path)
    (tmp_path / "result.json").unlink()
    RunFolder(tmp_path).checkpoints()[-1].unlink()  # killed after step 5, and before step 10
    trained(tmp_path, KNN)
    again = lines(tmp_path)
    assert [line["step"] for line in again] == [5, 10]
    assert [line["top1"] for line in again] == [line["top1"] for line in made]


def test_asked_to_stop_in_the_last_evaluations_the_next_sitting_makes_the_rest(tmp_path):
    trainer = make(tmp_path, KNN, ("evaluations.linear", {"type": "Linear", "epochs": 1}))
    trainer.hooks["evaluations"]._is_best = lambda value: setattr(trainer.stop, "asked", True)
    trainer.total_steps = 5
    with pytest.raises(Interrupted, match="stopped before linear at step 5; saved"):
        trainer.fit()
    assert not trainer.folder.finished and [line["name"] for line in lines(tmp_path)] == ["knn"]


# Features, and data of one's own.


def test_features_are_extracted_once_for_all_evaluations_over_the_same_data(tmp_path, monkeypatch):
    extract, calls = features.extract, []
    monkeypatch.setattr(features, "extract", lambda *a: calls.append(1) or extract(*a))
    again = ("evaluations.again", {"type": "KNN", "k": 3, "data": {"dataset": {"limit": 160}}})
    again[1]["data"]["dataset"]["type"] = "Digits"
    other = ("evaluations.other", {"type": "KNN", "k": 3, "data": {"dataset": {"type": "Digits"}}})
    trained(tmp_path, *EVERYTHING, again, "train.epochs=1")
    assert len(calls) == 2  # of the training and the test images
    calls.clear()
    trained(tmp_path / "other", *EVERYTHING, other, "train.epochs=1")
    assert len(calls) == 4


def test_an_evaluation_has_data_of_its_own(tmp_path):
    smaller = {"ops": {"normalize": {"type": "Normalize", "mean": [0.0], "std": [9.0]}}}
    blocks = {
        "run": {},
        "dataset": {"dataset": {"type": "Digits", "limit": 100}},
        "clean": {"clean": smaller},
        "both": {"dataset": {"type": "Digits", "limit": 100}, "clean": smaller},
    }
    parts = [(f"evaluations.{n}", {"type": "KNN", "k": 3, "data": b}) for n, b in blocks.items()]
    results = trained(tmp_path, *parts, "train.epochs=1").results["evaluations"]
    banks = {name: result["protocol"]["bank"].split()[-2] for name, result in results.items()}
    assert banks == {"run": "160", "dataset": "100", "clean": "160", "both": "100"}
    assert len({result["hash"] for result in results.values()}) == 4
    stds = [r["of"]["data"]["clean"]["ops"]["normalize"]["std"] for r in results.values()]
    assert stds == [[0.376], [0.376], [9.0], [9.0]]


def test_random_operations_for_an_evaluation_are_refused_by_the_check():
    random = {"ops": {"crop": {"type": "RandomResizedCrop", "size": 8}}}
    block = ("evaluations.knn", {"type": "KNN", "data": {"clean": random}})
    with pytest.raises(ConfigError, match="takes no random operation") as caught:
        experiment.parse(config.load(DIGITS, [block]))
    assert caught.value.key == "evaluations.knn.data.clean.ops.crop"


# What a number is.


def hash_of(folder, *overrides):
    return trained(folder, KNN, "train.epochs=0.4", *overrides).results["evaluations"]["knn"][
        "hash"
    ]


def test_the_hash_is_of_what_numbers_depend_on(tmp_path):
    plain = hash_of(tmp_path / "plain")
    alike = ["evaluations.knn.every_epochs=null", "data.workers=1", "train.precision=bf16"]
    assert hash_of(tmp_path / "alike", *alike) == plain
    other = ["evaluations.knn.k=21", "evaluations.knn.temperature=0.1", "data.dataset.limit=150"]
    other += ["evaluations.knn.train_limit=100", "evaluations.knn.precision=bf16"]
    hashes = [hash_of(tmp_path / str(i), setting) for i, setting in enumerate(other)]
    baseline = lines(trained(tmp_path / "b", KNN, baselines=True).folder.path, "baseline")
    hashes += [line["hash"] for line in baseline]
    assert len({plain, *hashes}) == 1 + 5 + 2


def test_rows_agree_with_top1_and_say_which_images(tmp_path):
    limit = ("evaluations.knn", {"type": "KNN", "k": 20, "test_limit": 40})
    trained(tmp_path, limit, PROBE, AUGMENTED)
    for line in lines(tmp_path)[-3:]:
        path = tmp_path / "evaluations" / line["name"] / "rows.csv"
        rows = list(csv.DictReader(path.open()))
        hits = [row["label"] == row["prediction"] for row in rows]
        assert 100 * sum(hits) / len(hits) == pytest.approx(line["top1"])
        step = 4 if line["name"] == "knn" else 1
        assert [int(row["index"]) for row in rows] == list(range(0, 160, step))
        assert all(0 < float(row["score"]) <= 1 for row in rows)


# The best checkpoint.


@pytest.mark.parametrize(
    "best, nearest",
    [("kn.top1", "knn"), ("knn.top11", "top1"), ("linear.top1", "")],
)
def test_a_best_that_does_not_exist_is_an_error(best, nearest, tmp_path):
    with pytest.raises(ConfigError) as caught:
        trained(tmp_path, KNN, f"best={best}")
    assert caught.value.key == "best" and caught.value.nearest == nearest


def test_the_first_evaluations_main_metric_is_best_unless_said_otherwise(tmp_path):
    first = trained(tmp_path / "first", KNN, PROBE).results["best"]
    said = trained(tmp_path / "said", KNN, PROBE, "best=probe.top5").results["best"]
    assert first["metric"] == "knn.top1" and said["metric"] == "probe.top5"
    assert said["value"] == max(x["top5"] for x in lines(tmp_path / "said") if x["name"] == "probe")
    assert "best" not in trained(tmp_path / "none").results


# Baselines.


class Flat(nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


def test_baselines_come_before_step_0_once_and_the_data_set_adds_its_own(tmp_path, monkeypatch):
    dataset = config.DATASETS.get("Digits")
    monkeypatch.setattr(dataset, "baselines", {"mean": Flat})
    names = ["raw pixels", "random backbone", "mean"]
    trainer = make(tmp_path, KNN, "checkpoint.every_epochs=0.2", baselines=True)
    trainer.total_steps = 3
    trainer.fit()
    first = lines(tmp_path, "baseline")
    assert [(line["baseline"], line["step"]) for line in first] == [(name, 0) for name in names]
    trained(tmp_path, KNN, baselines=True)
    assert lines(tmp_path, "baseline") == first

    resolved = experiment.parse(config.load(DIGITS, [*QUICK, KNN])).spelled_out()
    measured = experiment.measure_baselines(resolved, "knn", names)
    assert {n: r["metrics"]["top1"] for n, r in measured.items()} == {
        line["baseline"]: line["top1"] for line in first
    }
    assert [r["hash"] for r in measured.values()] == [line["hash"] for line in first]
    monkeypatch.setattr(bundled, "_sklearn", lambda *_: pytest.fail("data were read"))
    of = experiment.baselines_of(resolved)["knn"]
    assert list(of) == names and "seed" in of["random backbone"] and "seed" not in of["mean"]


@EVALUATIONS.register_module()
class Draws(Evaluation):
    """Draws wherever it can; for tests."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4) + random.random())

        def forward(self, images):
            return images.mean((1, 2, 3))[:, None] * self.weight

    baselines = {"drawn": Network}  # noqa: RUF012

    def __init__(self):
        self.drawn = random.random()

    def check(self, splits):
        torch.randn(1)

    def judge(self, train, test, device="cpu"):
        return Outcome({"top1": test.features.sum().item()}, {})


DRAWS = ("evaluations.draws", {"type": "Draws"})


def measured_with_draws(folder, seed=0):
    """The baseline's value, and whether any random state has moved."""
    random.seed(0)
    trainer, plain = make(folder, DRAWS, baselines=True), random.random()
    random.seed(0)
    make(folder)
    assert plain == random.random()  # the constructor drew nothing of the run's
    torch.manual_seed(seed + distributed.rank())
    before = random_state(CPU)
    trainer.hooks["evaluations"].before_train(trainer)
    assert same(before, random_state(CPU))
    return lines(folder, "baseline")[0]["top1"]


def test_what_evaluations_and_baselines_draw_leaves_no_trace_and_is_of_the_seed(tmp_path):
    first = measured_with_draws(tmp_path / "first")
    assert measured_with_draws(tmp_path / "second", seed=1) == first
    resolved = experiment.parse(config.load(DIGITS, [*QUICK, DRAWS])).spelled_out()
    before = random_state(CPU)
    measured = experiment.measure_baselines(resolved, "draws", ["drawn"])
    assert same(before, random_state(CPU))
    assert measured["drawn"]["metrics"]["top1"] == first


def drawn_on_a_rank():
    torch.manual_seed(distributed.rank())
    return baseline_network(Draws.Network, 0, CPU).weight.detach()


def test_two_ranks_draw_one_baseline():
    first, second = on_ranks(2, drawn_on_a_rank)
    assert torch.equal(first, second)


def test_baselines_are_measured_one_network_at_a_time(tmp_path):
    trainer = make(tmp_path, KNN, ("evaluations.again", {"type": "KNN", "k": 3}), baselines=True)
    trainer.hooks["evaluations"].before_train(trainer)
    pairs = [(line["baseline"], line["name"]) for line in lines(tmp_path, "baseline")]
    names = ("raw pixels", "random backbone")
    assert pairs == [(baseline, name) for baseline in names for name in ("knn", "again")]


def test_asked_to_stop_among_the_baselines_the_next_sitting_makes_the_rest(tmp_path):
    trainer = make(tmp_path, KNN, baselines=True)
    record = trainer.record
    trainer.record = lambda *a, **k: [record(*a, **k), setattr(trainer.stop, "asked", True)]
    with pytest.raises(Interrupted, match="stopped before random backbone of knn"):
        trainer.fit()
    first = lines(tmp_path, "baseline")
    assert len(first) == 1
    again = lines(
        trained(tmp_path, KNN, "train.epochs=0.2", baselines=True).folder.path, "baseline"
    )
    assert again[:1] == first and len(again) == 2


def test_not_a_number_is_never_best(tmp_path):
    monitor = make(tmp_path, KNN).hooks["evaluations"]
    assert [monitor._is_best(value) for value in (float("nan"), 1.0, float("nan"), 2.0)] == [
        False,
        True,
        False,
        True,
    ]


# Names, and what does not go together.


@pytest.mark.parametrize("name", ["all", "source", "by_hand", "a.b", "a b", "../a", "", 1])
def test_a_name_that_cannot_be_typed_or_be_a_folder_is_refused_by_the_check(name):
    with pytest.raises(ConfigError, match="no name for an evaluation"):
        experiment.parse(config.load(DIGITS, [("evaluations", {name: KNN[1]})]))


def test_a_metric_is_not_named_like_what_lines_have_anyway(tmp_path, monkeypatch):
    monkeypatch.setattr(Draws, "judge", lambda *_, device: Outcome({"top1": 1.0, "step": 2.0}, {}))
    with pytest.raises(ValueError, match="Draws: 'step' is no name for a metric"):
        trained(tmp_path, DRAWS, "train.epochs=0.2")
    monkeypatch.setattr(Draws, "metric", "hash")
    with pytest.raises(ConfigError, match="no name for a metric"):
        experiment.parse(config.load(DIGITS, [DRAWS]))


def test_what_learns_beside_the_run_is_judged_on_the_runs_classes():
    data = {"dataset": {"type": "Digits", "limit": 100}}
    with pytest.raises(ConfigError, match="OnlineProbe learns the run's classes") as caught:
        experiment.parse(config.load(DIGITS, [PROBE, ("evaluations.probe.data", data)]))
    assert caught.value.key == "evaluations.probe.data.dataset"
    clean = {"ops": {"normalize": {"type": "Normalize", "mean": [0.0], "std": [9.0]}}}
    experiment.parse(config.load(DIGITS, [PROBE, ("evaluations.probe.data", {"clean": clean})]))


# The command.


def test_what_learns_beside_a_run_is_left_out_of_all_and_else_refused_first(
    tmp_path, capsys, monkeypatch
):
    path = str(tmp_path / "config.yaml")
    config.dump(config.load(DIGITS, [*QUICK, KNN, PROBE]).data, tmp_path / "config.yaml")
    assert cli.main(["evaluate", "all", path, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "left out, as they learn beside a run: probe" in said and "knn: top1" in said
    monkeypatch.setattr(bundled, "_sklearn", lambda *_: pytest.fail("data were read"))
    assert cli.main(["evaluate", "probe", path, "--device", "cpu"]) == 2
    assert "OnlineProbe is trained beside a method" in capsys.readouterr().err


def test_evaluate_leaves_nothing_in_the_temporary_folder(tmp_path, monkeypatch):
    config.dump(config.load(DIGITS, [*QUICK, AUGMENTED]).data, tmp_path / "config.yaml")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = str(tmp_path / "config.yaml")
    assert cli.main(["evaluate", "augmented", path, "--device", "cpu"]) == 0
    assert not list((tmp_path / "temporary").iterdir())


def test_evaluate_takes_a_run_a_checkpoint_a_config_and_overrides(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out.json"
    whole = trained(run, KNN, PROBE, AUGMENTED)
    config.dump(config.load(DIGITS, [*QUICK, KNN]).data, tmp_path / "config.yaml")

    def top1(name, path, *words):
        words = ["evaluate", name, str(path), *words, "--device", "cpu", "--out", str(out)]
        assert cli.main(words) == 0, capsys.readouterr().err
        return {
            n: r["metrics"]["top1"] for n, r in json.loads(out.read_text()).items() if n != "source"
        }

    ends = {n: r["metrics"]["top1"] for n, r in whole.results["evaluations"].items()}
    assert top1("all", run) == ends  # the probe of the last step, and one trained anew
    checkpoints = RunFolder(run).checkpoints()
    assert top1("probe", checkpoints[0]) == {"probe": lines(run)[1]["top1"]}
    assert top1("KNN", run, "k=20") == {"KNN": ends["knn"]}
    assert top1("knn", run, "data={dataset: {type: Digits, limit: 30}}", "k=3") != ends["knn"]
    random = top1("knn", tmp_path / "config.yaml")
    assert json.loads(out.read_text())["knn"]["of"]["network"] == "random backbone"
    assert random["knn"] != ends["knn"]
    assert cli.main(["evaluate", "probe", str(run), "lr=1"]) == 2
    assert "OnlineProbe was trained with {'lr': 0.1" in capsys.readouterr().err


# The online probe.


def test_the_online_probe_learns(tmp_path):
    """On labels, without augmentation and at leisure it comes near a probe trained afterwards."""
    results = trained(
        tmp_path,
        ("method", {"type": "Supervised"}),
        ("backbone", {"type": "TinyNet", "width": 32}),
        ("data.views", {"ops": {"normalize": {"type": "Normalize", "mean": [0.3], "std": [0.4]}}}),
        "data.dataset.limit=640",
        "train.epochs=30",
        "optimizer.lr=0.3",
        "checkpoint.every_epochs=30",
        ("evaluations.probe", {"type": "OnlineProbe", "every_epochs": None}),
        ("evaluations.linear", {"type": "Linear", "every_epochs": None, "epochs": 30}),
    ).results["evaluations"]
    probe, linear = (results[name]["metrics"]["top1"] for name in ("probe", "linear"))
    assert probe > 60 and probe > linear - 12


def test_an_online_probe_resumed_in_mid_epoch_is_bitwise(tmp_path):
    whole = trained(tmp_path / "whole", PROBE)
    first = make(tmp_path / "parts", PROBE)
    plain = first.train_step

    def train_step(batch):
        first.stop.asked = first.step == 6
        return plain(batch)

    first.train_step = train_step
    with pytest.raises(Interrupted, match="stopped at step 7"):
        first.fit()
    second = trained(tmp_path / "parts", PROBE)
    states = [t.hooks["evaluations"].state_dict() for t in (first, second, whole)]
    assert same(states[1], states[2]) and not same(states[0], states[2])
    assert same(everything(second)[0], everything(whole)[0])
    assert lines(tmp_path / "parts")[-1]["top1"] == lines(tmp_path / "whole")[-1]["top1"]


def on_a_rank(folder):
    no_norm = ["backbone={norm: false, bn_groups: 1}", "method.memory.shuffle_bn=false"]
    trainer = trained(folder, PROBE, AUGMENTED, *no_norm)
    results = trainer.results["evaluations"]
    probe = trainer.hooks["evaluations"].evaluations["probe"].classifier.state_dict()
    return probe, [results[name]["metrics"]["top1"] for name in ("probe", "augmented")]


def test_two_ranks_teach_a_probe_beside_the_method_or_inside_the_run_as_one_does(tmp_path):
    weights, top1 = on_a_rank(tmp_path / "one")
    for found, said in on_ranks(2, on_a_rank, tmp_path / "two"):
        torch.testing.assert_close(found, weights, rtol=1e-3, atol=1e-4)
        assert said == pytest.approx(top1, abs=1.5)


def test_an_unlabeled_training_set_has_no_online_probe():
    class Unlabeled(ImageSet):
        labels = torch.full((4,), -1)

    class Images:
        def split(self, name):
            return Unlabeled()

    with pytest.raises(ValueError, match="OnlineProbe needs labels"):
        EVALUATIONS.get("OnlineProbe")().check(Images())
