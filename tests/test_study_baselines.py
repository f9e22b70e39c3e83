"""A study's baselines are of the images that there are now."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from ssl_zoo.study.baselines import Baselines, side_by_side
from ssl_zoo.study.grid import expand
from ssl_zoo.study.machine import child_environment
from ssl_zoo.study.measurer import SERVE, Measurer

BASE = """
_base_: digits/moco_v2
data:
  dataset: {{type: ImageFolder, root: {root}, channels: 1}}
  clean:
    ops:
      normalize: null
      crop: {{type: CenterCrop, size: 8}}
evaluations: {{knn: {{type: KNN, k: 2}}}}
"""
GRID = "base: base.yaml\nseeds: [0]\narms: {MoCo: {}}\n"


def save(root, split, number, label):
    path = root / split / label / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.full((8, 8), 20 * number, dtype=torch.uint8).numpy()).save(path)


def test_baselines_are_measured_again_where_images_have_changed(tmp_path):
    root = tmp_path / "data"
    for number in range(6):
        for split in ("train", "val"):
            save(root, split, number, "ab"[number % 2])
    (tmp_path / "base.yaml").write_text(BASE.format(root=root))
    (tmp_path / "grid.yaml").write_text(GRID)
    (run,) = expand(tmp_path / "grid.yaml", tmp_path / "out").runs
    kept, said = tmp_path / "baselines.json", []
    Baselines(kept).measure([run], said.append)
    before = kept.read_text()
    Baselines(kept).measure([run], said.append)
    assert len(said) == 1 and kept.read_text() == before
    save(root, "val", 7, "b")
    Baselines(kept).measure([run], said.append)
    assert said[1:] == [f"{said[0]}: the images are others than before"]
    known = Baselines(kept).known
    assert [result["of"]["data"]["test_images"] for result in known] == [7] * len(known)
    old = {result["hash"] for result in json.loads(before)}
    assert len(old) == len(known) and old.isdisjoint(result["hash"] for result in known)


DIGITS = """
_base_: digits/moco_v2
train: {threads: 1}
evaluations: {knn: {type: KNN, k: 5}}
"""


def runs_of(folder, seeds, digits=DIGITS):
    (folder / "digits.yaml").write_text(digits)
    (folder / "grid.yaml").write_text(f"base: digits.yaml\nseeds: {seeds}\narms: {{MoCo: {{}}}}\n")
    return expand(folder / "grid.yaml", folder / "out").runs


def by_name(path):
    known = json.loads(path.read_text())
    return {(of["baseline"], of["depends_on"].get("seed")): of for of in known}


def test_processes_measure_what_one_after_the_other_measures(tmp_path):
    runs, said = runs_of(tmp_path, [0, 1, 2]), []
    one, several = tmp_path / "one.json", tmp_path / "several.json"
    assert Baselines(one).measure(runs, said.append) == []
    log = tmp_path / "baselines.log"
    how = side_by_side([Measurer(log, {}) for _ in range(2)])
    assert Baselines(several).measure(runs, said.append, how) == []
    assert by_name(one) == by_name(several)
    seeds = [None, 0, 1, 2]
    assert sorted((of[1] is not None, of[1]) for of in by_name(one)) == [
        (seed is not None, seed) for seed in seeds
    ]
    assert said[0] == said[4] == "baselines of MoCo, seed 0: knn" and len(said) == 7, said
    assert said[3] == f"baselines at once: 2; what they print is in {log}" and log.exists()


def test_a_failure_is_of_all_runs_that_have_to_beat_it_and_of_no_others(tmp_path):
    runs = runs_of(tmp_path, [0, 1])
    wide = runs_of(tmp_path, [0, 1], DIGITS.replace("k: 5", "k: 4000"))
    how = side_by_side([Measurer(tmp_path / "log", {}) for _ in range(2)])
    failed = Baselines(tmp_path / "known.json").measure([*wide, *runs], lambda _: None, how)
    assert [str(run.folder) for run, _ in failed] == [str(run.folder) for run in wide]
    assert [run.config["evaluations"]["knn"]["k"] for run, _ in failed] == [4000, 4000]
    assert all("4000 neighbors asked of a bank of" in why.why and why.trace for _, why in failed)
    assert len(by_name(tmp_path / "known.json")) == 3


def test_an_error_of_the_screen_ends_the_study_and_does_not_hang(tmp_path):
    def say(text):
        if "seed" in text:
            raise OSError("the terminal is gone")

    how = side_by_side([Measurer(tmp_path / "log", {}) for _ in range(2)])
    with pytest.raises(OSError, match="the terminal is gone"):
        Baselines(tmp_path / "known.json").measure(runs_of(tmp_path, [0, 1]), say, how)


class Killed(Measurer):
    """Whose process is killed at its first request."""

    requests = 0

    def ask(self, request):
        self.requests += 1
        if self.requests == 1:
            self.process = self._started()
            os.kill(self.process.pid, signal.SIGKILL)
        return super().ask(request)


def test_what_was_killed_beside_others_is_measured_again_alone(tmp_path):
    runs, said = runs_of(tmp_path, [0, 1, 2]), []
    how = side_by_side([Killed(tmp_path / "log", {}) for _ in range(2)])
    assert Baselines(tmp_path / "known.json").measure(runs, said.append, how) == []
    assert len(by_name(tmp_path / "known.json")) == 4
    again = [line for line in said if "again, alone" in line]
    assert len(again) == 2 and all(line in said for line in again)


def test_a_process_that_cannot_be_started_is_the_tasks_failure(tmp_path):
    failed = Measurer(tmp_path / "no folder" / "log", {}).ask(({}, "knn", []))
    assert "No such file" in failed.why and not failed.killed


def test_a_measurer_ends_with_the_study(tmp_path):
    """By a kill that lets it do nothing."""
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {SERVE!r}], "
    code += "stdin=-1, stdout=-1); print(p.pid, flush=True); import time; time.sleep(60)"
    study = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=child_environment()
    )
    measurer = int(study.stdout.readline())
    study.kill()
    study.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and alive(measurer):
        time.sleep(0.1)
    assert not alive(measurer)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
