"""What is refused before the first step: batches with too few images for what looks at several."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny  # noqa: F401  (registers TinyNet)
import torch

from ssl_zoo import config, experiment
from ssl_zoo.config import ConfigError
from ssl_zoo.experiment.batches import check_batches
from ssl_zoo.testing.ranks import on_ranks

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
END_TO_END = "method.memory={type: EndToEnd}"
DCL = "method.loss={type: DCL}"
HEAD = {"type": "Linear", "out_features": 4}


def build(folder, *overrides, samples: int = 33, norm: bool = False, groups: int = 1):
    changed = [
        ("data.dataset", {"type": "Synthetic", "num_samples": samples, "size": 8, "channels": 1}),
        ("data.batch_size", 16),
        ("data.drop_last", False),
        ("backbone", {"type": "TinyNet", "norm": norm, "bn_groups": groups}),
        ("evaluations.knn", None),
        *overrides,
    ]
    cfg = config.load(ROOT / "configs" / "digits" / "moco_v2.yaml", changed)
    return experiment.build_trainer(cfg, CPU, folder)


@pytest.mark.parametrize(
    ("overrides", "who"),
    [
        ([END_TO_END], "EndToEnd"),
        ([END_TO_END, DCL], "EndToEnd"),
        ([("method", {"type": "SupCon", "head": HEAD})], "SupCon"),
        ([("method", {"type": "VICReg", "head": HEAD})], "VICReg"),
        ([("method", {"type": "WMSE", "head": HEAD, "part": 8})], "WMSE"),
    ],
    ids=["simclr", "dcl", "supcon", "vicreg", "w_mse"],
)
def test_a_last_batch_of_one_is_refused_where_images_are_compared(overrides, who, tmp_path):
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, *overrides)
    needed = 8 if who == "WMSE" else 2
    assert caught.value.key == "data.batch_size"
    assert caught.value.problem == f"{who} needs {needed} images at a time"
    assert "a (micro-)batch of 1 out of 33" in caught.value.found
    nearest = 17 if who == "WMSE" else 15  # 17 + 16, 15 + 15 + 3
    assert f"data.batch_size={nearest}" in caught.value.expected
    assert "data.drop_last=true" in caught.value.expected
    build(tmp_path, *overrides, ("data.drop_last", True))
    build(tmp_path, *overrides, ("data.batch_size", nearest))


def test_one_image_is_enough_for_a_queue(tmp_path):
    trainer = build(tmp_path)
    *_, last = trainer.data.batches(0, 3, CPU)
    assert len(last.index) == 1 and trainer.method(last)["loss"] > 0


def test_batchnorm_needs_two_images_a_group(tmp_path):
    with pytest.raises(ConfigError, match="BatchNorm needs 2 images"):
        build(tmp_path, norm=True)
    with pytest.raises(ConfigError, match="BatchNorm in 4 groups needs 8 images") as caught:
        build(tmp_path, norm=True, groups=4)
    assert "data.batch_size=17 or" in caught.value.expected
    build(tmp_path, norm=True, groups=4, samples=40)


def test_micro_batches_are_counted(tmp_path):
    with pytest.raises(ConfigError, match="EndToEnd needs 2 images") as caught:
        build(tmp_path, END_TO_END, "train.accumulate=8", samples=42)  # the last step's 10 by 8
    ways = "data.batch_size=21 or data.drop_last=true or train.accumulate=1"
    assert caught.value.expected == ways
    with pytest.raises(ConfigError, match="needs 2 images") as caught:
        build(tmp_path, END_TO_END, "train.accumulate=16", samples=32)
    assert caught.value.expected == "data.batch_size=32 or train.accumulate=1"


def test_too_few_images_for_any_batch_are_said_to_be_so(tmp_path):
    with pytest.raises(ConfigError, match="BatchNorm in 16 groups needs 32") as caught:
        build(tmp_path, norm=True, groups=16, samples=20)
    assert caught.value.expected == "more images"


class Compares(torch.nn.Linear):
    least_images = 2


def refused(method: torch.nn.Module) -> str:
    try:
        check_batches(method, 34, 16, drop_last=False, accumulate=1)
    except ConfigError as error:
        return error.problem
    return ""


def on_each_rank() -> list[str]:
    return [refused(module) for module in (Compares(2, 2), torch.nn.BatchNorm1d(2))]


def test_ranks_compare_together_and_normalize_alone():
    assert on_ranks(2, on_each_rank)[0] == ["", "BatchNorm needs 2 images at a time"]
