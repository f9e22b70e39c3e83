"""Runs side by side: who waits, who stops, which GPU, and how many threads."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from ssl_zoo.runs import Lock
from ssl_zoo.study import division, launch, machine
from ssl_zoo.study.division import Division, divide
from ssl_zoo.study.grid import Run
from ssl_zoo.study.progress import Progress, Screen

# Stands in for `ssl-zoo train`; `how` in the run's config says what happens.
TRAIN = """
import json, os, pathlib, signal, sys, time
import yaml
written, *overrides, _, folder, _ = sys.argv[1:]
how = yaml.safe_load(open(written))["how"]
folder = pathlib.Path(folder)
print("says", folder.name, "on", os.environ.get("CUDA_VISIBLE_DEVICES"))
def stop(*_):
    (folder / "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, signal.SIG_IGN if how == "deaf" else stop)
lines = [{"kind": "train", "step": 5, "epoch": 0.5, "seconds": 10.0},
         {"kind": "evaluation", "name": "knn", "step": 5, "epoch": 0.5, "seconds": 10.0,
          "top1": 71.5, "top5": 99.0, "hash": "h"}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
(folder / "began").write_text(str(time.time()))
if how == "fail":
    sys.exit("what went wrong")
if how == "interrupted":
    os.kill(os.getpid(), signal.SIGINT)
time.sleep({"sleep": 60, "deaf": 60, "slow": 1.2, "slower": 3}.get(how, 0.1))
(folder / "ended").write_text(str(time.time()))
(folder / "result.json").write_text(json.dumps({"peak_memory_gb": 3.0}))
"""


class Recorded(Screen):
    def __init__(self, alone=False):
        super().__init__(Console(file=io.StringIO(), width=200), alone)

    @property
    def text(self):
        return self.console.file.getvalue()


@pytest.fixture
def launcher(tmp_path):
    """Makes a launcher of runs that go as `hows` say; their folders are a, b, c, ..."""
    (tmp_path / "train.py").write_text(TRAIN)

    def make(hows, jobs=2, alone=False, **kwargs):
        runs = [
            Run(name, None, 0, tmp_path / name, {"how": how, "train": {"epochs": 2}} | EVALUATED)
            for name, how in zip("abcdefgh", hows, strict=False)
        ]
        kwargs = {"devices": [], "environment": {}, "after_each": lambda: None} | kwargs
        kwargs = {"available": lambda: None} | kwargs
        train = (sys.executable, str(tmp_path / "train.py"))
        return launch.Launcher(runs, jobs, train, screen=Recorded(alone), **kwargs)

    return make


EVALUATED = {"evaluations": {"knn": {"type": "KNN"}}, "best": None}


def when(folder):
    return tuple(float((folder / name).read_text()) for name in ("began", "ended"))


def together(one, other):
    return max(one[0], other[0]) < min(one[1], other[1])


def test_so_many_runs_are_under_way_at_once(launcher, tmp_path):
    assert launcher(["slow", "slow", "ok"]).run() == set()
    a, b, c = (when(tmp_path / name) for name in "abc")
    assert together(a, b) and not (together(a, c) and together(b, c))


def test_a_run_that_fails_or_is_interrupted_leaves_the_others_alone(launcher, tmp_path):
    made = launcher(["fail", "interrupted", "slow", "ok"])
    assert made.run() == {"failed", "interrupted"}
    assert [(tmp_path / name / "result.json").exists() for name in "abcd"] == [0, 0, 1, 1]
    error = (tmp_path / "a" / "error.txt").read_text()
    assert "ended with exit code 1" in error and "what went wrong" in error
    assert not (tmp_path / "b" / "error.txt").exists()
    assert "1/4  a, seed 0  failed: ended with exit code 1" in made.screen.text
    assert "2/4  b, seed 0  interrupted" in made.screen.text


def test_each_run_has_a_log_unless_it_is_alone_on_the_screen(launcher, tmp_path, capfd):
    launcher(["ok", "ok"]).run()
    assert (tmp_path / "b" / "stdout.txt").read_text() == "says b on None\n"
    launcher(["ok"], jobs=1, alone=True)
    for name in "ab":
        (tmp_path / name / "result.json").unlink()
        (tmp_path / name / "stdout.txt").unlink()
    assert capfd.readouterr().out == ""
    launcher(["ok"], jobs=1, alone=True).run()
    assert "says a on" in capfd.readouterr().out and not (tmp_path / "a" / "stdout.txt").exists()


@pytest.mark.parametrize("alone", [False, True])
def test_a_run_that_another_process_holds_is_left_to_it(launcher, tmp_path, alone):
    lock = Lock(tmp_path / "a" / ".lock")
    lock.acquire()
    (tmp_path / "a" / "error.txt").write_text("the other's")
    made = launcher(["ok", "ok"], alone=alone)
    assert made.run() == {"left"}
    lock.release()
    assert f"a, seed 0  left to this process, {os.getpid()} on" in made.screen.text
    assert {path.name for path in (tmp_path / "a").iterdir()} == {".lock", "error.txt"}
    assert (tmp_path / "b" / "result.json").exists()


@pytest.mark.parametrize("alone", [False, True])
def test_a_run_whose_folder_cannot_be_written_leaves_the_others_alone(launcher, tmp_path, alone):
    (tmp_path / "a").write_text("a plain file")
    made = launcher(["ok", "ok"], jobs=1, alone=alone)
    assert made.run() == {"failed"}
    assert "a, seed 0  failed: " in made.screen.text and "left to" not in made.screen.text
    assert (tmp_path / "b" / "result.json").exists()


def test_a_run_that_another_process_took_first_gets_no_error(launcher, tmp_path):
    made = launcher(["fail"])
    made._start(*made.queue.pop())
    made.children[0].process.wait()
    lock = Lock(tmp_path / "a" / ".lock")
    lock.acquire()
    made._look()
    lock.release()
    assert made.ends == {"left"} and not (tmp_path / "a" / "error.txt").exists()


def test_a_run_that_goes_on_for_longer_sees_it_in_its_folder(launcher, tmp_path):
    launcher(["ok"]).run()
    again = launcher(["ok"])
    assert again.run() == set() and "(finished)" in again.screen.text
    longer = launcher(["ok"])
    longer.runs[0].config["train"]["epochs"] = 5
    began = when(tmp_path / "a")
    assert not longer.runs[0].finished
    assert longer.run() == {"failed"}  # what stands in for training writes no config.yaml
    assert when(tmp_path / "a") > began
    assert "epochs: 2" in (tmp_path / "a" / "config.yaml").read_text()


def send_when_begun(folders, *numbers, between=0.0):
    def send():
        while not all((folder / "began").exists() for folder in folders):
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(between)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_all_runs_save(launcher, tmp_path, number):
    before = signal.getsignal(number)
    thread = send_when_begun([tmp_path / "a", tmp_path / "b"], number)
    assert launcher(["sleep", "sleep", "ok"]).run() == {"stopped"}
    thread.join()
    assert all((tmp_path / name / "saved").exists() for name in "ab")
    assert not (tmp_path / "c").exists() and signal.getsignal(number) == before


def test_who_does_not_stop_in_time_or_at_the_second_signal_is_killed(
    launcher, tmp_path, monkeypatch
):
    thread = send_when_begun([tmp_path / "a"], signal.SIGINT, signal.SIGINT, between=0.5)
    assert launcher(["deaf"]).run() == {"stopped"}
    thread.join()
    assert "killed by the study: at the second" in (tmp_path / "a" / "error.txt").read_text()
    monkeypatch.setattr(launch, "SECONDS_TO_STOP", 0.2)
    (tmp_path / "a" / "began").unlink()
    thread = send_when_begun([tmp_path / "a"], signal.SIGTERM)
    made = launcher(["deaf"])
    began = time.monotonic()
    assert made.run() == {"stopped"} and time.monotonic() - began < 20
    thread.join()
    assert "a, seed 0  failed: killed by the study: it had 0.2 s to save" in made.screen.text


def test_an_error_of_the_report_leaves_no_run_behind(launcher, tmp_path):
    made = launcher(["ok", "sleep"], after_each=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.run()
    assert (tmp_path / "b" / "saved").exists() or not (tmp_path / "b" / "began").exists()
    assert all(child.process.poll() is not None for child in made.children)


# ---------------------------------------------------------------- memory and GPUs


def test_a_run_waits_until_it_fits_beside_those_under_way(launcher, tmp_path):
    made = launcher(["slow", "ok"], available=lambda: 4 * 10**9)
    made.peak = 3.8e9
    made.run()
    a, b = (when(tmp_path / name) for name in "ab")
    assert not together(a, b)
    said = "2/2  b, seed 0  waits for memory: 4.0 GB are free, a run takes up to 3.8 GB"
    assert made.screen.text.count(said) == 1


def test_the_second_run_waits_until_the_first_has_shown_what_it_takes(launcher, tmp_path):
    made = launcher(["slower", "slow"], available=lambda: 10**12)
    made.run()
    a, b = (when(tmp_path / name) for name in "ab")
    assert a[0] < b[0] and together(a, b)
    assert "b, seed 0  waits for memory: the first run has to show" in made.screen.text
    assert 1e6 < made.peak < 1e9


def test_what_finished_runs_took_is_known_from_the_start(launcher, tmp_path):
    launcher(["ok"]).run()
    made = launcher(["ok", "ok"])
    assert made.peak == 3e9
    on_gpus = launcher(["ok", "ok"], devices=["0"])
    assert on_gpus.peak == 0  # the result tells the GPU's memory


def test_each_gpu_has_a_run_of_its_own(launcher, tmp_path):
    launcher(["slow", "slow", "slow", "slow"], jobs=4, devices=["2", "5"]).run()
    said = [(tmp_path / name / "stdout.txt").read_text().split()[-1] for name in "abcd"]
    assert said == ["2", "5", "2", "5"]


@pytest.mark.parametrize(
    "visible, count, names",
    [(None, 2, ["0", "1"]), ("4,7", 2, ["4", "7"]), ("", 0, []), (None, 0, [])],
)
def test_gpus_are_named_as_cuda_visible_devices_has_them(monkeypatch, visible, count, names):
    monkeypatch.setattr(machine.torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == names


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells of memory")
def test_memory_of_the_machine_and_of_a_process_is_known():
    now, peak = machine.process_memory(os.getpid())
    assert 10**7 < now <= peak and machine.available_memory() > 10**7
    assert machine.process_memory(2**30) == (0, 0)


def test_a_control_groups_limit_counts_less_what_can_be_dropped(tmp_path):
    for name, text in {
        "memory.max": "1000",
        "memory.current": "700",
        "memory.stat": "anon 1\ninactive_file 250",
    }.items():
        (tmp_path / name).write_text(text)
    assert machine._left_by_group(tmp_path, "memory.max", "memory.current") == 550
    (tmp_path / "memory.max").write_text("max")
    assert machine._left_by_group(tmp_path, "memory.max", "memory.current") is None


# ---------------------------------------------------------------- progress


def test_progress_is_read_from_the_metrics(launcher, tmp_path):
    made = launcher(["ok"])
    progress = Progress(made.queue[0][1])
    assert progress.cells == ["a, seed 0", "starting", "", ""]
    made.run()
    progress.look()
    assert progress.cells == ["a, seed 0", "step 5/20", "knn top1 71.50", "0:00:30 left"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_a_table_and_a_log_a_line_now_and_then(launcher, terminal):
    made = launcher(["ok"])
    progress = Progress(made.queue[0][1])
    made.run()
    progress.look()
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    screen = Screen(console, alone=False)
    with screen.live:
        screen.show([progress])
        assert "step 5/20" not in console.file.getvalue()
        screen.shown -= Screen.LINES_EVERY_S
        screen.show([progress])
        screen.show([progress])
        assert console.file.getvalue().count("step 5/20") == 1
    assert ("\x1b" in console.file.getvalue()) == terminal


# ---------------------------------------------------------------- threads


def configs(*threads):
    return [{"train": {"threads": n}} for n in threads]


@pytest.mark.parametrize(
    "alone, few, expected", [(0.04, 0.04, (1, 2)), (0.02, 0.04, (2, 1)), (0.035, 0.06, (2, 1))]
)
def test_auto_measures_whether_runs_of_few_threads_get_more_done(monkeypatch, alone, few, expected):
    monkeypatch.setattr(
        division, "seconds_per_step", lambda *_, processes=1: alone if processes == 1 else few
    )
    divided = divide(configs("auto", "auto", "auto"), cores=2, gpus=0)
    assert (divided.threads, divided.jobs) == expected
    assert "2 runs side by side are" in divided.why


def test_all_cores_are_used_where_there_are_fewer_runs_than_cores(monkeypatch):
    timed = []

    def seconds_per_step(config, threads, processes=1):
        timed.append((threads, processes))
        return 0.1

    monkeypatch.setattr(division, "seconds_per_step", seconds_per_step)
    divided = divide(configs("auto", "auto", "auto"), cores=16, gpus=0)
    assert (divided.threads, divided.jobs) == (5, 3) and timed == [(16, 1), (5, 3)]
    assert divide(configs("auto"), cores=16, gpus=0).threads == 16


@pytest.mark.parametrize(
    "threads, gpus, expected",
    [
        (("auto", "auto"), 4, (2, 4)),
        (("auto",), 0, (8, 1)),
        ((2, 4), 0, (4, 2)),
        ((2, 4), 4, (2, 4)),
    ],
)
def test_what_is_asked_for_is_not_measured(monkeypatch, threads, gpus, expected):
    monkeypatch.setattr(division, "seconds_per_step", None)
    divided = divide(configs(*threads), cores=8, gpus=gpus)
    assert (divided.threads, divided.jobs) == expected


def test_a_step_that_cannot_be_timed_leaves_one_thread_a_run(monkeypatch):
    def fail(config, threads, processes=1):
        raise subprocess.CalledProcessError(1, "python", stderr="Traceback\nValueError: no data")

    monkeypatch.setattr(division, "seconds_per_step", fail)
    divided = divide(configs("auto", "auto"), cores=2, gpus=0)
    assert divided == Division(1, 2, "a step could not be timed: ValueError: no data")


def test_steps_are_timed_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(
        division, "MEASURE", "import json, sys; print('said'); print(len(json.load(sys.stdin)))"
    )
    assert division.seconds_per_step({"a": 1, "b": 2}, threads=1) == 2.0
    assert division.seconds_per_step({str(i): "x" * 100 for i in range(3000)}, threads=1) == 3000


def test_processes_that_share_the_cores_are_timed_at_once(monkeypatch, tmp_path):
    meet = (  # each waits until all have come
        "import json, os, pathlib, sys, time; here = pathlib.Path(json.load(sys.stdin));"
        "(here / str(os.getpid())).touch()\n"
        "while len(list(here.iterdir())) < 3: time.sleep(0.01)\n"
        "print(sys.argv[1])"
    )
    monkeypatch.setattr(division, "MEASURE", meet)
    assert division.seconds_per_step(str(tmp_path), threads=4, processes=3) == 4.0
    monkeypatch.setattr(division, "MEASURE", "raise ValueError('no data')")
    with pytest.raises(subprocess.CalledProcessError) as error:
        division.seconds_per_step({}, threads=1, processes=2)
    assert "no data" in error.value.stderr


def test_what_was_divided_is_kept(tmp_path):
    assert Division.read(tmp_path) is None
    Division(1, 2, "so").write(tmp_path)
    assert json.loads((tmp_path / "study.json").read_text())["threads"] == 1
    assert Division.read(tmp_path) == Division(1, 2, "so")
