"""Runs from Python: the numbers of a config's, resumed, judged and loaded again."""

import json
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TinyNet
from torch import nn
from torch.utils.data import TensorDataset

import ssl_zoo as sz
from ssl_zoo.cli.command_line import main
from ssl_zoo.config import ConfigError
from ssl_zoo.data.datasets.bundled import Digits
from ssl_zoo.data.given import dataset_block
from ssl_zoo.evaluation.knn import KNN
from ssl_zoo.runs import RunFolder

IMAGES = torch.arange(48 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(48, 3, 8, 8)
LABELS = torch.arange(48) % 3
LABELED = TensorDataset(IMAGES, LABELS)


class Net(nn.Module):
    """A user's own, which knows nothing of this package."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3)

    def forward(self, images):
        return self.layer(images).relu().mean(dim=(2, 3))


with torch.random.fork_rng():
    torch.manual_seed(0)
    NET = Net()


def method(size=32):
    return partial(
        sz.methods.Contrastive,
        head=partial(sz.heads.MLP, out_features=4),
        memory=partial(sz.memory.MoCoQueue, size=size, momentum=0.9),
        loss=sz.losses.InfoNCE(temperature=0.2),
    )


def trained(out, **changed):
    given = {"data": LABELED, "backbone": NET, "epochs": 1, "batch_size": 16, "size": 8}
    return sz.train(out=out, method=method(), **given | changed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained with kNN after each epoch."""
    return trained(tmp_path_factory.mktemp("api") / "run", data={"train": LABELED, "test": LABELED})


def losses(run):
    return [line["loss"] for line in run.metrics if line["kind"] == "train"]


def test_python_gives_the_numbers_of_the_same_config_to_the_bit(tmp_path):
    quick = {"train.epochs": 0.2, "train.log_every": 1, "data.batch_size": 64, "data.workers": 0}
    backbone = {"type": "TinyNet", "in_chans": 1, "norm": True, "bn_groups": 2}
    words = [f"{key}={json.dumps(value)}" for key, value in {**quick, "backbone": backbone}.items()]
    recipe = ["digits/moco_v2", "evaluations.knn=null", *words]
    assert main(["train", *recipe, "--out", str(tmp_path / "yaml")]) == 0
    views, clean = (
        {"ops": {**ops, "normalize": {"type": "Normalize", "mean": [0.305], "std": [0.376]}}}
        for ops in (
            {
                "crop": {"type": "RandomResizedCrop", "size": 8, "scale": [0.5, 1.0]},
                "jitter": {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "p": 0.8},
            },
            {},
        )
    )
    python = sz.train(
        method=partial(
            sz.methods.Contrastive,
            head=partial(sz.heads.MLP, out_features=64),
            memory=partial(sz.memory.MoCoQueue, size=1024, momentum=0.99),
            loss=partial(sz.losses.InfoNCE, temperature=0.2),
        ),
        backbone=partial(TinyNet, in_chans=1, norm=True, bn_groups=2),
        data={"dataset": Digits, "views": views, "clean": clean, "workers": 0},
        train={"log_every": 1},
        batch_size=64,
        epochs=0.2,
        out=tmp_path / "python",
        checkpoint={"every_epochs": 5},
    )
    yaml = sz.Run(tmp_path / "yaml")
    assert losses(python) == losses(yaml) and len(losses(yaml)) == 4
    ends = [torch.load(r.folder.checkpoints()[-1], weights_only=True) for r in (python, yaml)]
    assert all(torch.equal(x, ends[1]["method"][n]) for n, x in ends[0]["method"].items())
    assert python.folder.config() == yaml.folder.config()


def test_a_run_from_data_sets_and_a_module_is_judged(run):
    kinds = [line["kind"] for line in run.metrics]
    assert kinds.count("evaluation") == 1 and "train" in kinds
    assert run.result["steps"] == 3 and repr(run) == f"Run({str(run.path)!r})"
    again = run.evaluate("knn")
    assert again["metrics"] == run.result["evaluations"]["knn"]["metrics"]
    other = TensorDataset(IMAGES[:6], torch.tensor([0, 1, 0, 1, 0, 1]))
    assert run.evaluate("knn", train=other, test=other, k=3)["protocol"]["classes"] == 2
    with pytest.raises(ConfigError, match=r"no evaluation of this name.*\n.*'nn'"):
        run.evaluate("nn")


def test_other_images_with_the_same_labels_are_another_protocol(run):
    others = TensorDataset(IMAGES.flip(0), LABELS)
    own = run.evaluate("knn")["hash"]
    hashes = [run.evaluate("knn", train=x, test=x)["hash"] for x in (LABELED, LABELED, others)]
    assert own == hashes[0] == hashes[1] != hashes[2]
    # What is not given is the run's.
    assert run.evaluate("knn", test=LABELED)["metrics"] == run.evaluate("knn")["metrics"]


def test_two_evaluations_on_images_of_their_own_have_each_its_own(run, tmp_path):
    """Which nothing but Python tells apart. One color a class: rounding decides no neighbor."""
    colors = torch.eye(3)[LABELS].mul(255).to(torch.uint8)[..., None, None].expand(-1, 3, 8, 8)
    right, wrong = (TensorDataset(colors, labels) for labels in (LABELS, LABELS.roll(1)))
    found = trained(
        tmp_path / "run",
        data={"train": right, "test": right},
        evaluations={
            name: {
                "type": "KNN",
                "k": 1,
                "data": {"dataset": dataset_block({"train": x, "test": right})},
            }
            for name, x in (("same", right), ("rolled", wrong))
        },
    ).result["evaluations"]
    assert found["same"]["metrics"]["top1"] == 100 and found["rolled"]["metrics"]["top1"] == 0


def test_a_ready_evaluation_is_refused_as_its_results_could_not_name_its_arguments(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)evaluations.knn: a ready evaluation.*partial\(KNN"):
        trained(
            tmp_path / "run",
            data={"train": LABELED, "test": LABELED},
            evaluations={"knn": KNN(k=3)},
        )
    assert not (tmp_path / "run").exists()


def test_a_list_is_recorded_as_one_and_not_item_by_item(tmp_path):
    items = [(image, int(label)) for image, label in LABELED]
    written = trained(tmp_path / "run", data=items).folder.config_path.read_text()
    assert len(written) < 4000 and "collections.UserList" in written


def test_another_call_is_refused_in_the_folder(tmp_path):
    whole = trained(tmp_path, epochs=2)
    with pytest.raises(FileExistsError, match="resume=True in Python"):
        trained(tmp_path, epochs=2)
    with pytest.raises(FileExistsError, match=r"another config:\n  seed: 0 -> 1"):
        trained(tmp_path, epochs=2, seed=1)
    assert trained(tmp_path, epochs=2, resume=True).result == whole.result


def test_two_sittings_equal_one_to_the_bit(tmp_path):
    flat = {"schedules": {"optimizer.lr": {"type": "Constant"}}, "train": {"log_every": 1}}
    one = trained(tmp_path / "one", epochs=2, **flat)
    trained(tmp_path / "two", epochs=1, **flat)
    two = trained(tmp_path / "two", epochs=2, **flat, resume=True)
    assert losses(one) == losses(two) and len(losses(one)) == 6


def test_a_module_is_trained_as_a_copy_and_may_be_used_twice(tmp_path):
    head, before = nn.Linear(6, 4), NET.layer.weight.clone()
    first, second = (
        sz.train(
            out=tmp_path / name,
            method=partial(method(), head=head),
            backbone=NET,
            data=IMAGES.unbind(),
            size=8,
            epochs=1,
            batch_size=16,
        )
        for name in "ab"
    )
    assert torch.equal(NET.layer.weight, before)
    assert losses(first) == losses(second)
    assert not [line for line in first.metrics if line["kind"] != "train"]  # no labels


def test_features_are_those_that_were_judged(run):
    loaded = sz.load(run.path, backbone=Net())
    features = loaded.embed(IMAGES[:5], batch_size=2)
    state = torch.load(run.folder.checkpoints()[-1], weights_only=True)["method"]
    net = Net()
    net.load_state_dict({n[17:]: x for n, x in state.items() if n.startswith("encoder.backbone.")})
    mean, std = (
        torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        expected = net((IMAGES[:5] / 255 - mean) / std).numpy()
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert features.dtype == np.float32 and loaded.embed([]).shape == (0, 6)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(ConfigError, match="network: no such network"):
        sz.load(run.path, backbone=Net(), network="teacher")


def test_files_and_arrays_are_embedded_alike(run, tmp_path):
    loaded = sz.load(run.path, backbone=Net())
    array = IMAGES[3].permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "x.png")
    given = [tmp_path / "x.png", str(tmp_path / "x.png"), array, Image.fromarray(array), IMAGES[3]]
    features = loaded.embed(given)
    assert (features == features[0]).all()


def test_what_only_python_has_is_named_where_it_is_needed(run, capsys):
    with pytest.raises(ConfigError, match=r"(?s)backbone.type: a backbone .*given in Python.*Net"):
        sz.load(run.path)
    assert main(["evaluate", "knn", str(run.path)]) == 2
    assert main(["train", str(run.path / "config.yaml"), "--out", str(run.path), "--resume"]) == 2
    said = capsys.readouterr().err.split("error: ")[1:]
    assert len(said) == 2 and all("given in Python, which no file can name" in x for x in said)


def test_outside_of_a_run_random_numbers_and_threads_are_as_they_were(tmp_path):
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(tmp_path, train={"threads": threads + 1})
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads


def test_a_run_can_be_started_in_a_thread(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(trained(tmp_path)))
    thread.start()
    thread.join()
    assert done[0].result["steps"] == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"methods": 1}, "methods: no section of a config"),
        ({"views": "moco_v4"}, "no views of this name"),
        ({"views": {"ops": {}}}, "size: of views that go by a name"),
        ({"data": 5}, "not a map-style data set"),
        ({"data": {"train": IMAGES.unbind(), "val": LABELED}}, "data.val: no split of a data set"),
        ({"backbone": "resnet8"}, "timm knows no such model"),
        ({"backbone": nn.Linear(4, 2)}, "num_features"),
        ({"epochs": -1}, "^ssl_zoo.train: train.epochs: too small"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_written(tmp_path, changed, said):
    with pytest.raises(ConfigError, match=said):
        trained(tmp_path / "run", **changed)
    assert not RunFolder(tmp_path / "run").config()


def test_a_recipe_is_a_config_and_arguments_are_laid_over_it(tmp_path):
    run = sz.train(
        "digits/moco_v2",
        out=tmp_path,
        backbone=TinyNet(in_chans=1),
        method={"memory": {"type": "EndToEnd"}},
        epochs=0.1,
        evaluations={"knn": None},
    )
    written = run.folder.config()
    assert written["method"]["memory"]["type"] == "EndToEnd"
    assert written["method"]["head"]["out_features"] == 64 and written["evaluations"] == {}


def test_a_folder_of_pictures_is_enough(tmp_path):
    for number, image in enumerate(IMAGES[:16]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    run = trained(tmp_path / "runs", data=tmp_path, batch_size=8)
    assert run.folder.config()["data"]["dataset"]["type"] == "ImageFolder"
    assert run.result["steps"] == 2


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        trained(tmp_path / "runs", data=tmp_path / "nowhere")


def test_importing_the_package_imports_no_torch():
    code = "import sys, ssl_zoo as sz; assert 'train' in dir(sz); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        sz.fit  # noqa: B018
