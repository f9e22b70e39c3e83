"""Files that are no images: skipped, counted and told; never at the cost of what was trained."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_data_loader import assert_same, data_of

from ssl_zoo import cli
from ssl_zoo.config import ConfigError
from ssl_zoo.data import Sampler
from ssl_zoo.engine import checkpoint
from ssl_zoo.engine.hooks import Unreadable
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed

SIZE = 20


def picture(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE + 4, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    """3 classes of 6 + 4 images."""
    for number, split in enumerate(("train", "val")):
        for label, name in enumerate("abc"):
            for i in range((6, 4)[number]):
                picture(
                    tmp_path / "images" / split / name / f"{i}.png", 100 * label + 10 * number + i
                )
    return tmp_path / "images"


def spoil(root: Path, *names: str) -> None:
    for name in names:
        (root / name).write_bytes(b"no image")


def of(root: Path, workers: int = 0, **arguments):
    dataset = {"type": "ImageFolder", "root": str(root)}
    return data_of(dataset=dataset, workers=workers, **{"batch_size": 4, **arguments})


# In training.


def test_a_skipped_images_place_goes_to_that_of_the_next_batch(root, tmp_path):
    shutil.copytree(root, tmp_path / "whole")
    spoil(root, "train/a/1.png", "train/b/2.png", "train/c/5.png")
    bad, data, whole = {1, 8, 17}, of(root, max_bad=3), of(tmp_path / "whole")
    steps = data.steps_per_epoch
    batches, expected = (
        list(data.batches(0, 3 * steps, "cpu")),
        list(whole.batches(0, 3 * steps, "cpu")),
    )
    substituted = 0
    for step, batch in enumerate(batches):
        assert len(set(batch.index.tolist())) == 4 and not bad & set(batch.index.tolist())
        for row in range(4):
            source = step  # where this row of the batch comes from
            while int(expected[source].index[row]) in bad:
                source = step - step % steps + (source + 1) % steps
            substituted += source != step
            other = expected[source]
            assert batch.index[row] == other.index[row] and batch.label[row] == other.label[row]
            for view, theirs in zip(batch.views, other.views, strict=True):
                assert torch.equal(view[row], theirs[row])
    assert substituted > 0
    assert set(data.splits.unreadable["train"]) == {"a/1.png", "b/2.png", "c/5.png"}


@pytest.mark.parametrize("drop_last", [True, False])
def test_what_is_skipped_does_not_depend_on_workers_ranks_or_a_resume(root, drop_last, monkeypatch):
    spoil(root, "train/a/1.png", "train/b/2.png", "train/c/5.png")
    arguments = {"max_bad": 3, "drop_last": drop_last}
    alone = list(of(root, **arguments).batches(0, 12, "cpu"))
    helped = of(root, 2, **arguments)
    assert_same(alone, helped.batches(0, 12, "cpu"))
    assert_same(alone[7:], helped.batches(7, 12, "cpu"))
    monkeypatch.setattr(distributed, "world", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(of(root, **arguments).batches(0, 12, "cpu")))
    for batch, *both in zip(alone, *shares, strict=True):
        assert torch.equal(torch.cat([share.index for share in both]), batch.index)


def test_no_sample_succeeds_one_of_its_own_batch():
    for drop_last in (True, False):
        sampler = Sampler(11, 4, 0, drop_last)
        steps = [index.tolist() for _, index in sampler.steps(0, sampler.steps_per_epoch)]
        for step, batch in enumerate(steps):
            following = steps[(step + 1) % len(steps)]
            others = [sampler.successors(0, i) for i in batch]
            every = [sample for other in others for sample in other]
            assert len(set(every)) == len(every) and not set(every) & set(batch)
            firsts = [other[0] for other in others]
            assert firsts[: len(following)] == following[: len(firsts)]


@pytest.mark.parametrize("workers", [0, 1])
def test_one_line_names_the_file_and_the_key_whatever_the_workers(root, workers):
    spoil(root, "train/a/1.png")
    with pytest.raises(ValueError, match=r"a/1\.png: cannot be decoded.*data\.max_bad") as caught:
        list(of(root, workers).batches(0, 4, "cpu"))
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize(("max_bad", "allowed"), [(6, "6;"), (0.35, r"6 \(0\.35 of 18\);")])
def test_more_than_are_allowed_are_one_error_that_lists_the_first(root, max_bad, allowed):
    spoil(root, *(f"train/{c}/{i}.png" for c in "abc" for i in range(3)))
    first = rf"[789] images of train cannot be read, data\.max_bad allows {allowed}.*\n"
    message = first + r"(.*\.png: cannot .*\n){5} *\.\.\. [234] more$"
    with pytest.raises(ValueError, match=message):
        list(of(root, max_bad=max_bad, batch_size=2).batches(0, 9, "cpu"))


@pytest.mark.parametrize("max_bad", [-1, 1.0, 1.5, "many"])
def test_max_bad_is_a_number_or_a_share(root, max_bad):
    with pytest.raises(ConfigError, match=r"data\.max_bad"):
        of(root, max_bad=max_bad)


def test_where_no_image_is_left_for_a_place_that_is_said(root):
    spoil(root, *(f"train/{c}/{i}.png" for c in "abc" for i in range(6)))
    with pytest.raises(ValueError, match="no other image can take its place"):
        next(of(root, max_bad=18).batches(0, 1, "cpu"))


def test_another_error_of_a_data_set_comes_through_as_it_is():
    data = data_of(workers=1)
    data.reader.dataset.images = data.reader.dataset.images[:, 0]  # no channels
    with pytest.raises(RuntimeError, match=r"(?s)a process that reads images.*Traceback"):
        next(data.batches(0, 1, "cpu"))


# Where every image is looked at.


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluations_leave_it_out_and_methods_get_the_next_in_its_place(root, workers):
    spoil(root, "train/a/1.png", "val/b/0.png", "val/c/3.png")
    data = of(root, workers, max_bad=2)
    clean = list(data.splits.clean_batches("test", "cpu", 4))
    index = torch.cat([positions for _, _, positions in clean])
    assert index.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    labels = torch.cat([label for _, label, _ in clean])
    assert torch.equal(labels, data.splits.split("test").labels[index])
    good = data.splits.split("test").fetch(index)
    expected = data.splits.clean(good, 0, 0, index)[0]
    assert torch.equal(torch.cat([images for images, _, _ in clean]), expected)
    alone = list(data.splits.clean_batches("test", "cpu", 1))  # a batch may be empty: none comes
    assert [int(i) for _, _, (i,) in alone] == index.tolist()

    images, positions = map(torch.cat, zip(*data.clean_share("cpu"), strict=True))
    assert positions.tolist() == list(range(18)) and torch.equal(images[1], images[2])


# Whole runs.

CONFIG = {
    "data": {
        "batch_size": 6,
        "workers": 1,
        "max_bad": 2,
        "views": {"ops": {"crop": {"type": "RandomResizedCrop", "size": 8}}},
        "clean": {"ops": {"resize": {"type": "Resize", "size": [8, 8]}}},
    },
    "backbone": {"type": "TinyNet", "in_chans": 3},
    "method": {
        "type": "Contrastive",
        "head": {"type": "MLP", "out_features": 8},
        "memory": {"type": "MoCoQueue", "size": 12},
        "loss": {"type": "InfoNCE"},
    },
    "optimizer": {"type": "SGD", "lr": 0.01},
    "train": {"epochs": 2},
    "evaluations": {"knn": {"type": "KNN", "k": 3}},
}


def train(root: Path, run: Path, *words: str) -> int:
    dataset = {"type": "ImageFolder", "root": str(root)}
    config = {**CONFIG, "data": {**CONFIG["data"], "dataset": dataset}}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    words = [*words, "--out", str(run), "--device", "cpu"]
    return cli.main(["train", str(root / "config.yaml"), *words])


def test_what_an_evaluation_trains_says_what_it_could_not_read(root, tmp_path):
    """Other images are another number: with another hash."""
    block = {"type": "LinearAugmented", "epochs": 4, "batch_size": 6, "milestones": [2]}
    words = [f"evaluations={json.dumps({'linear': block})}"]
    found = {}
    for name in ("whole", "damaged"):
        assert train(root, tmp_path / name, "--no-baselines", *words) == 0
        found[name] = RunFolder(tmp_path / name).evaluation("linear")
        spoil(root, "train/a/1.png")
    assert found["damaged"]["protocol"]["unreadable"] == "1 of train"
    assert found["damaged"]["unreadable"] == {"train": ["a/1.png"]}
    assert found["whole"]["hash"] != found["damaged"]["hash"]


def test_a_run_goes_on_without_and_says_so(root, tmp_path, capsys):
    spoil(root, "train/a/1.png", "val/b/0.png")
    run = RunFolder(tmp_path / "run")
    assert train(root, run.path, "--no-baselines") == 0
    assert "skipped as unreadable: 1 of train, 1 of test" in capsys.readouterr().out
    log = (run.path / "log.txt").read_text()
    assert log.count("skipped: ") == 2 and "a/1.png: cannot be decoded" in log
    listed = run.result()["unreadable"]
    assert {split: list(names) for split, names in listed.items()} == {
        "train": ["a/1.png"],
        "test": ["b/0.png"],
    }
    kept = checkpoint.read(run.checkpoints()[-1])["trainer"]["hooks"]["unreadable"]
    assert kept == listed
    result = run.evaluation("knn")
    assert result["protocol"]["unreadable"] == "1 of train, 1 of test"
    assert result["unreadable"] == {"train": ["a/1.png"], "test": ["b/0.png"]}
    assert result["protocol"]["queries"].endswith(" 11 images")
    rows = run.rows_path("knn").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == [0, 1, 2, 3, *range(5, 12)]

    assert cli.main(["evaluate", "knn", str(run.path), "--device", "cpu"]) == 0
    assert (
        "left out, as they cannot be read: train: 'a/1.png'; test: 'b/0.png'"
        in capsys.readouterr().out
    )
    picture(root / "val" / "b" / "0.png", 7)
    spoiled = result["hash"]
    assert cli.main(["evaluate", "knn", str(run.path), "--out", str(tmp_path / "e.json")]) == 0
    mended = json.loads((tmp_path / "e.json").read_text())["knn"]
    assert mended["hash"] != spoiled  # numbers over other images do not compare


def test_a_resume_knows_the_figures_that_were_made_without(root, tmp_path):
    spoil(root, "val/b/0.png")
    run = RunFolder(tmp_path / "run")
    assert train(root, run.path, "--no-baselines") == 0
    made = [line for line in run.metrics() if line["kind"] == "evaluation"]
    (run.path / "result.json").unlink()
    assert train(root, run.path, "--no-baselines", "--resume") == 0
    assert [line for line in run.metrics() if line["kind"] == "evaluation"] == made


def test_a_bad_file_of_the_test_images_costs_nothing_that_was_trained(root, tmp_path, capsys):
    spoil(root, "val/b/0.png")
    run = RunFolder(tmp_path / "run")
    words = ["--no-baselines", "evaluations.knn.every_epochs=null", "data.max_bad=0"]
    assert train(root, run.path, *words) == 2
    assert checkpoint.read(run.checkpoints()[-1])["trainer"]["step"] == 6
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and "val/b/0.png: cannot be decoded" in errors
    assert errors.count("\n") == 1
    assert run.error().startswith(errors.removeprefix("error: ").strip())
    assert "decode.py" not in run.error()  # not the worker's traceback as well
    assert train(root, run.path, *words[:2], "--resume") == 0  # with max_bad 2: the same run


def test_what_was_trained_is_saved_before_an_error_of_the_data(root, tmp_path):
    run = RunFolder(tmp_path / "run")
    first = of(root, batch_size=6, seed=0).sampler.permutation(0).tolist()
    spoil(root, f"train/{'abc'[first[-1] // 6]}/{first[-1] % 6}.png")  # seen in the third step
    words = ["--no-baselines", "data.max_bad=0", "evaluations.knn=null"]
    assert train(root, run.path, *words) == 2
    assert checkpoint.read(run.checkpoints()[-1])["trainer"]["step"] == 2
    assert train(root, run.path, words[0], words[2], "--resume") == 0


def test_ranks_and_sittings_count_together(monkeypatch):
    here, there = ({"train": {name: f"{name}: bad"}} for name in ("a", "b"))
    monkeypatch.setattr(distributed, "collect", lambda met: [met, there])
    state = Unreadable(here).state_dict()
    assert state == {"train": {"a": "a: bad", "b": "b: bad"}} == here
    later: dict = {}
    Unreadable(later).load_state_dict(state)
    assert later == state and later["train"] is not state["train"]


# Beforehand.


def check(root: Path, *words: str) -> int:
    train(root, root / "unused", "--check")
    return cli.main(["data", "check", str(root / "config.yaml"), *words])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_check_tells_of_all_that_is_wrong(root, workers, tmp_path, capsys):
    assert check(root, "--workers", workers) == 0
    assert "nothing is damaged, tiny or there twice" in capsys.readouterr().out
    spoil(root, "train/a/1.png")
    whole = (root / "train/b/2.png").read_bytes()
    (root / "train/b/2.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (9, 30)).save(root / "val/c/3.png")
    shutil.copy(root / "train/c/0.png", root / "train/c/9.png")
    shutil.copy(root / "train/c/1.png", root / "val/a/9.png")
    odd = os.path.join(os.fsencode(root), b"train/a/caf\xe9.png")
    Path(os.fsdecode(odd)).write_bytes(b"x")
    out = tmp_path / "lists.txt"
    capsys.readouterr()
    assert check(root, "--workers", workers, "--out", str(out)) == 1
    text = capsys.readouterr().out
    listed = out.read_text()
    for expected in (
        "not to be decoded: 2\n",
        "train/a/1.png: cannot be decoded",
        "caf\\xe9.png",
        "cut short or damaged: the header is read, no more: 1\n",
        "train/b/2.png: cannot be decoded",
        "smaller than 16 pixels: 1\n  test: c/3.png (9)\n",
        "the same contents more than once: 1\n  train: c/0.png = train: c/9.png\n",
        "the same contents in the test split as well: 1\n  train: c/1.png = test: a/9.png\n",
    ):
        assert expected in text and expected in listed


def test_long_lists_are_cut_on_the_screen_and_whole_in_the_file(root, tmp_path, capsys):
    spoil(root, *(f"train/{c}/{i}.png" for c in "abc" for i in range(5)))
    assert check(root, "--workers", "0", "--out", str(tmp_path / "lists.txt")) == 1
    text = capsys.readouterr().out
    assert text.count("cannot be decoded") == 10 and "... 5 more" in text
    assert (tmp_path / "lists.txt").read_text().count("cannot be decoded") == 15


def test_check_looks_at_sets_in_memory_and_at_packs(root, tmp_path, capsys):
    assert check(root, "data.dataset={type: Digits}", "--workers", "0", "--smallest", "8") == 0
    text = capsys.readouterr().out
    assert "Traceback" not in text and "not to be decoded" not in text
    shutil.copy(root / "train/c/1.png", root / "val/a/9.png")
    config = str(root / "config.yaml")
    assert cli.main(["data", "pack", config, "--out", str(tmp_path / "pack"), "--size", "16"]) == 0
    dataset = f"data.dataset={{type: Packed, path: {tmp_path / 'pack'}}}"
    assert check(root, dataset, "--workers", "0") == 0
    assert "train: c/1.png = test: a/9.png" in capsys.readouterr().out
