"""Networks in one table: what was measured, under which protocol, and how sure it is."""

from __future__ import annotations

import csv
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny import TinyNet

import ssl_zoo as sz
from ssl_zoo import config
from ssl_zoo.cli.command_line import main
from ssl_zoo.experiment.by_hand import results_of
from ssl_zoo.runs import RunFolder
from ssl_zoo.study.leaderboard import Board, read
from ssl_zoo.weights import file as weights

KNN = {"type": "KNN", "k": 3}
DIGITS = {"type": "Digits", "limit": 60}


def result(digest: str, value: float, **more) -> dict:
    known = {"type": "KNN", "main": "top1", "higher_is_better": True, "unit": "%"}
    known |= {"network": "backbone", "protocol": {"k": 3}, "of": {"k": 3, "data": {"x": 1}}}
    return {"step": 10, **known, "metrics": {"top1": value}, "hash": digest, **more}


def rows(right: list[int], images: int) -> str:
    """Of each class so many of its images right."""
    lines = ["index,label,prediction,score"]
    for label, count in enumerate(right):
        for i in range(images):
            lines.append(f"{len(lines) - 1},{label},{label if i < count else -1},0.5")
    return "\n".join(lines)


def made(folder: Path, **results: tuple[dict, str]) -> Path:
    run = RunFolder(folder)
    run.write_config({"seed": 0})
    for name, (of, text) in results.items():
        run.write_evaluation(name, of, text)
    return folder


def board(*paths: Path) -> Board:
    return Board([read(path) for path in paths])


def said(capsys, *words) -> tuple[int, str]:
    status = main(list(map(str, words)))
    shown = capsys.readouterr()
    return status, shown.out + shown.err


# What is there.


def test_numbers_of_two_protocols_are_never_in_one_column(tmp_path):
    a = made(tmp_path / "a", knn=(result("aaa", 50.0), ""))
    b = made(tmp_path / "b", knn=(result("aaa", 70.0), ""), far=(result("ccc", 1.0), ""))
    c = made(tmp_path / "c", knn=(result("bbb", 99.0, of={"k": 5, "data": {"x": 1}}), ""))
    found = board(a, b, c)
    header, table = found.cells()
    assert header == ["network", "step", *(f"{n} top1, % [{h}]" for n, h in
                      (("knn", "aaa"), ("far", "ccc"), ("knn", "bbb")))]  # fmt: skip
    assert table == [
        [str(b), "10", "70.00", "1.00", ""],
        [str(a), "10", "50.00", "", ""],
        [str(c), "10", "", "", "99.00"],
    ]
    assert "  unlike aaa: k: 3 -> 5" in found.notes()


def test_one_protocol_under_two_names_is_one_column(tmp_path):
    a = made(tmp_path / "a", knn=(result("aaa", 50.0), ""))
    b = made(tmp_path / "b", neighbors=(result("aaa", 60.0), ""))
    assert [row[0] for row in board(a, b).cells()[1]] == [str(b), str(a)]
    assert len(board(a, b).columns) == 1


def test_fewer_is_better_where_the_evaluation_says_so(tmp_path):
    lower = {"higher_is_better": False, "unit": ""}
    a, b = (made(tmp_path / n, x=(result("a", v, **lower), "")) for n, v in (("a", 5), ("b", 2)))
    assert [entry.name for entry in board(a, b).entries] == [str(b), str(a)]


def test_the_interval_is_of_other_classes(tmp_path):
    right = [0, 2, 4, 6, 8, 10]
    a = made(tmp_path / "a", knn=(result("aaa", 50.0), rows(right, 10)))
    (score,) = board(a).scores.values()
    error = np.std([10 * x for x in right]) / 6**0.5  # of a mean over classes of equal size
    assert score.value == 50 and score.high - score.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert score.high + score.low == pytest.approx(100, abs=5) and score.low > 0
    assert str(score).startswith("50.00 (") and "bootstrap over its classes" in board(a).notes()[0]


def test_rows_of_another_number_give_no_interval(tmp_path):
    a = made(tmp_path / "a", knn=(result("aaa", 51.0), rows([5, 5], 10)))
    assert [*board(a).scores.values()] == [(51.0, None, None)]


def test_a_damaged_result_is_named(tmp_path):
    folder = made(tmp_path / "a") / "evaluations" / "by_hand"
    folder.mkdir(parents=True)
    (folder / "knn.json").write_text("{}")
    with pytest.raises(ValueError, match=r"knn\.json: damaged, delete it"):
        read(tmp_path / "a")


def test_only_the_newest_step_counts(tmp_path):
    new = result("aaa", 60.0, step=20)
    a = made(tmp_path / "a", knn=(new, ""), old=(result("bbb", 99.0), ""))
    assert board(a).cells()[1] == [[str(a), "20", "60.00"]]


def test_what_a_page_takes_is_escaped(tmp_path):
    a = made(tmp_path / "a|b", knn=(result("aaa", 60.0), ""))
    assert "a\\|b | 10 | 60.00 |" in board(a).markdown()


# From the command line.


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    sz.train(
        "digits/moco_v2",
        out=out,
        method={"memory": {"size": 32}},
        backbone=partial(TinyNet, in_chans=1),
        data={"dataset": DIGITS},
        batch_size=32,
        evaluations={"knn": KNN},
        epochs=1,
    )
    return out


def test_what_lacks_an_evaluation_is_judged_once_and_kept(run, tmp_path, capsys, monkeypatch):
    moved = shutil.copy(RunFolder(run).checkpoints()[-1], tmp_path / "moved.pt")
    status, text = said(capsys, "leaderboard", run, moved)
    assert status == 0 and f"not judged yet, which --evaluate NAME does: {moved}" in text
    words = ("leaderboard", run, moved, "--evaluate", "knn,linear", "linear.lrs=[1.0]")
    words += ("linear.epochs=1", "--out", tmp_path / "table.csv")
    status, text = said(capsys, *words)
    assert status == 0 and text.count(": knn top1 ") == 1  # the run's own is there
    assert text.count(": linear top1 ") == 2
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    values = {(x["network"], x["metric"], x["evaluation"]): x for x in lines}
    for name in ("knn", "linear"):  # one network, from two places
        of_run, of_file = (values[str(path), "top1", name] for path in (run, moved))
        assert of_run["value"] == of_file["value"] and of_run["hash"] == of_file["hash"]
        assert of_run["low"] == of_file["low"] != ""
    nearest = values[str(run), "nearest", "knn"]
    assert nearest["low"] == "" and nearest["value"]
    assert [x.name for x in tmp_path.glob("*.evaluations")] == ["moved.pt.evaluations"]
    monkeypatch.setattr("ssl_zoo.experiment.subject.measure", None)  # nothing is measured again
    assert said(capsys, *words)[0] == 0


def test_words_for_a_named_evaluation_go_to_it_alone_beside_all(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    quick = ("retrieval.test_limit=17", "knn.k=4")
    status, text = said(capsys, "leaderboard", copy, "--evaluate", "all,retrieval", *quick)
    assert status == 0, text
    found = {of.result["type"]: of.result["protocol"] for of in results_of(copy)}
    assert found["Retrieval"]["queries"].count("14 images") == 1 and found["KNN"]["k"] == 4
    status, text = said(capsys, "leaderboard", copy, "--evaluate", "knn", "linear.epochs=1")
    assert status == 2 and "no key of what is evaluated" in text


def test_a_file_in_a_folder_called_checkpoints_is_in_no_run(run, tmp_path, capsys):
    """So results of it are not taken for another file's that has its name by then."""
    file = tmp_path / "checkpoints" / "net.pt"
    file.parent.mkdir()
    shutil.copy(RunFolder(run).checkpoints()[-1], file)
    assert said(capsys, "leaderboard", file, "--evaluate", "all", "knn.k=4")[0] == 0
    assert len(list(results_of(file))) == 1 and not (tmp_path / "evaluations").exists()
    with file.open("ab") as other:
        other.write(b"other")
    assert not list(results_of(file))


def test_another_set_of_images_is_another_column(run, tmp_path, capsys):
    known = RunFolder(run).config()["data"]
    data = tmp_path / "data.yaml"
    data.write_text(config.dump({"data": known | {"dataset": DIGITS | {"limit": 40}}}))
    copy = shutil.copytree(run, tmp_path / "copy")
    words = ("leaderboard", copy, "--evaluate", "knn", "--data", data)
    status, text = said(capsys, *words, "--out", tmp_path / "table.md")
    assert status == 0 and "unlike " in text and "data.dataset.limit: 60 -> 40" in text
    assert (tmp_path / "table.md").read_text().count("knn top1, % [") == 2


def test_what_evaluate_wrote_counts(run, tmp_path, capsys):
    copy, out = shutil.copytree(run, tmp_path / "copy"), tmp_path / "results.json"
    assert main(["evaluate", "knn", str(copy), "k=7", "--out", str(out)]) == 0
    capsys.readouterr()
    found = board(copy, out)
    by_hand = json.loads(out.read_text())["knn"]
    own, other = ([*read(path).kept] for path in (copy, out))
    assert other == [by_hand["hash"]] and set(other) < set(own)
    assert found.scores[str(out), other[0]].low == found.scores[str(copy), other[0]].low


def test_weights_from_elsewhere_are_judged_by_the_images_of_a_config(run, tmp_path, capsys):
    block = {"type": "Timm", "name": "resnet18", "in_chans": 1, "small_images": True}
    block["options"] = {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4]}
    clean, file = RunFolder(run).config()["data"]["clean"], tmp_path / "weights.safetensors"
    weights.write(file, weights.build(block).model.state_dict(), weights.Header(block, clean))
    words = ("leaderboard", run, file, "--evaluate", "knn", "knn.k=4")
    status, text = said(capsys, *words)
    assert status == 2 and "no images to be judged by" in text and "--data CONFIG" in text
    data = RunFolder(run).config_path
    status, text = said(capsys, *words, "--data", data, "--out", tmp_path / "table.csv")
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    hashes = [{x["hash"] for x in lines if x["network"] == str(path)} for path in (run, file)]
    assert status == 0 and len(hashes[1]) == 1 and hashes[1] < hashes[0]
    assert sz.load(file).about["network"] == "backbone"


def test_what_is_no_network_or_key_is_said(run, tmp_path, capsys):
    (tmp_path / "x.json").write_text("{}")
    for words, text in (
        ([tmp_path / "nowhere"], "no such thing"),
        ([tmp_path / "x.json"], "a file that `ssl-zoo evaluate"),
        ([run, "--evaluate", "nn"], "no evaluation of this name"),
        ([run, "--evaluate", "knn", "kn.k=5"], "no key of what is evaluated"),
        ([run, "kn.k=5"], "missing: what is to be judged"),
        ([run, "--out", tmp_path / "x.txt"], ".md or .csv"),
    ):
        status, shown = said(capsys, "leaderboard", *words)
        assert status == 2 and text in shown
