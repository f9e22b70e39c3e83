"""The commands, as a user types them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssl_zoo import cli, config, experiment
from ssl_zoo.cli.command_line import parsed
from ssl_zoo.cli.list_command import KINDS
from ssl_zoo.cli.train_command import run_path
from ssl_zoo.data.source import roots
from ssl_zoo.engine import checkpoint
from ssl_zoo.engine.parallel import load_weights
from ssl_zoo.evaluation import base, linear
from ssl_zoo.study import grid
from ssl_zoo.system.files import user_path

ROOT = Path(__file__).resolve().parents[1]
DIGITS = str(ROOT / "configs" / "digits" / "moco_v2.yaml")
QUICK = [
    "backbone.options={layers: [1, 1, 1, 1], channels: [4, 4, 4, 4]}",
    "data.dataset.limit=320",
    "data.batch_size=32",
    "train.epochs=1",
    "evaluations.knn.k=20",
]


def test_check_reads_no_data(capsys):
    words = ["train", str(ROOT / "configs" / "imagenet" / "moco_v1.yaml"), "--check"]
    assert cli.main(words) == 0
    assert "ok" in capsys.readouterr().out


def test_a_wrong_key_ends_in_a_message_and_not_in_a_traceback(capsys):
    assert cli.main(["train", DIGITS, "--check", "method.memory.sise=1"]) == 2
    errors = capsys.readouterr().err
    assert "method.memory.sise" in errors and "Traceback" not in errors


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", DIGITS, "--no"])
    assert "--no" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_list_names_what_is_registered(kind, capsys):
    assert cli.main(["list", kind]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in getattr(config, kind.upper()).module_dict)


@pytest.mark.parametrize(
    "words", [[], ["train"], ["ablate"], ["evaluate", "knn"], ["list"], ["data", "get"]]
)
def test_help_explains_itself(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 150


def test_the_run_folder_is_predictable():
    cifar10 = Path("configs/cifar10/moco_v2.yaml")
    assert run_path(cifar10, 3) == Path("runs/cifar10/moco_v2/seed3")
    assert run_path(Path("/elsewhere/my.yaml"), 0) == Path("runs/my/seed0")


@pytest.mark.parametrize("name", ["moco_v2", "rotation"])
def test_train_then_evaluate_agree_on_knn(name, tmp_path, capsys):
    recipe = str(ROOT / "configs" / "digits" / f"{name}.yaml")
    folder = tmp_path / "run"
    quick = [*QUICK, "data.batch_size=16"] if name == "rotation" else QUICK
    assert cli.main(["train", recipe, *quick, "--out", str(folder), "--device", "cpu"]) == 0
    result = json.loads((folder / "result.json").read_text())
    capsys.readouterr()
    assert cli.main(["evaluate", "knn", str(folder), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    knn = result["evaluations"]["knn"]
    assert f"knn: top1 {knn['metrics']['top1']:.2f}%" in shown
    assert f"protocol {knn['hash']}: " in shown and "k 20, temperature 0.07" in shown
    kinds = {json.loads(x)["kind"] for x in (folder / "metrics.jsonl").read_text().splitlines()}
    assert kinds == {"baseline", "train", "evaluation"}
    # The resolved config trains the same run again.
    again = config.load(folder / "config.yaml")
    assert experiment.parse(again).spelled_out() == again.data


def test_evaluate_refuses_before_it_extracts(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    assert cli.main(["train", DIGITS, *QUICK, "--out", str(folder), "--device", "cpu"]) == 0
    monkeypatch.setattr(base, "extract_split", lambda *_, **__: pytest.fail("extracted"))
    assert cli.main(["evaluate", "knn", str(folder), "k=5000", "--device", "cpu"]) == 2
    assert "k = 5000 neighbors asked of a bank of 320 images" in capsys.readouterr().err


def test_what_one_protocol_found_is_kept_when_the_next_fails(tmp_path, monkeypatch):
    folder, out = tmp_path / "run", tmp_path / "result.json"
    both = [*QUICK, "evaluations.linear={type: Linear, epochs: 1, lrs: [1.0]}"]
    assert cli.main(["train", DIGITS, *both, "--out", str(folder), "--device", "cpu"]) == 0

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(linear.Linear, "evaluate", stopped)
    with contextlib.suppress(KeyboardInterrupt):
        cli.main(["evaluate", "all", str(folder), "--device", "cpu", "--out", str(out)])
    assert json.loads(out.read_text())["knn"]["metrics"]["top1"] > 0


def test_a_config_is_evaluated_with_the_random_weights_that_its_runs_start_from(tmp_path, capsys):
    folder = tmp_path / "run"
    assert cli.main(["train", DIGITS, *QUICK, "--out", str(folder), "--device", "cpu"]) == 0
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    start = next(x["top1"] for x in lines if x.get("baseline") == "random backbone")
    capsys.readouterr()
    resolved = str(folder / "config.yaml")
    assert cli.main(["evaluate", "knn", resolved, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert f"top1 {start:.2f}%" in shown and "config.yaml, step 0" in shown


@pytest.mark.parametrize("out", ["", "no_such_folder/knn.json"])
def test_a_place_where_results_cannot_be_written_is_refused_at_once(out, tmp_path, capsys):
    words = ["evaluate", "knn", str(tmp_path / "no_such_run"), "--out", str(tmp_path / out)]
    assert cli.main(words) == 2
    assert "expected a file in a folder that exists" in capsys.readouterr().err


@pytest.mark.parametrize("samples", ["0", "-3"])
def test_data_show_wants_a_sample(samples, tmp_path, capsys):
    words = ["data", "show", DIGITS, "--samples", samples, "--out", str(tmp_path / "views.png")]
    assert cli.main(words) == 2
    assert f"--samples {samples}: expected at least 1" in capsys.readouterr().err


def test_evaluate_without_a_run_says_what_it_expected(tmp_path, capsys):
    assert cli.main(["evaluate", "knn", str(tmp_path)]) == 2
    assert "expected a run folder with checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"hello", 500, 5000])
def test_a_file_that_is_no_whole_checkpoint_is_refused_by_its_name(content, tmp_path, capsys):
    path = tmp_path / "step_00000001.pt"
    torch.save({"weights": torch.zeros(9999)}, path)
    path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    assert cli.main(["evaluate", "knn", str(path)]) == 2
    assert f"{path}: not a checkpoint, or not a whole one" in capsys.readouterr().err


def test_weights_of_another_config_are_refused_with_what_does_not_fit():
    linear = torch.nn.Linear(2, 3)
    load_weights(linear, linear.state_dict())
    with pytest.raises(ValueError, match="weights of another config") as caught:
        load_weights(linear, torch.nn.Linear(2, 4).state_dict())
    assert "size mismatch for weight" in str(caught.value)


def test_a_backbone_of_another_config_is_refused_by_its_files_name(tmp_path, capsys):
    path, part = tmp_path / "step_00000001.pt", experiment.parse(config.load(DIGITS))
    state = {"trainer": {"step": 1, "hooks": {}}, "config": config.dump(part.spelled_out())}
    checkpoint.write(state | {"method": {}}, path)
    assert cli.main(["evaluate", "knn", str(path)]) == 2
    assert f"{path}: weights of another config" in capsys.readouterr().err


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, capsys):
    words = ["train", DIGITS, *QUICK, "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(words) == 0
    assert cli.main(words) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert cli.main([*words, "--resume", "train.epochs=0.5"]) == 2
    assert "train.epochs: 1.0 -> 0.5" in capsys.readouterr().err


def test_a_failing_run_leaves_its_reason(tmp_path, capsys):
    words = [*QUICK, "optimizer.lr=1e30", "train.precision=fp32", "--out", str(tmp_path)]
    assert cli.main(["train", DIGITS, *words, "--device", "cpu"]) == 1
    assert "error: the loss is not finite at step" in capsys.readouterr().err
    assert (tmp_path / "error.txt").read_text().startswith("the loss is not finite at step")
    assert not (tmp_path / "result.json").exists()


def test_the_backbone_of_a_checkpoint_is_the_trained_one(tmp_path):
    cli.main(["train", DIGITS, *QUICK, "--out", str(tmp_path), "--device", "cpu"])
    subject = experiment.load_subject(tmp_path, torch.device("cpu"))
    state = checkpoint.read(subject.path)["method"]
    assert list(subject.networks) == ["backbone", "key_encoder"]
    for name, value in subject.networks["backbone"].state_dict().items():
        assert torch.equal(value, state[f"encoder.backbone.{name}"])


@pytest.mark.parametrize("tool", ["train", "ablate", "evaluate", "list", "data"])
def test_tools_run_from_anywhere_without_installing(tool, tmp_path):
    run = subprocess.run(
        [sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0 and "usage: ssl-zoo" in run.stdout


def test_data_show_writes_a_picture(tmp_path):
    assert (
        cli.main(["data", "show", DIGITS, "--out", str(tmp_path / "v.png"), "--samples", "3"]) == 0
    )
    assert (tmp_path / "v.png").read_bytes()[:4] == b"\x89PNG"


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    below = tmp_path / "below"
    below.mkdir()
    (tmp_path / "base.yaml").write_text(f"_base_: {DIGITS}")
    (below / "own.yaml").write_text("_base_: ~/base.yaml")
    (below / "grid.yaml").write_text(
        "{base: ~/base.yaml, kept: ~/kept.json, arms: {a: {}, b: {base: ~/below/own.yaml}}}"
    )
    assert cli.main(["train", "~/below/own.yaml", "--check"]) == 0
    assert grid.expand(below / "grid.yaml").kept == tmp_path / "kept.json"
    words = ["--out=~/study", "--keep=~/a.json", "--base=~/base.yaml"]
    asked = parsed(["ablate", "~/below/grid.yaml", *words])
    assert (asked.grid, asked.out) == (below / "grid.yaml", tmp_path / "study")
    assert (asked.keep, asked.base) == (tmp_path / "a.json", tmp_path / "base.yaml")
    asked = parsed(["evaluate", "knn", "~/run", "--out=~/a.json"])
    assert (asked.path, asked.out) == (tmp_path / "run", tmp_path / "a.json")
    assert parsed(["data", "get", "cifar10", "--root=~/data"]).root == tmp_path / "data"
    assert roots("~/data") == [tmp_path / "data"]
    assert cli.main(["compare", "~/below:a", "~/below:b"]) == 2  # found, but it holds no run
    assert "no runs" in capsys.readouterr().err
    commands = Path(cli.__file__).parent.glob("*.py")
    assert not [path.name for path in commands if "type=Path" in path.read_text()]


def test_a_tilde_before_what_is_nobodys_home_is_a_letter():
    assert user_path("~no-such-user/x") == Path("~no-such-user/x")
