"""What a method gives away: which networks it has, and which of them is judged."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import tiny  # noqa: F401  (registers)
import torch
from rich.console import Console
from torch import nn

from ssl_zoo import cli, config, experiment
from ssl_zoo.backbones import Timm
from ssl_zoo.config import EVALUATIONS, METHODS, ConfigError
from ssl_zoo.core import MomentumEncoder
from ssl_zoo.engine import checkpoint
from ssl_zoo.evaluation.base import Evaluation, Outcome
from ssl_zoo.evaluation.features import extract
from ssl_zoo.ops.modes import eval_mode

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "configs" / "digits" / "moco_v2.yaml"
CPU = torch.device("cpu")
DINO = {"type": "DINO", "head": {"type": "DINOHead", "hidden_features": 16, "out_features": 8}}
MOCO = {
    "type": "Contrastive",
    "head": {"type": "MLP", "out_features": 8},
    "memory": {"type": "MoCoQueue", "size": 32, "momentum": 0.9},
    "loss": {"type": "InfoNCE"},
}
TINY = [
    ("backbone", {"type": "TinyNet", "norm": True, "bn_groups": 2}),
    ("method", DINO),
    "data.dataset.limit=96",
    "data.batch_size=32",
    "train.precision=fp32",
    "train.epochs=2",
    ("evaluations.knn", None),
]
NORM = ("evaluations.norm", {"type": "Norm"})
STUDENT = ("evaluations.student", {"type": "Norm", "network": "backbone"})
PROBE = ("evaluations.probe", {"type": "OnlineProbe"})


@EVALUATIONS.register_module()
class Norm(Evaluation):
    """The mean norm of test features, which any change of the network changes; for tests."""

    metric, higher_is_better, unit = "norm", False, ""

    def judge(self, train, test, device="cpu"):
        return Outcome({"norm": test.features.norm(dim=1).mean().item()}, {})


def build(folder, *overrides):
    trainer = experiment.build_trainer(config.load(DIGITS, [*TINY, *overrides]), CPU, folder, False)
    trainer.console = Console(file=io.StringIO())
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    trainer = build(tmp_path_factory.mktemp("dino"), NORM, STUDENT, PROBE)
    trainer.fit()
    return trainer


def by_hand(path, name, *overrides):
    subject = experiment.load_subject(Path(path), CPU)
    ((_, result, _),) = subject.evaluate(subject.parts(name, list(overrides)), CPU)
    return result


def test_the_run_judges_what_the_paper_evaluates_or_what_a_block_names(run):
    of = run.results["evaluations"]
    batches = lambda: run.data.splits.clean_batches("test", CPU)  # noqa: E731
    for name, network in (("norm", run.method.teacher), ("student", run.method.encoder)):
        features = extract(network.backbone, batches(), CPU).features
        assert of[name]["metrics"]["norm"] == features.norm(dim=1).mean().item()
    assert of["norm"]["metrics"] != of["student"]["metrics"]
    assert [of[name]["network"] for name in of] == ["teacher", "backbone", "teacher"]


def test_a_checkpoint_gives_the_same_to_the_bit(run):
    of, path = run.results["evaluations"], run.folder.path
    assert by_hand(path, "norm") == by_hand(path, "norm", "network=teacher")
    for name in of:
        result = by_hand(path, name)
        assert result["metrics"] == of[name]["metrics"] and result["hash"] == of[name]["hash"]
    student = by_hand(path, "norm", "network=backbone")
    assert student["metrics"] == of["student"]["metrics"]
    assert student["hash"] == of["student"]["hash"] != of["norm"]["hash"]


def test_numbers_of_methods_compare_by_what_each_paper_evaluates(run, tmp_path):
    moco = build(tmp_path, NORM, ("method", MOCO))
    moco.fit()
    of, other = moco.results["evaluations"]["norm"], run.results["evaluations"]["norm"]
    assert (of["network"], other["network"]) == ("backbone", "teacher")
    assert of["hash"] == other["hash"]
    key = by_hand(tmp_path, "norm", "network=key_encoder")
    assert key["hash"] != of["hash"] and key["metrics"] != of["metrics"]


def test_a_network_that_the_method_lacks_is_refused_with_those_that_it_has(run, tmp_path, capsys):
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, ("evaluations.norm", {"type": "Norm", "network": "techer"}))
    assert caught.value.key == "evaluations.norm.network" and caught.value.nearest == "teacher"
    assert cli.main(["evaluate", "norm", str(run.folder.path), "network=key_encoder"]) == 2
    said = capsys.readouterr().err
    assert "evaluations.norm.network" in said and "teacher, backbone" in said


def test_a_probe_is_judged_on_the_network_that_it_learned_beside(run, capsys):
    assert cli.main(["evaluate", "probe", str(run.folder.path), "network=backbone"]) == 2
    assert "probe learned beside teacher; found backbone" in capsys.readouterr().err


def test_of_an_untrained_network_there_is_one(tmp_path):
    (tmp_path / "dino.yaml").write_text(config.dump(config.load(DIGITS, [*TINY, STUDENT]).data))
    assert by_hand(tmp_path / "dino.yaml", "student")["network"] == "random backbone"


def test_a_checkpoint_that_does_not_name_its_networks_has_the_trained_one(run, tmp_path):
    state = checkpoint.read(run.folder.checkpoints()[-1])
    paths = {"teacher": "teacher.encoder.backbone", "backbone": "encoder.backbone"}
    assert state.pop("networks") == paths
    checkpoint.write({n: x for n, x in state.items() if n != "format"}, tmp_path / "old.pt")
    result, of = by_hand(tmp_path / "old.pt", "norm"), run.results["evaluations"]["student"]
    assert result["network"] == "backbone" and result["metrics"] == of["metrics"]


def test_running_statistics_of_a_momentum_encoder_are_those_of_its_own_weights():
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    slow, x = MomentumEncoder(online), 3 + 5 * torch.randn(256, 4)
    with torch.no_grad():
        online[0].weight.mul_(9)
    for _ in range(200):
        trained_on = slow(x)
    with eval_mode(slow):
        torch.testing.assert_close(slow(x), trained_on, rtol=1e-2, atol=1e-2)


BLOCK = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "zero_init_last": False}
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
DROPPING = {
    "paths": Timm(name="resnet18", options={**BLOCK, "drop_path_rate": 0.5}),
    "blocks": Timm(name="resnet18", options={**BLOCK, "drop_block_rate": 0.5}),
    "classifier": Timm(name="resnet18", options={**BLOCK, "drop_rate": 0.5}),
    "patches": Timm(name="vit_tiny_patch16_224", options={**SMALL, "patch_drop_rate": 0.5}),
    "units": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout2d(0.5), nn.AlphaDropout(0.5)),
}


@pytest.mark.parametrize("online", DROPPING.values(), ids=list(DROPPING))
def test_a_momentum_encoder_drops_nothing(online):
    slow, x = MomentumEncoder(online).train(), torch.randn(4, 3, 32, 32)
    assert torch.equal(slow(x), slow(x))
    assert not torch.equal(online(x), online(x))  # which goes on dropping


def test_the_docs_name_the_methods_of_which_another_network_is_judged():
    others = {n: k.evaluated for n, k in METHODS.module_dict.items() if k.evaluated != "backbone"}
    text = (ROOT / "docs" / "evaluation.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    assert {row[1].strip(" `"): row[2].strip(" `") for row in rows} == others
