"""A source may be a stream: batches in its order, a saved place in it, and what it cannot give."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from itertools import count, islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import tiny  # noqa: F401  (in processes of ranks too)
import torch

from ssl_zoo import cli, config, experiment, train
from ssl_zoo.config import DATASETS, LOSSES, MEMORY, METHODS, ConfigError, OfMachine
from ssl_zoo.data import ImageSet, InMemory, Stream
from ssl_zoo.data.sampler import InOrder
from ssl_zoo.data.source import check_split
from ssl_zoo.engine.hooks import Hook, checkpoints
from ssl_zoo.engine.stop import Interrupted
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.experiment.stream import needs_a_set
from ssl_zoo.system import rng
from ssl_zoo.testing.ranks import on_ranks

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "configs" / "digits" / "moco_v2.yaml"
SIZES = (5, 11, 3, 8)  # images in each shard: of 27, so that passes end within batches
BLOCK = tarfile.BLOCKSIZE


@DATASETS.register_module()
class Shards(Stream):
    """Gray images, 8 x 8 bytes each, in tar files whose order differs in each pass; for tests."""

    num_classes = 10

    def __init__(self, split: str, *, root: OfMachine[str]):
        self.split, self.root = check_split(split), Path(root)
        self.shards = sorted(path.name for path in self.root.glob("*.tar"))

    def read(self, seed, position=None):
        """A record is (shard, offset, class), a position (shards that were read, offset)."""
        first, offset = position or (0, 0)
        for number in count(first):
            turn, place = divmod(number, len(self.shards))
            name = self.shards[rng.permutation(len(self.shards), seed, "shards", turn)[place]]
            with open(self.root / name, "rb") as file:
                file.seek(offset)
                for member in tarfile.TarFile(fileobj=file):
                    after = member.offset_data + math.ceil(member.size / BLOCK) * BLOCK
                    label = int(member.name.partition("_")[0])
                    yield (name, member.offset_data, label), (number, after)
            offset = 0

    def fetch(self, records):
        images = []
        for name, offset, _ in records:
            with open(self.root / name, "rb") as file:
                file.seek(offset)
                images.append(torch.frombuffer(bytearray(file.read(64)), dtype=torch.uint8))
        return torch.stack(images).view(-1, 1, 8, 8)

    def labels_of(self, records):
        return torch.tensor([label for _, _, label in records])

    @property
    def identity(self):
        sizes = [(name, (self.root / name).stat().st_size) for name in self.shards]
        return hashlib.sha256(repr(sizes).encode()).hexdigest()[:12]


@pytest.fixture
def shards(tmp_path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for i in range(size):
                info = tarfile.TarInfo(f"{i % 10}_{i}.raw")
                info.size = 64
                archive.addfile(info, io.BytesIO(noise.bytes(64)))
    return folder


def settings(root: Path, *overrides) -> list:
    knn = {"type": "KNN", "k": 5, "every_epochs": "4 steps"}
    knn["data"] = {"dataset": {"type": "Digits", "limit": 64}}
    return [
        ("data.dataset", {"type": "Shards", "root": str(root)}),
        ("backbone", {"type": "TinyNet", "norm": True, "bn_groups": 2}),
        "data.batch_size=8",
        "data.workers=0",
        ("evaluations.knn", knn),
        ("schedules.optimizer.lr", {"type": "Cosine", "warmup_epochs": "2 steps"}),
        "train={epochs: null, steps: 9, precision: fp32, log_every: 1}",
        "method.memory.size=50",
        "checkpoint={every_epochs: 3 steps, keep: 100}",
        *overrides,
    ]


def make(folder: Path, root: Path, *overrides) -> Trainer:
    cfg = config.load(DIGITS, settings(root, *overrides))
    return experiment.build_trainer(cfg, torch.device("cpu"), folder, baselines=False)


def everything(trainer: Trainer) -> list[torch.Tensor]:
    moments = [
        state["momentum_buffer"] for state in trainer.optimizer.state_dict()["state"].values()
    ]
    return [*trainer.method.state_dict().values(), *moments, torch.get_rng_state()]


def same(a, b) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def whole_and_resumed(folder: Path, root: Path, workers: int) -> tuple[bool, bool]:
    """Whether 5 steps, a stop and 4 more equal 9, on other workers; and whether 5 do not."""
    whole = make(folder / "whole", root)
    whole.fit()
    first = make(folder / "parts", root, f"data.workers={workers}")
    first.hooks = {"stop": Stop(), **first.hooks}
    with patch.object(checkpoints, "RANKS_ASK_EVERY", 1), pytest.raises(Interrupted):
        first.fit()
    early = same(everything(first), everything(whole))
    torch.manual_seed(99)
    second = make(folder / "parts", root)
    assert second.resume() and second.data.position[0] == 5
    second.fit()
    return same(everything(second), everything(whole)), early


class Stop(Hook):
    """Asks a run to stop after five steps."""

    def after_step(self, trainer, batch, out):
        trainer.stop.asked = trainer.step == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_is_bitwise_also_with_workers_that_read_ahead(workers, shards, tmp_path):
    assert whole_and_resumed(tmp_path, shards, workers) == (True, False)
    lines = [json.loads(x) for x in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["kind"] == "train"] == list(range(1, 10))
    assert [x["step"] for x in lines if x["kind"] == "evaluation"] == [4, 8, 9]
    assert all(x["epoch"] is None for x in lines)
    rates = [x["lr"] for x in lines if x["kind"] == "train"]
    assert rates[0] == 0 and rates[1] == max(rates) / 2 and rates[-1] < rates[2] == max(rates)


def test_a_resume_is_bitwise_on_two_ranks(shards, tmp_path):
    assert on_ranks(2, whole_and_resumed, tmp_path, shards, 0) == [(True, False)] * 2


def test_ranks_and_workers_share_what_one_process_reads(shards, tmp_path):
    stream = Shards("train", root=str(shards))
    alone = [of for of, _ in InOrder(stream, 8, 3).samples(0, 9)]
    assert torch.cat([of.index for of in alone]).tolist() == list(range(72))
    ranks = [[of for of, _ in InOrder(stream, 8, 3, r, 2).samples(0, 9)] for r in range(2)]
    for one, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(one.index, torch.cat([part.index for part in parts]))
        assert one.records == [record for part in parts for record in part.records]
    records = [record for of in alone for record in of.records]
    assert all(len(set(records[i : i + 27])) == 27 for i in (0, 27))  # each pass has every image
    assert records[:27] != records[27:54]  # in another order
    made = [list(make(tmp_path / str(n), shards, f"data.workers={n}").data.batches(0, 5, "cpu"))
            for n in (0, 2)]  # fmt: skip
    for one, other in zip(*made, strict=True):
        assert same([*one.views, one.index, one.label], [*other.views, other.index, other.label])
    labels = [record[2] for record in InOrder(stream, 8, 0).first(8)[1]]
    assert made[0][0].label.tolist() == labels


def test_a_stream_is_read_forward_from_where_it_stands(shards, tmp_path):
    data = make(tmp_path, shards).data
    first = list(islice(data.batches(0, 9, "cpu"), 3))
    assert data.position[0] == 3
    onward = next(data.batches(3, 4, "cpu"))
    assert onward.index.tolist() == list(range(24, 32))
    with pytest.raises(ValueError, match="stands at step 4, not at 7"):
        next(data.batches(7, 8, "cpu"))
    assert torch.equal(next(data.batches(0, 1, "cpu")).views[0], first[0].views[0])
    assert (data.num_samples, data.steps_per_epoch, data.labels) == (None, None, None)
    with pytest.raises(ValueError, match="Shards is a stream, and an evaluation needs a set"):
        data.splits.split("test")


def test_a_stream_that_ends_is_an_error_after_a_checkpoint(shards, tmp_path, monkeypatch):
    trainer = make(tmp_path, shards)
    whole = Shards.read
    monkeypatch.setattr(Shards, "read", lambda *args: islice(whole(*args), 20))
    with pytest.raises(ValueError, match="Shards ended after 20 images; a stream has no end"):
        trainer.fit()
    assert trainer.folder.checkpoints() == [trainer.folder.checkpoint(2)]


def test_another_stream_is_not_gone_on_with(shards, tmp_path):
    first = make(tmp_path / "run", shards)
    first.hooks["data"].before_train(first)
    first.hooks["checkpoints"].save(first)
    moved = shards.rename(tmp_path / "elsewhere")
    assert make(tmp_path / "run", moved).resume()
    (moved / "1.tar").unlink()
    again = make(tmp_path / "run", moved)
    again.hooks["data"].may_change = True
    with pytest.raises(ValueError, match="Shards is not the stream of before: a place in that"):
        again.resume()


HEAD = {"type": "MLP", "out_features": 8}
ELSEWHERE = {"type": "KNN", "data": {"dataset": {"type": "Digits"}}}  # each epoch, by default
BANK = {"type": "MemoryBank", "num_negatives": 4}


@pytest.mark.parametrize(
    ("override", "key", "why"),
    [
        (("method.memory", BANK), "method.memory", "MemoryBank keeps something of every"),
        (("method.loss", {"type": "NCE"}), "method.loss", "NCE has to know how many training"),
        (("method", {"type": "DeepCluster"}), "method", "DeepCluster keeps something"),
        (("method", {"type": "DeepClusterV2", "head": HEAD}), "method", "DeepClusterV2 keeps"),
        (("method", {"type": "ODC", "head": HEAD}), "method", "ODC keeps something of every"),
        (("method", {"type": "Colorization"}), "method", "Colorization looks at the whole"),
        (("method", {"type": "Supervised"}), "method", "Supervised has to know the labels"),
        ("train={epochs: 2, steps: null}", "train.epochs", "no epochs"),
        ("checkpoint.every_epochs=2", "checkpoint.every_epochs", "no epochs"),
        (("evaluations.x", ELSEWHERE), "evaluations.x.every_epochs", "no epochs"),
        (
            "schedules.optimizer.lr.warmup_epochs=1",
            "schedules.optimizer.lr.warmup_epochs",
            "epochs",
        ),
        ("evaluations.knn.every_epochs=1 epoch", "evaluations.knn.every_epochs", "no epochs"),
        ("evaluations.knn.data=null", "evaluations.knn.data.dataset", "as it likes"),
        ("evaluations.p={type: OnlineProbe}", "evaluations.p.data.dataset", "learns the classes"),
        ("data.max_bad=3", "data.max_bad", "no image can stand in for another"),
    ],
)
def test_what_a_stream_cannot_give_is_refused_before_it_is_read(override, key, why):
    cfg = config.load(DIGITS, settings(Path("nowhere"), override))
    with pytest.raises(ConfigError, match=why) as caught:
        experiment.parse(cfg)
    assert caught.value.key == key and "Shards is a stream" in str(caught.value)


def test_the_command_line_checks_a_stream_and_draws_its_views(shards, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    config.dump(config.load(DIGITS, settings(shards, ("backbone.type", "TinyNet"))).data, path)
    assert cli.main(["train", str(path), "--check"]) == 0
    assert cli.main(["train", str(path), "method.loss={type: NCE}", "--check"]) == 2
    assert "Shards is a stream, and NCE has to know how many" in capsys.readouterr().err
    assert cli.main(["data", "show", str(path), "--out", str(tmp_path / "views.png")]) == 0
    assert (tmp_path / "views.png").exists()


def test_what_needs_a_set_says_so():
    asks = {
        name: needs_a_set(target)
        for registry in (METHODS, MEMORY, LOSSES)
        for name, target in registry.module_dict.items()
        if target.__module__.startswith("ssl_zoo.")
    }
    needing = {name for name, why in asks.items() if why}
    clusters = {"DeepCluster", "DeepClusterV2", "ODC", "Colorization"}
    assert needing == clusters | {"MemoryBank", "NCE", "PIRL", "CMC", "SupCon", "Supervised"}


# Durations in either unit.


def run(folder: Path, *overrides) -> list[dict]:
    """Two epochs of five steps of digits, the lines of metrics."""
    small = [
        ("backbone", {"type": "TinyNet"}),
        "data.dataset.limit=160",
        "data.batch_size=32",
        "evaluations.knn={k: 5, every_epochs: 1}",
        "train={epochs: 2, precision: fp32, log_every: 1}",
        "method.memory={type: MoCHi, size: 64, hardest: 8, warmup_steps: 5}",
        "schedules.optimizer.lr={type: Step, milestones: [1, 1.6], warmup_epochs: 0.8}",
    ]
    cfg = config.load(DIGITS, [*small, *overrides])
    trainer = experiment.build_trainer(cfg, torch.device("cpu"), folder, baselines=False)
    trainer.fit()
    times = ("seconds", "images_per_s")
    return [{k: v for k, v in x.items() if k not in times} for x in trainer.folder.metrics()]


def test_what_counts_epochs_may_say_steps_and_the_other_way_round(tmp_path):
    said = [
        "train={epochs: null, steps: 10}",
        "evaluations.knn.every_epochs=5 steps",
        "method.memory.warmup_steps=1 epoch",
        "schedules.optimizer.lr={milestones: [5 steps, 1.6 epochs], warmup_epochs: 4 steps}",
        "checkpoint.every_epochs=5 steps",
    ]
    assert run(tmp_path / "own") == run(tmp_path / "other", *said)


@pytest.mark.parametrize("text", ["5 minutes", "0 steps", "2.5 steps", "1e3 steps", "steps"])
def test_text_that_is_no_duration_is_refused(text):
    with pytest.raises(ConfigError, match="not a duration") as caught:
        experiment.parse(config.load(DIGITS, [("evaluations.knn.every_epochs", text)]))
    assert caught.value.key == "evaluations.knn.every_epochs"


def test_a_run_has_one_length():
    for length, problem in (({"steps": 5}, "two lengths"), ({"epochs": None}, "no length")):
        with pytest.raises(ConfigError, match=problem):
            experiment.parse(config.load(DIGITS, [("train", length)]))


def test_a_ramp_is_compared_with_the_run_in_whatever_unit(tmp_path):
    warm = "schedules.optimizer.lr.warmup_epochs"
    steps = "train={epochs: null, steps: 10}"
    with pytest.raises(ConfigError, match="longer than the run") as caught:
        experiment.parse(config.load(DIGITS, [steps, f"{warm}=11 steps"]))
    assert caught.value.expected == f"{warm}='10 steps' or less, or train.steps=11 or more"
    with pytest.raises(ConfigError, match="longer than the run") as caught:
        run(tmp_path, steps, f"{warm}=3")
    assert caught.value.found == "3 epochs in a run of 2 epochs and 10 steps"
    assert caught.value.expected == f"{warm}=2 or less, or train.steps=15 or more"
    whole = experiment.parse(config.load(DIGITS, ["checkpoint.every_epochs=200 steps"]))
    late = "the run ends after 15 epochs, 165 steps, before checkpoint.every_epochs 200 steps"
    assert experiment.out_of_reach(whole, 165, 11) == late


def test_a_run_goes_on_for_more_steps():
    schedule = ("schedules.optimizer.lr", {"type": "Cosine", "warmup_epochs": "3 steps"})
    old, new, epochs = (
        experiment.parse(config.load(DIGITS, [schedule, f"train={train}"])).spelled_out()
        for train in ("{epochs: null, steps: 10}", "{epochs: null, steps: 20}", "{epochs: 20}")
    )
    moved = "train.steps 10 -> 20; its length changes: optimizer.lr (Cosine)"
    assert experiment.longer(old, new) == moved
    assert experiment.longer(old, epochs) == experiment.longer(new, old) == ""


# Sets.


def pictures(n: int = 12) -> torch.Tensor:
    return torch.randint(256, (n, 1, 4, 4), dtype=torch.uint8)


def test_a_subset_is_a_set_of_its_own():
    images = pictures()
    whole = InMemory(images, torch.arange(12) % 3, 3, "train")
    index = torch.tensor([7, 2, 9])
    some = whole.subset(index)
    assert len(some) == 3 and torch.equal(some.fetch(torch.tensor([2, 0])), images[[9, 7]])
    assert some.labels.tolist() == [1, 2, 0] and some.num_classes == 3
    assert some.names(torch.arange(3)) == ["7", "2", "9"]
    alone = InMemory(images[index], torch.tensor([1, 2, 0]), 3, "train")
    assert some.identity == alone.identity != whole.identity
    assert some.split != whole.subset(index.flip(0)).split != whole.split
    assert torch.equal(some.subset(torch.tensor([1])).fetch(torch.tensor([0]))[0], images[2])


def test_a_set_need_know_no_classes(tmp_path):
    @DATASETS.register_module(name="NoClasses", force=True)
    class NoClasses(InMemory):
        def __init__(self, split):
            super().__init__(pictures(40).repeat(1, 1, 2, 2), None, 0, check_split(split))

    overrides = [("data.dataset", {"type": "NoClasses"}), ("backbone", {"type": "TinyNet"})]
    cut = ["data.batch_size=8", "train.epochs=1", "method.memory.size=16", "checkpoint={}"]
    cfg = config.load(DIGITS, [*overrides, *cut, "evaluations={knn: {k: 5, every_epochs: 1}}"])
    judged = experiment.build_trainer(cfg, torch.device("cpu"), tmp_path / "a", baselines=False)
    with pytest.raises(ConfigError, match="kNN needs labels: 40 of the 40 images of the bank"):
        judged.fit()
    del cfg.data["evaluations"]
    trainer = experiment.build_trainer(cfg, torch.device("cpu"), tmp_path / "b", baselines=False)
    trainer.fit()
    assert trainer.data.labels.tolist() == [-1] * 40 and isinstance(trainer.data.dataset, ImageSet)
    assert trainer.resume()


def test_a_ready_stream_is_trained_on_from_python(shards, tmp_path):
    run = train(
        config.load(DIGITS, settings(shards)).data,
        out=tmp_path / "run",
        data=Shards("pretrain", root=str(shards)),
        evaluations={"knn": None},
    )
    assert run.result["steps"] == 9
    assert run.folder.config()["data"]["dataset"]["type"].endswith("test_stream.Shards")
