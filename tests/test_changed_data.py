"""Two sittings of a run between which its images have changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny  # noqa: F401  (registers TinyNet)
import torch
from PIL import Image

from ssl_zoo import cli, config, experiment
from ssl_zoo.data import ImageFolder, InMemory
from ssl_zoo.data.source import class_codes, matched
from ssl_zoo.engine import checkpoint
from ssl_zoo.experiment import known_data
from ssl_zoo.experiment.known_data import carry
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed
from ssl_zoo.testing.ranks import on_ranks

CROP = {"type": "RandomResizedCrop", "size": 32}
CLEAN = {"crop": {"type": "CenterCrop", "size": 32}}
BANK = {"type": "MemoryBank", "num_negatives": 32}
QUEUE = {"type": "MoCoQueue", "size": 64}
HEAD = {"type": "MLP", "hidden_features": 8, "out_features": 4}


def picture(path: Path, seed: int) -> None:
    """Noise of 40 x 40; another seed makes a file of another size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=1, pnginfo=None)
    with path.open("ab") as file:
        file.write(bytes(seed % 97))


def photos(root: Path, classes: str = "abc") -> Path:
    """3 classes of 16 + 6 images."""
    for c, name in enumerate(classes):
        for i in range(22):
            picture(root / ("train" if i < 16 else "val") / name / f"{i}.png", 100 * c + i)
    return root


def recipe(root: Path, method: dict, **changed) -> Path:
    """A config beside the images: epochs of 6 steps of 8."""
    dataset = {"type": "ImageFolder", "root": str(root)}
    data = {"dataset": dataset, "views": {"ops": {"crop": CROP}}, "clean": {"ops": CLEAN}}
    whole = {
        "data": {**data, "batch_size": 8, "workers": 0},
        "backbone": {"type": "TinyNet", "in_chans": 3, "norm": True},
        "method": method,
        "optimizer": {"type": "SGD", "lr": 0.05},
        "train": {"epochs": 2, "precision": "fp32", "log_every": 1},
        "checkpoint": {"every_epochs": 0.2, "keep": 99},
        "evaluations": {"knn": {"type": "KNN", "k": 5}},
    }
    path = root / "config.yaml"
    config.dump({**whole, **changed}, path)
    return path


def contrastive(memory: dict) -> dict:
    loss = {"type": "InfoNCE", "temperature": 0.2}
    return {"type": "Contrastive", "head": HEAD, "memory": memory, "loss": loss}


def train(path: Path, *words: str) -> int:
    out = ["--out", str(path.parent / "run"), "--device", "cpu", "--no-baselines"]
    return cli.main(["train", str(path), *words, *out])


def first_sitting(root: Path, method: dict, step: int = 6, **changed) -> Path:
    """A run that ended after a step; its config."""
    path = recipe(photos(root), method, **changed)
    assert train(path) == 0
    run = RunFolder(root / "run")
    (run.path / "result.json").unlink()
    for saved in run.path.glob("checkpoints/*.pt"):
        if saved.name == "best.pt" or saved > run.checkpoint(step):
            saved.unlink()
    assert run.checkpoints()[-1] == run.checkpoint(step)
    return path


def memory_at(root: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.read(RunFolder(root / "run").checkpoint(step))["method"]


def log(root: Path) -> str:
    return (root / "run" / "log.txt").read_text()


# What tells images apart.


def test_images_are_known_by_name_and_size_wherever_they_lie(tmp_path):
    here = photos(tmp_path / "here")
    there = Path(shutil.copytree(here, tmp_path / "elsewhere" / "there"))
    first, again = (ImageFolder("train", root=str(r)).fingerprint for r in (here, there))
    assert torch.equal(first, again) and len(first.unique()) == 48
    with (there / "train" / "a" / "0.png").open("ab") as file:
        file.write(b"more")
    other = ImageFolder("train", root=str(there)).fingerprint
    assert (other != first).nonzero().tolist() == [[0]]


def test_of_a_renamed_class_the_difference_is_that_of_the_names(tmp_path):
    before = ImageFolder("train", root=str(photos(tmp_path / "before"))).fingerprint
    after = ImageFolder("train", root=str(photos(tmp_path / "after", "xbc"))).fingerprint
    moved = after[32:] - class_codes(["x"]) + class_codes(["a"])  # sorted: b, c, x
    assert torch.equal(moved, before[:16]) and torch.equal(after[:32], before[16:])


def test_images_in_memory_are_known_by_their_pixels():
    pixels = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
    first = InMemory(pixels, torch.zeros(5), 1, "train").fingerprint
    pixels[3, 0, 2, 2] += 1
    second = InMemory(pixels, torch.zeros(5), 1, "train").fingerprint
    assert (first != second).tolist() == [False, False, False, True, False]


def test_equal_images_are_matched_in_their_order():
    old, new = torch.tensor([5, 7, 5, 9]), torch.tensor([7, 5, 5, 5, 8])
    assert matched(old, new).tolist() == [1, 0, 2, -1, -1]


# A resume that was not told.


def remove(root: Path) -> None:
    (root / "train" / "b" / "3.png").unlink()


def exchange(root: Path) -> None:
    remove(root)
    picture(root / "train" / "a" / "new.png", 999)


def add_class(root: Path) -> None:
    for i in range(16):
        picture(root / "train" / "d" / f"{i}.png", 500 + i)


def rename(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "a").rename(root / split / "zz")


def repair(root: Path) -> None:
    picture(root / "train" / "c" / "1.png", 555)


def change_test_images(root: Path) -> None:
    (root / "val" / "b" / "17.png").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove, ["images: 1 gone, 0 new", "steps an epoch: 6 -> 5"]),
        (exchange, ["images: 1 gone, 1 new or changed ('a/new.png')"]),
        (add_class, ["images: 0 gone, 16 new", "('d/0.png', ", "classes: 'd' new", "6 -> 8"]),
        (rename, ["classes: 'a' is now 'zz'", "knn: other train and test images"]),
        (repair, ["images: 1 gone, 1 new or changed ('c/1.png')"]),
        (change_test_images, ["knn: other test images"]),
    ],
)
def test_a_resume_says_what_has_changed_and_touches_nothing(change, said, tmp_path, capsys):
    path = first_sitting(tmp_path, contrastive(BANK))
    change(tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert train(path, "--resume") == 2
    errors = capsys.readouterr().err
    for words in (*said, "step_00000006.pt", "--resume --changed-data"):
        assert words in errors
    assert "size mismatch" not in errors
    after = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert set(after) - set(before) == {tmp_path / "run" / "error.txt"}
    assert all(after[p] == before[p] for p in before if p.name != ".lock")
    if change is rename:
        assert "gone" not in errors


def test_the_same_images_elsewhere_go_on_to_the_bit(tmp_path):
    path = first_sitting(tmp_path / "here", contrastive(BANK))
    assert train(path, "--resume") == 0
    whole = memory_at(tmp_path / "here", 12)
    path = first_sitting(tmp_path / "there", contrastive(BANK))
    moved = tmp_path / "moved"
    moved.mkdir()
    for split in ("train", "val"):
        shutil.move(tmp_path / "there" / split, moved / split)
    assert train(path, f"data.dataset.root={moved}", "--resume") == 0
    part = memory_at(tmp_path / "there", 12)
    assert all(torch.equal(whole[name], part[name]) for name in whole)


# A resume that was told.


def test_rows_of_a_memory_go_with_their_images(tmp_path, capsys):
    path = first_sitting(tmp_path, contrastive(BANK))
    old = memory_at(tmp_path, 6)["memory.stored"]
    exchange(tmp_path)
    device, run = torch.device("cpu"), RunFolder(tmp_path / "run")
    trainer = experiment.build_trainer(config.load(path), device, run, baselines=False)
    fresh = trainer.method.memory.stored.clone()
    trainer.hooks["data"].may_change = True
    assert trainer.resume()
    names = trainer.data.dataset.names(torch.arange(48))
    place = {n: i for i, n in enumerate(n for n in names if n != "a/new.png")}
    place = {n: i + (i >= [*place].index("b/2.png") + 1) for n, i in place.items()}  # b/3 was there
    for i, name in enumerate(names):
        row = fresh[i] if name == "a/new.png" else old[place[name]]
        assert torch.equal(trainer.method.memory.stored[i], row), name
    written = trainer.method.memory.written
    assert written[names.index("a/new.png")] == 0 and (written > 0).sum() == 47
    assert train(path, "--resume", "--changed-data") == 0
    said = log(tmp_path)
    assert "images: 1 gone, 1 new or changed ('a/new.png')" in said
    assert "step 6 of now 12 is in epoch 1.00" in said
    capsys.readouterr()
    assert train(path, "train.epochs=3", "--resume") == 0  # the next checkpoint knows the new ones


def bank_on_a_rank(root: Path) -> torch.Tensor:
    device, run = torch.device("cpu"), RunFolder(root / "run")
    trainer = experiment.build_trainer(config.load(root / "config.yaml"), device, run, False)
    trainer.hooks["data"].may_change = True
    assert trainer.resume()
    return trainer.method.memory.stored


def test_two_ranks_carry_the_same_rows_as_one(tmp_path):
    first_sitting(tmp_path, contrastive(BANK))
    exchange(tmp_path)
    alone = bank_on_a_rank(tmp_path)
    assert all(torch.equal(bank, alone) for bank in on_ranks(2, bank_on_a_rank, tmp_path))


def test_the_best_is_chosen_among_figures_on_the_same_images(tmp_path):
    path = first_sitting(tmp_path, contrastive(QUEUE))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    flattered = [json.loads(line) for line in lines]
    for line in flattered:
        line |= {"top1": 101.0} if line["kind"] == "evaluation" and line["step"] == 6 else {}
    text = "".join(json.dumps(line) + "\n" for line in flattered if line["step"] <= 6)
    (tmp_path / "run" / "metrics.jsonl").write_text(text)
    same = shutil.copytree(tmp_path / "run", tmp_path / "same")
    assert cli.main(["train", str(path), "--resume", "--out", str(same), "--device", "cpu"]) == 0
    assert RunFolder(same).result()["best"]["value"] == 101.0
    change_test_images(tmp_path)
    assert train(path, "--resume", "--changed-data") == 0
    assert RunFolder(tmp_path / "run").result()["best"]["value"] <= 100
    made = [x for x in RunFolder(tmp_path / "run").metrics() if x["kind"] == "evaluation"]
    assert [x["step"] for x in made] == [6, 6, 12]  # once more on the images of now


def test_more_images_make_longer_epochs_and_the_step_stays(tmp_path):
    path = first_sitting(tmp_path, contrastive(QUEUE))
    add_class(tmp_path)
    assert train(path, "--resume", "--changed-data") == 0
    assert "step 6 of now 16 is in epoch 0.75" in log(tmp_path)
    result = RunFolder(tmp_path / "run").result()
    assert (result["steps"], result["epochs"]) == (16, 2.0)


def test_a_queue_forgets_which_images_are_gone_and_finds_the_others(tmp_path):
    path = first_sitting(tmp_path, contrastive(QUEUE))
    old = memory_at(tmp_path, 6)
    remove(tmp_path)  # b/3.png: sorted as text after 0, 1, 10, ..., 15, 2
    trainer = experiment.build_trainer(
        config.load(path), torch.device("cpu"), RunFolder(tmp_path / "run"), baselines=False
    )
    trainer.hooks["data"].may_change = True
    trainer.resume()
    was, now = old["memory.queue.index"], trainer.method.memory.queue.index
    gone = 16 + 9
    assert (was == gone).any() and (was > gone).any()
    expected = torch.where(was == gone, -1, torch.where(was > gone, was - 1, was))
    assert torch.equal(now, expected)
    assert torch.equal(trainer.method.memory.queue.keys, old["memory.queue.keys"])


def test_clusters_are_counted_anew_with_new_images_in_them(tmp_path):
    method = {"type": "DeepCluster", "clusters": 40, "pca": 4}
    path = first_sitting(tmp_path, method, step=8)
    counted = memory_at(tmp_path, 8)["sizes"]
    exchange(tmp_path)
    trainer = experiment.build_trainer(
        config.load(path), torch.device("cpu"), RunFolder(tmp_path / "run"), baselines=False
    )
    trainer.hooks["data"].may_change = True
    trainer.resume()
    sizes = trainer.method.sizes
    assert torch.equal(sizes, torch.bincount(trainer.method.assignments, minlength=40))
    assert sizes.sum() == 48 and not torch.equal(sizes, counted)


def test_a_run_that_is_longer_than_its_images_now_allow_is_refused(tmp_path, capsys):
    path = first_sitting(tmp_path, contrastive(QUEUE), step=11)
    remove(tmp_path)
    assert train(path, "--resume", "--changed-data") == 2
    expected = "step 11 lies behind the last of now 10 steps: raise train.epochs"
    assert expected in capsys.readouterr().err
    assert train(path, "--resume", "--changed-data", "train.epochs=3") == 0
    assert RunFolder(tmp_path / "run").result()["steps"] == 15


def test_a_classifier_does_not_go_on_with_other_classes(tmp_path, capsys):
    path = first_sitting(tmp_path, {"type": "Supervised"})
    rename(tmp_path)
    assert train(path, "--resume", "--changed-data") == 2
    errors = capsys.readouterr().err
    assert "'a' is now 'zz'" in errors and "Supervised has an output for each class" in errors
    for split in ("train", "val"):  # under this name it stands where it stood
        (tmp_path / split / "zz").rename(tmp_path / split / "aa")
    assert train(path, "--resume", "--changed-data") == 0
    assert "'a' is now 'aa'" in log(tmp_path)


def test_what_learns_the_classes_beside_a_run_starts_anew_with_others(tmp_path):
    probe = {"probe": {"type": "OnlineProbe"}}
    path = first_sitting(tmp_path, contrastive(QUEUE), evaluations=probe)
    add_class(tmp_path)
    for i in range(3):
        picture(tmp_path / "val" / "d" / f"{i}.png", 700 + i)
    assert train(path, "--resume", "--changed-data") == 0
    assert "probe starts anew, as it learns the classes" in log(tmp_path)


def test_labels_alone_are_data_too(tmp_path):
    cfg = config.load(Path(__file__).parents[1] / "configs" / "digits" / "moco_v2.yaml")
    config.override(
        cfg, ["data.dataset.limit=64", "data.batch_size=32", "backbone={type: TinyNet}"]
    )
    device = torch.device("cpu")
    trainer = experiment.build_trainer(cfg, device, tmp_path, baselines=False)
    trainer.hooks["data"].before_train(trainer)
    state = trainer.state_dict()
    other = experiment.build_trainer(cfg, device, tmp_path, baselines=False)
    other.data.dataset.labels = other.data.dataset.labels.roll(1)
    with pytest.raises(ValueError, match="labels: others"):
        other.load_state_dict(state)


def test_a_checkpoint_that_does_not_say_what_it_saw_goes_on_and_that_is_said(tmp_path):
    path = first_sitting(tmp_path, contrastive(QUEUE))
    saved = RunFolder(tmp_path / "run").checkpoint(6)
    state = checkpoint.read(saved)
    del state["trainer"]["hooks"]["data"], state["format"]
    checkpoint.write(state, saved)
    assert train(path, "--resume") == 0
    assert "does not say on which data it was trained" in log(tmp_path)


def test_a_repaired_image_is_no_longer_unreadable(tmp_path):
    path = recipe(photos(tmp_path), contrastive(QUEUE))
    spoiled = tmp_path / "train" / "c" / "1.png"
    spoiled.write_bytes(b"no image")
    assert train(path, "data.max_bad=1", "checkpoint.keep=2") == 0
    assert list(RunFolder(tmp_path / "run").result()["unreadable"]["train"]) == ["c/1.png"]
    repair(tmp_path)
    assert train(path, "data.max_bad=0", "train.epochs=3", "--resume", "--changed-data") == 0
    assert "unreadable" not in RunFolder(tmp_path / "run").result()


def found_on_a_rank(root: Path) -> str:
    """What a rank is told whose copy of the images is in a folder of its own."""
    dataset = ImageFolder("train", root=str(root / str(distributed.rank())))
    try:
        known_data._check_ranks_agree(dataset)
    except ValueError as error:
        return str(error)
    return ""


def test_ranks_that_find_other_images_are_named(tmp_path):
    for rank in "01":
        photos(tmp_path / rank)
    assert on_ranks(2, found_on_a_rank, tmp_path) == ["", ""]
    remove(tmp_path / "1")
    said = on_ranks(2, found_on_a_rank, tmp_path)
    assert said[0] == said[1]
    assert "on rank 1 (47 images) than on rank 0 (48 images)" in said[0]


def test_rows_are_carried_along_the_dimension_that_is_declared():
    class Part(torch.nn.Module):
        per_sample = {"bank": 1}  # noqa: RUF012

        def __init__(self, count: int, value: float):
            super().__init__()
            self.register_buffer("bank", torch.full((2, count, 3), value))

    before, now = torch.nn.Sequential(Part(4, 0.0)), torch.nn.Sequential(Part(5, -1.0))
    before[0].bank.copy_(torch.arange(4)[None, :, None].expand(2, 4, 3))
    weights = before.state_dict()
    carry(now, weights, torch.tensor([3, -1, 0, 1, -1]), 4)
    assert weights["0.bank"][:, :, 0].tolist() == [[3, -1, 0, 1, -1]] * 2
