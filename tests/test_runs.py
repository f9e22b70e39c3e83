"""A run's folder: who owns it, what makes another run of it, and what goes on."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from ssl_zoo import cli, config, experiment
from ssl_zoo.config import OBSERVERS
from ssl_zoo.config.constraints import MACHINE, marked, of_yaml
from ssl_zoo.core import Observer
from ssl_zoo.data import Data
from ssl_zoo.engine import checkpoint
from ssl_zoo.engine.hooks import Checkpoints
from ssl_zoo.engine.settings import TrainSettings
from ssl_zoo.engine.stop import StopSignal
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.ops import health
from ssl_zoo.runs import Lock, RunFolder
from ssl_zoo.testing.ranks import start

ROOT = Path(__file__).resolve().parents[1]
DIGITS = str(ROOT / "configs" / "digits" / "moco_v2.yaml")
TINY = [
    "backbone={type: TinyNet, norm: true}",
    "data.dataset.limit=160",
    "data.batch_size=32",
    "train.precision=fp32",
    "train.log_every=1",
    "method.memory.size=50",
]
QUICK = [  # of parts that another process knows
    "backbone.options={layers: [1, 1, 1, 1], channels: [4, 4, 4, 4]}",
    *TINY[1:],
    "train.epochs=8",
    "train.threads=1",
    "evaluations.knn=null",
]


def train(folder: Path, *words: str) -> int:
    """`ssl-zoo train` in this process: 2 epochs of 5 steps."""
    command = ["train", DIGITS, *TINY, "train.epochs=2", "evaluations.knn.k=20"]
    return cli.main([*command, *words, "--out", str(folder), "--device", "cpu"])


def quick(folder: Path, *words: str, errors: Path | None = None) -> None:
    """Another process's `ssl-zoo train`, 8 epochs of 5 steps; exits with its status."""
    with contextlib.redirect_stderr(errors.open("w") if errors else sys.stderr):
        sys.exit(cli.main(["train", DIGITS, *QUICK, *words, "--out", str(folder)]))


def ablate(grid: Path, folder: Path, errors: Path) -> None:
    """Another process's `ssl-zoo ablate`."""
    with contextlib.redirect_stderr(errors.open("w")):
        sys.exit(cli.main(["ablate", str(grid), *QUICK, "--out", str(folder), "--jobs", "1"]))


def limited(size: int, folder: Path, *words: str, errors: Path) -> None:
    """`quick` in a process that may write no file of more bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    quick(folder, *words, errors=errors)


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in RunFolder(folder).metrics() if line["kind"] == "train"]


def trained(folder: Path) -> dict:
    """All that training has moved, to be compared bitwise."""
    state = checkpoint.read(RunFolder(folder).checkpoints()[-1])
    return {"method": state["method"], "optimizer": state["optimizer"], "ranks": state["ranks"]}


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def cut_short(folder: Path, to: Path, step: int) -> Path:
    """A copy of a finished run, as if it had been killed after a step."""
    shutil.copytree(folder, to)
    (to / "result.json").unlink()
    for path in (to / "checkpoints").iterdir():
        if path.name == "best.pt" or path > RunFolder(to).checkpoint(step):
            path.unlink()
    return to


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# One process at a time.

HOLD = """
import sys, time
from pathlib import Path
from ssl_zoo.runs import Lock

Lock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """A run folder that another process holds, and the process."""
    folder = tmp_path / "run"
    words = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.wait()


def test_a_second_start_says_who_holds_the_folder_and_touches_nothing(held, capsys):
    folder, process = held
    (folder / "metrics.jsonl").write_text("theirs\n")
    assert train(folder) == 2
    said = capsys.readouterr().err
    assert f"is being written to by process {process.pid} on {platform.node()}, since" in said
    assert {path.name for path in folder.iterdir()} == {".lock", "metrics.jsonl"}
    assert (folder / "metrics.jsonl").read_text() == "theirs\n"


def test_a_dead_process_holds_nothing(held):
    folder, process = held
    lock = Lock(folder / ".lock")
    assert str(process.pid) in lock.holder()
    process.kill()
    process.wait()
    assert str(process.pid) in lock.path.read_text()  # what it has left
    assert lock.holder() == ""
    lock.acquire()
    assert str(os.getpid()) in lock.holder()
    with pytest.raises(FileExistsError, match=f"this process, {os.getpid()}"):
        Lock(folder / ".lock").acquire()
    lock.release()
    assert lock.holder() == ""


def test_a_run_that_was_killed_goes_on_at_once_though_its_workers_live(tmp_path):
    folder = tmp_path / "killed"
    words = ["data.workers=1", "checkpoint.every_epochs=0.2"]
    process = start(quick, folder, *words)
    deadline = time.monotonic() + 90
    while len(RunFolder(folder).checkpoints()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert 0 < len(steps(folder)) < 40
    for run in ([folder, *words, "--resume"], [tmp_path / "whole"]):
        with pytest.raises(SystemExit) as ended:
            quick(*run)
        assert ended.value.code == 0
    assert same(trained(folder), trained(tmp_path / "whole"))
    assert steps(folder) == list(range(1, 41))


def test_of_two_starts_at_once_one_trains_and_the_other_is_refused(tmp_path):
    said = [tmp_path / "first.txt", tmp_path / "second.txt"]
    folder, both = tmp_path / "run", []
    for errors in said:
        both.append(start(partial(quick, folder, errors=errors)))
    for process in both:
        process.join(120)
    codes = [process.exitcode for process in both]
    assert sorted(codes) == [0, 2], [errors.read_text() for errors in said]
    assert "is being written to by process" in said[codes.index(2)].read_text()
    assert steps(folder) == list(range(1, 41))


def test_a_study_runs_once_however_often_it_is_started_and_others_run_beside_it(tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"base: {DIGITS}\narms: {{one: {{}}}}")
    study, other, processes = tmp_path / "study", tmp_path / "other", []
    said = [tmp_path / f"{i}.txt" for i in range(4)]
    for folder, errors in zip((study, study, other), said, strict=False):
        processes.append(start(ablate, grid, folder, errors))
    lock = study / "study.lock"
    while not (lock.exists() and lock.read_text()):
        time.sleep(0.01)
    processes.append(start(ablate, grid, study, said[3]))
    for process in processes:
        process.join(300)
    of_study, texts = [0, 1, 3], [errors.read_text() for errors in said]
    assert sorted(processes[i].exitcode for i in of_study) == [0, 2, 2], texts
    for i in of_study:
        if processes[i].exitcode:
            assert texts[i].startswith(f"error: {study} is being written to by process")
    assert processes[2].exitcode == 0
    for folder in (study, other):
        assert steps(folder / "one" / "seed0") == list(range(1, 41))


def test_a_file_that_may_not_grow_is_named_and_the_last_checkpoint_stays(tmp_path):
    folder, said = tmp_path / "run", tmp_path / "said.txt"
    for process in (
        partial(quick, folder, "train.epochs=1"),
        partial(limited, 20_000, folder, "train.epochs=2", "--resume", errors=said),
    ):
        process = start(process)
        process.join(120)
    saved, text = RunFolder(folder).checkpoints(), said.read_text()
    assert [path.name for path in saved] == ["step_00000005.pt"], text
    assert saved[0].stat().st_size > 20_000 and checkpoint.read(saved[0])
    why = f"[Errno 27] File too large: '{RunFolder(folder).checkpoint(10)}'"
    assert process.exitcode == 2 and text == f"error: {why}\n"
    assert RunFolder(folder).error().startswith(why) and not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml"])
def test_a_full_disk_is_said_with_the_file_that_was_written(name, tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    (tmp_path / "config.yaml.tmp").symlink_to("/dev/full")
    write = {"metrics.jsonl": folder.record, "config.yaml": folder.write_config}[name]
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / name}'"):
        write({"step": 1})


def test_a_folder_of_another_format_is_refused_in_words(tmp_path, capsys):
    assert train(tmp_path) == 0
    written = json.loads((tmp_path / "environment.json").read_text())
    (tmp_path / "environment.json").write_text(json.dumps(written | {"format": 1}))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert train(tmp_path, "--resume") == 2
    assert "holds a run of format 1, which this version does not read" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_a_start_that_is_refused_leaves_no_error_behind(tmp_path):
    assert train(tmp_path) == 0
    assert train(tmp_path, "seed=1", "--resume") == 2
    assert not (tmp_path / "error.txt").exists() and (tmp_path / "result.json").exists()


# The same run, or another.


def test_keys_of_the_machine_are_these():
    kinds = [kind for kind in vars(config).values() if isinstance(kind, config.Registry)]
    targets = [target for kind in kinds for target in kind.module_dict.values()]
    targets += [Data, TrainSettings, Checkpoints, experiment.whole_run]
    names = {name for target in targets for name in marked(target, MACHINE)}
    names_known = {
        "root",
        "path",
        "file",
        "workers",
        "max_bad",
        "log_every",
        "keep",
        "every_epochs",
    }
    assert names == names_known
    assert "device" not in of_yaml(experiment.whole_run)  # an option of the command


def test_where_images_lie_makes_no_other_run(root):
    fashion = root / "configs" / "fashion_mnist" / "moco_v2.yaml"
    here, there = (
        experiment.parse(config.load(fashion, [f"data.dataset.root={folder}"])).spelled_out()
        for folder in ("here", "there")
    )
    assert here != there and experiment.changes(here, there) == []


def test_a_run_goes_on_under_other_keys_of_the_machine_and_is_the_same_to_the_bit(tmp_path):
    every = ["checkpoint.keep=9", "checkpoint.every_epochs=0.2"]
    assert train(tmp_path / "whole", *every) == 0
    part = cut_short(tmp_path / "whole", tmp_path / "part", 4)
    words = ["data.workers=1", "train.log_every=3", "checkpoint.keep=1"]
    assert train(part, "checkpoint.every_epochs=0.4", *words, "--resume") == 0
    assert same(trained(part), trained(tmp_path / "whole"))
    assert steps(part) == [1, 2, 3, 4, 6, 9, 10]


def test_a_run_of_before_a_key_existed_goes_on_and_is_the_same_to_the_bit(tmp_path, capsys):
    assert train(tmp_path / "whole", "checkpoint.every_epochs=0.2", "checkpoint.keep=9") == 0
    part = cut_short(tmp_path / "whole", tmp_path / "part", 4)
    written = config.load(part / "config.yaml").data
    del written["data"]["seed"], written["nudge_weights"]
    (part / "config.yaml").write_text(config.dump(written))
    assert train(part, "checkpoint.every_epochs=0.2", "checkpoint.keep=9", "--resume") == 0
    assert same(trained(part), trained(tmp_path / "whole")) and steps(part) == list(range(1, 11))
    assert train(part, "data.seed=5", "--resume") == 2
    assert "data.seed: None -> 5" in capsys.readouterr().err


def test_keys_of_the_run_make_another_and_are_listed(tmp_path, capsys):
    assert train(tmp_path) == 0
    other = ["method.memory.size=40", "optimizer.lr=0.5", "train.log_every=3", "train.threads=1"]
    assert train(tmp_path, *other, "--resume") == 2
    said = capsys.readouterr().err
    for words in ("method.memory.size: 50 -> 40", "optimizer.lr: ", "-> 0.5", "threads: 'auto'"):
        assert words in said
    assert "log_every" not in said


def test_a_finished_run_is_made_longer_and_it_is_said_what_that_changes(tmp_path, capsys):
    assert train(tmp_path) == 0
    assert train(tmp_path, "train.epochs=3", "seed=1", "--resume") == 2
    assert train(tmp_path, "train.epochs=1", "--resume") == 2
    assert "train.epochs: 2.0 -> 1.0" in capsys.readouterr().err
    assert train(tmp_path, "train.epochs=3", "--resume") == 0
    assert "train.epochs 2 -> 3; its length changes: optimizer.lr (Cosine)" in (
        capsys.readouterr().out
    )
    assert steps(tmp_path) == list(range(1, 16))
    assert RunFolder(tmp_path).result()["steps"] == 15
    assert RunFolder(tmp_path).config()["train"]["epochs"] == 3.0


def test_a_longer_run_whose_schedules_do_not_look_at_its_end_is_the_longer_run(tmp_path):
    constant = "schedules.optimizer.lr={type: Constant}"
    assert train(tmp_path / "one", constant) == 0
    assert train(tmp_path / "one", constant, "train.epochs=3", "--resume") == 0
    assert "no schedule depends on it" in (tmp_path / "one" / "log.txt").read_text()
    assert train(tmp_path / "two", constant, "train.epochs=3") == 0
    assert same(trained(tmp_path / "one"), trained(tmp_path / "two"))


def test_another_config_takes_over_nothing_of_a_sitting_without_a_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    old, new = (
        experiment.parse(config.load(DIGITS, [f"seed={seed}"])).spelled_out() for seed in (0, 1)
    )
    inner = run.inside("evaluations", "probe", "step_00000000", "abc").checkpoint(10)
    experiment.open_folder(run, old, False)
    run.begin(old, {})
    inner.parent.mkdir(parents=True)
    inner.touch()
    run.record({"kind": "baseline", "step": 0})
    experiment.open_folder(run, old, False)
    assert run.metrics() and inner.exists()
    experiment.open_folder(run, new, False)
    assert not run.metrics() and not inner.exists()


def test_a_run_folder_names_what_is_in_it(tmp_path):
    run = RunFolder(tmp_path)
    run.best.parent.mkdir()
    assert RunFolder.of_checkpoint(run.best) is None  # a folder of that name alone is no run's
    for path in (run.best, run.config_path):
        path.touch()
        path.with_name(f"{path.name}.tmp").touch()
    assert RunFolder.of_checkpoint(run.best).path == tmp_path == run.stdout.parent
    assert RunFolder.of_checkpoint(tmp_path / "best.pt") is None
    run.clean_up()
    assert {path for path in tmp_path.rglob("*.*")} == {run.best, run.config_path}


# Threads and precision.


def build(folder: Path, *overrides) -> Trainer:
    cfg = config.load(DIGITS, [*TINY, "evaluations.knn=null", "train.epochs=1", *overrides])
    return experiment.build_trainer(cfg, torch.device("cpu"), folder)


@pytest.mark.parametrize("seed", [1_764_316_800_000_000_000, 10**30])
def test_a_time_stamp_and_any_other_number_is_a_seed(seed, tmp_path):
    assert train(tmp_path, f"seed={seed}", f"data.seed={seed + 1}", "train.epochs=1") == 0
    assert RunFolder(tmp_path).config()["seed"] == seed and steps(tmp_path)


def test_threads_are_of_the_run(tmp_path, threads):
    torch.set_num_threads(1)
    trainer = build(tmp_path, "train.threads=2")
    assert torch.get_num_threads() == 2
    trainer.fit()
    assert RunFolder(tmp_path).result()["threads"] == 2


def test_a_resume_takes_the_runs_threads_whatever_the_environment_says(tmp_path, threads):
    torch.set_num_threads(2)
    trainer = build(tmp_path)
    trainer.hooks["checkpoints"].save(trainer)
    torch.set_num_threads(1)
    assert build(tmp_path).resume()
    assert torch.get_num_threads() == 2
    assert "2 threads, as the run began, and not 1" in (tmp_path / "log.txt").read_text()


# Signals.


def test_the_first_signal_asks_the_second_ends_and_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = StopSignal()
    with stop, stop:  # a trainer inside a run's trainer
        assert signal.getsignal(signal.SIGINT) != before[0]
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    with stop:
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopSignal():
        1 / 0  # noqa: B018
    assert signal.getsignal(signal.SIGTERM) == before


# Observers.


def test_telemetry_and_the_watch_for_collapse_are_on_by_default(tmp_path):
    observers = experiment.parse(config.load(DIGITS)).spelled_out()["observers"]
    assert {"Telemetry", "Collapse"} <= {block["type"] for block in observers.values()}


def test_collapse_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "collapse", lambda scalars: "all the same")
    build(tmp_path).fit()
    assert (tmp_path / "log.txt").read_text().count("collapse? all the same") == 1


def test_observers_of_ones_own_take_the_place_of_all(tmp_path, monkeypatch):
    class Counts(Observer):
        """Counts steps; for this test."""

        def __init__(self, *, start: config.NonNegativeInt = 0):
            self.count = start

        def after_step(self, method, batch, out):
            self.count += 1

        def scalars(self, method, labels):
            return {"counted": float(self.count)}

    monkeypatch.setitem(OBSERVERS.module_dict, "Counts", config.constrained(Counts))
    monkeypatch.setattr(health, "collapse", lambda scalars: pytest.fail("Collapse is on"))
    build(tmp_path, "observers={mine: {type: Counts, start: 10}}").fit()
    lines = [line for line in RunFolder(tmp_path).metrics() if line["kind"] == "train"]
    assert [line["counted"] for line in lines] == [11.0, 12.0, 13.0, 14.0, 15.0]


def test_hooks_are_saved_under_their_names(tmp_path):
    class Remembers(Checkpoints):
        kept = ""

        def state_dict(self):
            return {"kept": self.kept}

        def load_state_dict(self, state):
            self.kept = state["kept"]

    first, second = build(tmp_path), build(tmp_path)
    for trainer in (first, second):
        trainer.hooks["mine"] = Remembers()
    first.hooks["mine"].kept = "a word"
    first.hooks["checkpoints"].save(first)
    assert second.resume() and second.hooks["mine"].kept == "a word"
