"""Every task of the paper, from its recipe: a small network learns eight pictures by heart.

What is off by a pixel, a class or a mirrored pair cannot pass. `make test-transfer` runs all of it,
minutes on two cores; `make test` the first steps.
"""

import json
from typing import NamedTuple

import pytest
import tiny_layouts as tiny

from ssl_zoo import cli
from ssl_zoo.transfer.evaluation import Transferred

# A config whose random weights are trained; nothing of its images is looked at.
CONFIG = """
data:
  dataset: {{type: Digits}}
  views: {{ops: {{}}}}
  clean: {{ops: {{normalize: {{type: Normalize, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}}}}}}
  workers: 0
  batch_size: 8
backbone: {backbone}
method: {{type: Rotation}}
optimizer: {{type: SGD, lr: 0.1}}
train: {{epochs: 1, precision: fp32}}
"""
BACKBONES = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 64]},
    "vit_tiny_patch16_224": {"img_size": 96, "embed_dim": 64, "depth": 2, "num_heads": 4},
}


class Task(NamedTuple):
    """A recipe and what of it is changed: its length, and sizes of pictures and layers."""

    recipe: str
    layout: str
    body: str
    steps: int
    metrics: tuple[str, ...] = ("AP", "box_AP")
    changed: tuple[str, ...] = ()
    backbone: str = "resnet18"


TASKS = {
    "voc0712_c4": Task("voc0712_c4", "voc_shapes", "c4", 1200, ("AP",)),
    "coco_fpn": Task("coco_fpn_2x", "coco_shapes", "fpn", 600),
    "coco_c4": Task("coco_c4_2x", "coco_shapes", "c4", 1000),
    "lvis": Task("lvis_mask", "coco_shapes", "fpn", 600),
    "keypoints": Task("coco_keypoints", "persons", "fpn", 600),
    "cityscapes": Task("cityscapes_fcn", "cityscapes_shapes", "map", 400, ("mIoU",)),
    "voc_fcn": Task("voc_fcn", "voc_shapes", "map", 400, ("mIoU",)),
    "deeplab": Task(
        "voc_fcn", "voc_shapes", "map", 400, ("mIoU",), changed=("model.type=DeepLabV3",)
    ),
    "vit": Task(
        "coco_fpn_2x",
        "coco_shapes",
        "fpn",
        600,
        changed=("model.body=pyramid",),
        backbone="vit_tiny_patch16_224",
    ),
}


def smaller(body: str, side: int) -> list[str]:
    """Overrides for pictures of 2 side x 2 side pixels."""
    if body == "map":
        return [f"augment.crop={2 * side}", "optimizer.lr=0.02"]
    regions = [f"model.min_size=[{2 * side}]", "model.regions=32", "model.proposals=100"]
    if body == "c4":
        return [*regions, f"model.anchors=[{side // 2}, {side}]"]
    anchors = [side * times / 3 for times in (1, 2, 4, 8, 16)]
    return [*regions, f"model.anchors={anchors}", "model.width=32", "model.box_width=128"]


def transferred(task: Task, folder, monkeypatch, side: int, *changed: str) -> dict[str, float]:
    """What `ssl-zoo transfer` measures."""
    monkeypatch.chdir(folder)
    backbone = {"type": "Timm", "name": task.backbone, "options": BACKBONES[task.backbone]}
    (folder / "run.yaml").write_text(CONFIG.format(backbone=json.dumps(backbone)))
    getattr(tiny, task.layout)(folder / "data", side)
    words = [task.recipe, "run.yaml", "dataset.root=data", *smaller(task.body, side)]
    words += [*task.changed, *changed, "--device", "cpu", "--out", "found.json"]
    assert cli.main(["transfer", *words]) == 0
    return json.loads((folder / "found.json").read_text())[task.recipe]["metrics"]


def length(task: Task, steps: int) -> list[str]:
    """lr falls once, late. Detectors warm up."""
    falls = [f"steps={steps}", f"schedule.milestones=[{steps * 4 // 5} steps]"]
    return (
        falls if task.body == "map" else [*falls, f"schedule.warmup_epochs={-(-steps // 30)} steps"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_recipe_learns_its_pictures_by_heart(name, tmp_path, monkeypatch):
    task = TASKS[name]
    side = 96 if task.body == "map" else 48
    how = ["batch_size=4", "precise_bn=32", *length(task, task.steps)]
    metrics = transferred(task, tmp_path, monkeypatch, side, *how)
    assert all(metrics[metric] > 90 for metric in task.metrics), metrics


@pytest.mark.parametrize("name", TASKS)
def test_first_steps_lower_the_loss(name, tmp_path, monkeypatch):
    """Of all pictures in each."""
    losses, plain = [], Transferred.forward

    def forward(self, batch):
        out = plain(self, batch)
        losses.append(out["loss"].item())
        return out

    monkeypatch.setattr(Transferred, "forward", forward)
    task = TASKS[name]
    how = ["batch_size=8", "precise_bn=0", *length(task, 5)]
    if task.body != "map":
        how.append("model.detections=10")
    metrics = transferred(task, tmp_path, monkeypatch, 24, *how)
    assert len(losses) == 5 and losses[-1] < 0.97 * losses[0]
    assert metrics.keys() >= {*task.metrics}
