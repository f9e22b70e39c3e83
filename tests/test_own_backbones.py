"""Networks that Python hands over as they are, without a word about what they can do."""

from functools import partial

import pytest
import torch
from torch import nn

from ssl_zoo import config, experiment
from ssl_zoo.backbones import Timm
from ssl_zoo.config import ConfigError
from ssl_zoo.methods import Rotation

CPU = torch.device("cpu")


class Plain(nn.Module):
    """Knows nothing of backbones but `num_features`."""

    num_features = 8

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 8, 3)

    def forward(self, images):
        return self.layer(images).mean(dim=(2, 3))


class Mapped(Plain):
    """Gives its map too."""

    map_features = 8

    def forward(self, images):
        return self.pool(self.feature_map(images))

    def feature_map(self, images):
        return self.layer(images)

    def pool(self, x):
        return x.mean(dim=(2, 3))


HEAD = {"type": "MLP", "out_features": 8}
DENSE = {"type": "DenseCL", "head": HEAD, "dense_head": HEAD, "size": 128}


def built(backbone, root, folder, method=None):
    cfg = config.load(root / "configs/digits/moco_v2.yaml", [])
    cfg.data |= {"backbone": backbone, "evaluations": {}}
    cfg.data["method"] = method or cfg.data["method"]
    return experiment.build_trainer(cfg, CPU, folder)


def learns(backbone, root, folder, method=None):
    trainer = built(backbone, root, folder, method)
    layer = trainer.method.encoder.backbone.layer
    before = layer.weight.clone()
    assert trainer.train_step(next(trainer.data.batches(0, 1, CPU)))["loss"].isfinite()
    assert not torch.equal(layer.weight, before)


def every(kind):
    """The ways in which Python may give it."""
    given = {"ready": kind(), "class": kind, "partial": partial(kind), "function": lambda: kind()}
    return pytest.mark.parametrize("backbone", given.values(), ids=list(given))


@every(Plain)
def test_a_plain_module_passes_the_checks_and_learns(backbone, root, tmp_path):
    learns(backbone, root, tmp_path)


@every(Mapped)
def test_a_plain_module_with_a_map_fits_a_method_that_needs_one(backbone, root, tmp_path):
    learns(backbone, root, tmp_path, DENSE)


@every(Plain)
def test_a_method_that_needs_a_map_refuses_what_has_none(backbone, root, tmp_path):
    with pytest.raises(ConfigError, match="DenseCL needs map of its backbone") as caught:
        built(backbone, root, tmp_path, DENSE)
    assert caught.value.key.startswith("backbone") and "timm CNN" in caught.value.expected


def test_a_network_of_unknown_width_is_refused(root, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)backbone: without num_features.*Flatten"):
        built(nn.Flatten(), root, tmp_path)


def test_features_of_another_shape_than_the_network_says_are_refused(root, tmp_path):
    network = Mapped()
    network.forward = network.feature_map
    trainer = built(network, root, tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)backbone: .*\[128, 8, 6, 6\].*\[N, 8\]"):
        trainer.train_step(next(trainer.data.batches(0, 1, CPU)))


def test_a_word_of_ones_own_is_a_method_of_the_backbone(root, tmp_path, monkeypatch):
    monkeypatch.setattr(Rotation, "needs", "feature_norm")
    rotation = {"type": "Rotation"}
    with pytest.raises(ConfigError, match="Rotation needs feature_norm of its backbone"):
        built(Plain(), root, tmp_path, rotation)
    monkeypatch.setattr(Plain, "feature_norm", nn.Module.forward, raising=False)
    learns(Plain(), root, tmp_path, rotation)


def test_a_ready_timm_model_is_tried_out_with_the_views(root, tmp_path):
    vit = {"name": "vit_tiny_patch16_224", "options": {"embed_dim": 24, "depth": 1, "num_heads": 2}}
    with pytest.raises(ConfigError, match="TimmViT does not take views 0-1: "):
        built(Timm(**vit, in_chans=1), root, tmp_path)
