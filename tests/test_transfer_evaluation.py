"""Transfer as an evaluation: trained, judged, resumed, on two processes, and refused in time."""

import base64
import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tiny_layouts as tiny
import torch
from PIL import Image
from tiny import same, stopped_at
from torch import nn
from torch.nn import functional as F

from ssl_zoo import config, experiment
from ssl_zoo.backbones import Timm
from ssl_zoo.config import EVALUATIONS, ConfigError, Part, bind
from ssl_zoo.core import Batch
from ssl_zoo.data import Splits, Views
from ssl_zoo.engine.stop import Interrupted
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.evaluation.base import Context, hashed, identity, measure
from ssl_zoo.evaluation.monitor import Monitored
from ssl_zoo.ops.batchnorm import estimate_statistics
from ssl_zoo.runs import RunFolder
from ssl_zoo.study.grid import expand
from ssl_zoo.study.launch import run_study
from ssl_zoo.system import distributed
from ssl_zoo.testing.ranks import on_ranks
from ssl_zoo.testing.tiny import TinyNet
from ssl_zoo.transfer import COCO, LVIS, VOC, Cityscapes
from ssl_zoo.transfer.drawing import best_and_worst
from ssl_zoo.transfer.judging import judge_of
from ssl_zoo.transfer.models import TRANSFER_MODELS, TransferModel

CPU = torch.device("cpu")


@TRANSFER_MODELS.register_module()
class TinyDetector(TransferModel):
    """Finds one object a picture, with a mask and keypoints, out of pooled features."""

    tasks = ("boxes", "masks", "keypoints")

    def __init__(self, backbone, classes, keypoints=0, *, dropped: float = 0.2):
        super().__init__()
        self.backbone, self.keypoints, self.dropped = backbone, keypoints, dropped
        self.box = nn.Linear(backbone.num_features, 4)
        self.label = nn.Linear(backbone.num_features, classes)

    @classmethod
    def needs(cls, **options):
        return "map"

    def forward(self, images, targets):
        losses = []
        for image, target in zip(images, targets, strict=True):
            h = F.dropout(self.backbone(image[None]), self.dropped)  # from the global generator
            size = torch.tensor([image.shape[-1], image.shape[-2]] * 2)
            near = F.l1_loss(self.box(h)[0].sigmoid(), target["boxes"][0] / size)
            losses.append(near + F.cross_entropy(self.label(h), target["labels"][:1] - 1))
        loss = torch.stack(losses).mean()
        return {"loss": loss, "near": near.detach()}

    def predicted(self, image):
        h = self.backbone(image[None])
        height, width = image.shape[-2:]
        box = self.box(h).sigmoid() * torch.tensor([width, height] * 2)  # [1, 4]
        scores, label = self.label(h).softmax(1).max(1)
        x0, y0, x1, y1 = box[0].int().tolist()
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[0, y0:y1, x0:x1] = True
        points = box[:, None, :3].repeat(1, self.keypoints, 1)
        found = {"boxes": box, "labels": label + 1, "scores": scores}
        return found | {"masks": mask, "keypoints": points}


@TRANSFER_MODELS.register_module()
class TinySegmenter(TransferModel):
    """A linear layer on each cell of the map."""

    tasks = ("semantic",)

    def __init__(self, backbone, classes):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(backbone.map_features, classes, 1)

    @classmethod
    def needs(cls, **options):
        return "map"

    def logits(self, image):
        x = self.head(self.backbone.feature_map(image[None]))
        return F.interpolate(x, image.shape[-2:], mode="bilinear")

    def forward(self, images, targets):
        pairs = zip(images, targets, strict=True)
        of = [F.cross_entropy(self.logits(x), y[None], ignore_index=255) for x, y in pairs]
        return {"loss": torch.stack(of).mean()}

    def predicted(self, image):
        return self.logits(image)[0].argmax(0)


NORMALIZE = {"type": "Normalize", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
SHORT = {"optimizer": {"type": "SGD", "lr": 0.05}, "batch_size": 2, "steps": 6}
DETECT = {"type": "Transfer", "model": {"type": "TinyDetector"}, **SHORT}
SEGMENT = {"type": "Transfer", "model": {"type": "TinySegmenter"}, **SHORT}
TWO_2007 = {"train": ["VOC2007/trainval", "VOC2012/trainval"], "test": ["VOC2007/test"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    kinds = ("voc", "coco", "lvis", "cityscapes")
    return {name: getattr(tiny, name)(root / name) for name in kinds}


def splits(workers=0):
    """Of a run on other images, which are never looked at."""
    clean = bind(Views, {"ops": {"normalize": NORMALIZE}})
    return Splits(3, dataset=Part(VOC, root="nowhere"), clean=clean, workers=workers)


def backbone():
    torch.manual_seed(0)
    network = TinyNet(in_chans=3, norm=True)
    network(torch.randn(16, 3, 16, 16))  # running statistics of its own
    return network


def context(folder, network=None):
    network = network or backbone()
    return Context(network, "backbone", splits(), CPU, RunFolder(folder), evaluated="backbone")


def part_of(block, **changed):
    return bind(EVALUATIONS, block | changed, "", Monitored)


def measured(block, folder, network=None, **changed):
    part = part_of(block, **changed)
    evaluation, of = part(), context(folder, network)
    evaluation.check(of.splits)
    with mock.patch.object(os, "fsync"):
        return measure(part, evaluation, of)


def voc(folders, **more):
    return {"type": "VOC", "root": str(folders["voc"]), **more}


def coco(folders, task="masks"):
    return {"type": "COCO", "root": str(folders["coco"]), "task": task}


def predictions(folder):
    (found,) = Path(folder).parent.glob(f"{Path(folder).name}-*/*/predictions")
    return found


# ----------------------------------------------------------------------------------- judged


def test_boxes_are_judged_by_vocs_rules_and_written_as_its_kit_has_them(folders, tmp_path):
    network = backbone()
    before = {n: x.clone() for n, x in network.state_dict().items()}
    result, outcome = measured(DETECT, tmp_path / "e", network, dataset=voc(folders))
    assert same(network.state_dict(), before)
    assert set(result["metrics"]) == {"AP", "AP50", "AP75"} and result["main"] == "AP"
    assert outcome.rows is None and result["by_class"].keys() == {"person"}
    protocol = result["protocol"]
    assert "integral of 2007" in protocol["measure"] and protocol["steps"] == 6
    assert protocol["train"] == "2 of 3 pictures, those with an object"
    json.dumps(protocol)
    lines = [
        line.split()
        for file in predictions(tmp_path / "e").iterdir()
        for line in file.read_text().splitlines()
    ]
    ((name, score, *box),) = lines
    assert name == "000003" and 0 < float(score) <= 1
    x0, y0, x1, y1 = map(float, box)
    assert 1 <= x0 <= x1 <= 32 and 1 <= y0 <= y1 <= 24
    with Image.open(predictions(tmp_path / "e").parent / "best_and_worst.png") as sheet:
        assert np.asarray(sheet).std() > 10


@pytest.mark.parametrize(
    ("task", "kinds"),
    [("boxes", ["bbox"]), ("masks", ["segm", "bbox"]), ("keypoints", ["keypoints", "bbox"])],
)
def test_coco_is_judged_by_its_rules_and_written_as_its_results(folders, tmp_path, task, kinds):
    size = 1 if task == "keypoints" else 2  # of persons there is one picture
    result, _ = measured(DETECT, tmp_path / "e", dataset=coco(folders, task), batch_size=size)
    assert result["metrics"]["AP"] >= 0
    assert result["protocol"]["measure"].startswith(f"COCO's AP of {task}")
    assert ("box_AP" in result["metrics"]) == (task != "boxes")
    truth = COCO("test", root=folders["coco"], task=task)
    for kind in kinds:
        entries = json.loads((predictions(tmp_path / "e") / f"{kind}_results.json").read_text())
        assert [entry["image_id"] for entry in entries] == [139, 42, 7]
        assert {entry["category_id"] for entry in entries} <= set(truth.category_ids)
        assert {"bbox": "bbox", "segm": "segmentation"}.get(kind, kind) in entries[0]


def test_lvis_is_judged_by_its_own(folders, tmp_path):
    dataset = {"type": "LVIS", "root": str(folders["lvis"])}
    result, _ = measured(DETECT, tmp_path, dataset=dataset)
    assert "LVIS" in result["protocol"]["measure"] and "AP_rare" in result["metrics"]


def test_maps_are_judged_by_overlap_and_written_as_pngs(folders, tmp_path):
    dataset = {"type": "Cityscapes", "root": str(folders["cityscapes"])}
    augment = {"scale": [0.5, 2.0], "crop": 20}
    how = {"dataset": dataset, "augment": augment, "precise_bn": 4}
    result, _ = measured(SEGMENT, tmp_path / "e", **how)
    assert result["main"] == "mIoU" and set(result["metrics"]) == {"mIoU", "pixel_accuracy"}
    with Image.open(predictions(tmp_path / "e") / "lindau_000000_000019_leftImg8bit.png") as file:
        found = np.asarray(file)
    truth = Cityscapes("test", root=folders["cityscapes"]).target(0).numpy()
    right = (found == truth)[truth != 255].mean()
    assert found.shape == (24, 32) and result["metrics"]["pixel_accuracy"] == pytest.approx(
        100 * right, abs=0.01
    )


def test_what_is_learned_is_found(folders, tmp_path):
    """A picture of one object, seen often: its box and class are found on it."""
    lists = {"train": ["VOC2007/trainval"], "test": ["VOC2007/trainval"]}
    model = {"type": "TinyDetector", "dropped": 0.0}
    how = {"model": model, "steps": 60, "batch_size": 1, "augment": {"flip": 0.0}}
    result, _ = measured(DETECT, tmp_path, dataset=voc(folders, **lists), **how)
    assert result["metrics"]["AP50"] == 100 and result["by_class"]["dog"] > 60


def test_a_perfect_output_is_of_full_quality_and_an_empty_one_of_none(folders):
    dataset = VOC("train", root=folders["voc"])
    judge, target = judge_of(dataset), dataset.target(0)
    perfect = {name: target[name] for name in ("boxes", "labels")}
    perfect["scores"] = torch.tensor([0.9, 0.8])
    assert judge.quality(perfect, target) == 1
    half = perfect | {"scores": torch.tensor([0.9, 0.1])}
    assert judge.quality(half, target) == pytest.approx(2 / 3)
    assert judge.quality(perfect | {"labels": target["labels"].flip(0)}, target) == 0
    assert judge.quality(perfect, dataset.target(1)) is None  # nothing is to be found there


def test_the_best_and_the_worst_are_shown_and_none_twice():
    assert best_and_worst([0.1, None, 0.9, 0.5, 0.4, 0.7], 2) == ([2, 5], [0, 4])
    assert best_and_worst([0.1, 0.9, 0.5], 2) == ([1, 2], [0])
    assert best_and_worst([None], 2) == ([], [])


# ----------------------------------------------------------------------------------- resumed


def weights(folder):
    """Of the newest checkpoint of whatever was trained at this place."""
    (found,) = Path(folder).parent.glob(f"{Path(folder).name}-*/*")
    return torch.load(RunFolder(found).checkpoints()[-1])


def test_a_resumed_transfer_is_the_uninterrupted_one_to_the_bit(folders, tmp_path, monkeypatch):
    """Of a detector that draws sizes and regions."""
    torch.manual_seed(0)
    options = {"layers": [1, 1, 1, 1], "channels": [4, 8, 8, 8]}
    network = Timm(name="resnet18", options=options)
    model = {"type": "MaskRCNN", "body": "c4", "min_size": [24, 32, 40], "max_size": 48}
    model |= {"regions": 8, "proposals": 16, "width": 8, "score_threshold": 0.0, "detections": 4}
    how = {"dataset": coco(folders), "model": model, "precise_bn": 4, "steps": 4}
    whole, _ = measured(DETECT, tmp_path / "whole" / "e", network, **how)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped at step 2"):
        stopped_at(patch, 1)
        measured(DETECT, tmp_path / "parts" / "e", network, **how)
    parts, _ = measured(DETECT, tmp_path / "parts" / "e", network, **how)
    assert parts == whole
    one, other = weights(tmp_path / "whole" / "e"), weights(tmp_path / "parts" / "e")
    assert same(one["method"], other["method"]) and same(one["ranks"], other["ranks"])
    files = [sorted(predictions(tmp_path / name / "e").iterdir()) for name in ("whole", "parts")]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))


def test_a_stop_while_it_tests_keeps_the_training(folders, tmp_path, monkeypatch):
    plain = TinyDetector.predicted

    def predicted(self, image):
        os.kill(os.getpid(), signal.SIGINT)
        return plain(self, image)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="test picture 1 of 3"):
        patch.setattr(TinyDetector, "predicted", predicted)
        measured(DETECT, tmp_path / "e", dataset=coco(folders))
    with mock.patch.object(Trainer, "train_step", side_effect=AssertionError):
        result, _ = measured(DETECT, tmp_path / "e", dataset=coco(folders))
    assert result["metrics"]["AP"] >= 0


def on_a_rank(root, folder):
    torch.manual_seed(distributed.rank())
    network = backbone()
    network.net[1].running_mean += distributed.rank()  # each rank has its own; rank 0's count
    block = {"type": "COCO", "root": str(root), "task": "masks"}
    how = {"dataset": block, "model": {"type": "TinyDetector", "dropped": 0.0}, "precise_bn": 4}
    result, outcome = measured(DETECT, folder, network, **how)
    return result["metrics"], outcome.protocol["processes"]


def test_two_processes_train_one_model_and_share_the_test_set(folders, tmp_path):
    alone, _ = on_a_rank(folders["coco"], tmp_path / "one")
    (first, count), (second, _) = on_ranks(2, on_a_rank, folders["coco"], tmp_path / "two")
    assert first == second and count == 2 and first.keys() == alone.keys()
    entries = json.loads((predictions(tmp_path / "two") / "bbox_results.json").read_text())
    assert [entry["image_id"] for entry in entries] == [139, 42, 7]


def test_precise_statistics_are_those_of_all_batches():
    layer, unused = nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(3)
    unused(torch.randn(8, 3, 4, 4) + 7)
    before = unused.running_mean.clone()
    batches = [torch.randn(8, 3, 4, 4) * (i + 1) + i for i in range(4)]
    layer.train()(torch.randn(8, 3, 4, 4) + 50)  # what was there before is forgotten
    layer.unused = unused  # a part that its passes leave out
    estimate_statistics(layer, batches)
    means = torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0)
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in batches]).mean(0)
    torch.testing.assert_close(layer.running_mean, means)
    torch.testing.assert_close(layer.running_var, variances)
    assert layer.momentum == 0.3 and torch.equal(unused.running_mean, before)


# ----------------------------------------------------------------------------------- the hash


def hash_of(**changed):
    part = part_of(DETECT, **changed)
    return hashed(identity(part, part(), splits(), "backbone"))


def test_the_hash_is_of_pictures_annotations_and_settings_not_of_places(tmp_path):
    roots = [tiny.voc(tmp_path / name) for name in ("a", "b", "deeper/c")]
    usual = {"dataset": {"type": "VOC", "root": str(roots[0]), **TWO_2007}}
    known = hash_of(**usual)
    assert hash_of(dataset=usual["dataset"] | {"root": str(roots[2])}) == known
    assert hash_of(**usual, steps=7) != known
    there = usual["dataset"] | {"root": str(roots[1])}
    assert hash_of(dataset=there) == known
    xml = roots[1] / "VOC2007" / "Annotations" / "000001.xml"
    text = xml.read_text()
    xml.write_text(text.replace("dog", "cow"))
    assert hash_of(dataset=there) != known
    xml.write_text(text)
    assert hash_of(dataset=there) == known
    tiny.picture(roots[1] / "VOC2007" / "JPEGImages" / "000003.jpg", 77)
    assert hash_of(dataset=there) != known


# ----------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": {"type": "TinySegmenter"}}, "model.type: TinySegmenter does not learn what VOC"),
        ({"augment": {"crop": 8}}, r"augment\.crop: is for semantic maps"),
        ({"epochs": 2.0}, "steps: how long"),
        ({"steps": None}, "steps: how long"),
        (
            {"schedule": {"type": "Constant", "warmup_epochs": "9 steps"}},
            r"schedule\.warmup_epochs: longer than the training",
        ),
        ({"data": {"dataset": {"type": "Digits"}}}, "it has data of its own"),
        ({"model": {"type": "FasterRCNN", "body": "c4"}}, "Transfer needs c4 of its backbone"),
    ],
)
def test_a_block_that_does_not_fit_together_is_refused(folders, changed, message):
    with pytest.raises(ConfigError, match=message):
        whole(folders, **changed)


def whole(folders, **changed):
    """A run's config with a transfer among its evaluations."""
    block = {**DETECT, "dataset": voc(folders), "every_epochs": None, **changed}
    ops = {"ops": {"normalize": NORMALIZE}}
    dataset = {"type": "Synthetic", "num_samples": 32, "size": 12, "channels": 3}
    return experiment.parse(
        config.Config(
            {
                "data": {"dataset": dataset, "views": ops, "clean": ops, "batch_size": 16},
                "backbone": {"type": "TinyNet", "in_chans": 3, "norm": True},
                "method": {"type": "Rotation"},
                "optimizer": {"type": "SGD", "lr": 0.1},
                "train": {"epochs": 1, "precision": "fp32"},
                "evaluations": {"found": block},
            }
        )
    )


def test_what_the_data_do_not_allow_is_refused_before_anything_is_paid_for(folders, tmp_path):
    for changed, message in (
        ({"batch_size": 3}, "2 pictures with an object, fewer than batch_size 3"),
        ({"schedule": {"type": "Constant", "warmup_epochs": 9.0}}, "longer than the training"),
    ):
        with pytest.raises(ValueError, match=message):
            part_of(DETECT, dataset=voc(folders), **changed)().check(splits())
    empty = {"train": ["VOC2007/trainval"], "test": ["VOC2007/none"]}
    tiny.write(folders["voc"] / "VOC2007/ImageSets/Main/none.txt", "000002\n")
    with pytest.raises(ValueError, match="no picture has an object to be found"):
        part_of(DETECT, dataset=voc(folders, **empty))().check(splits())


def test_keypoints_of_another_order_are_refused(tmp_path):
    root = tiny.coco(tmp_path)
    path = root / "annotations" / "person_keypoints_val2017.json"
    data = json.loads(path.read_text())
    data["categories"][0]["keypoints"].reverse()
    path.write_text(json.dumps(data))
    dataset = {"type": "COCO", "root": str(root), "task": "keypoints"}
    with pytest.raises(ValueError, match=r"the keypoints of training, .* are not those of test"):
        part_of(DETECT, dataset=dataset)().check(splits())


def test_a_backbone_without_what_a_model_needs_is_refused(folders, tmp_path):
    network = nn.Linear(3, 3)
    network.num_features = 3
    with pytest.raises(ConfigError, match="backbone: TinyDetector needs map of its backbone"):
        part_of(DETECT, dataset=voc(folders))().begin(network, splits(), CPU)
    gray = backbone()
    gray.in_chans = 1
    with pytest.raises(ConfigError, match=r"backbone\.in_chans: the pictures have 3 channels"):
        part_of(DETECT, dataset=voc(folders))().begin(gray, splits(), CPU)


def test_coco_without_its_library_is_refused_at_once(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'ssl_zoo\[transfer\]'"):
        part_of(DETECT, dataset=coco(folders, "boxes"))().check(splits())


# ----------------------------------------------------------------------------------- in a run


def test_a_run_is_judged_by_it_in_the_sets_own_epochs(folders, tmp_path):
    """Two steps of warm-up are the transfer's, though an epoch of the run has as many."""
    schedule = {"type": "Step", "milestones": ["4 steps"], "warmup_epochs": "2 steps"}
    sections = whole(folders, schedule=schedule)
    rates = []
    plain = Trainer.train_step

    def train_step(self, batch):
        if not isinstance(batch, Batch):
            rates.append(self.optimizer.param_groups[0]["lr"])
        return plain(self, batch)

    written = config.Config(sections.spelled_out())
    trainer = experiment.build_trainer(written, CPU, RunFolder(tmp_path), baselines=False)
    trainer.console.quiet = True
    with mock.patch.object(Trainer, "train_step", train_step), mock.patch.object(os, "fsync"):
        trainer.fit()
    assert rates == pytest.approx([0, 0.025, 0.05, 0.05, 0.005, 0.005])
    found = RunFolder(tmp_path).evaluation("found")
    assert found["main"] == "AP" and found["metrics"]["AP"] >= 0
    assert RunFolder(tmp_path).result()["best"]["metric"] == "found.AP"


def test_a_studys_report_shows_what_was_drawn(folders, tmp_path):
    (tmp_path / "base.yaml").write_text(config.dump(whole(folders).spelled_out()))
    (tmp_path / "grid.yaml").write_text("base: base.yaml\nseeds: [0]\narms: {some: {}}\n")
    (run,) = expand(tmp_path / "grid.yaml", tmp_path / "study").runs
    with mock.patch.object(os, "fsync"):
        experiment.train_into(run.files, config.Config(run.config), "cpu", baselines=False)
    assert run_study(tmp_path / "grid.yaml", out=tmp_path / "study", report_only=True) == 0
    (drawn,) = (run.folder / "evaluations" / "found").rglob("best_and_worst.png")
    page = (tmp_path / "study" / "report.html").read_text()
    assert "<h3>some, seed 0: found</h3>" in page
    assert base64.b64encode(drawn.read_bytes()).decode() in page


def test_a_config_may_name_it_before_it_is_imported():
    assert EVALUATIONS.later["Transfer"] == "ssl_zoo.transfer.evaluation"
    assert "Transfer" in EVALUATIONS.names() and "Transfer" in dict(
        (name, line) for name, line, _ in EVALUATIONS.summary()
    )


def test_lvis_and_coco_have_identities_of_their_own(folders):
    sets = [COCO("train", root=folders["coco"]), COCO("test", root=folders["coco"])]
    sets.append(LVIS("train", root=folders["lvis"]))
    assert len({dataset.identity for dataset in sets}) >= 2
