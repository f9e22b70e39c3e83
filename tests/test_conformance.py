"""What every registered part must do: a part is tested by being registered.

A method by its configs in configs/fashion_mnist, or configs/cifar10 for those that need color.
"""

import re
from functools import partial

import pytest

from ssl_zoo import config, evaluation, testing
from ssl_zoo.backbones import FITS
from ssl_zoo.config import DATASETS, EVALUATIONS, MEMORY, METHODS
from ssl_zoo.memory import EndToEnd, MemoryBank, MoCoQueue
from ssl_zoo.memory.mochi import MoCHi
from ssl_zoo.testing.methods import resolved

# Numbers that do not go with a set of 96 images, a batch of 7 or a ViT of two blocks.
SMALLER: dict[str, list[str]] = {
    "Colorization": ["method.hidden_features=16"],
    "DeepCluster": ["method.clusters=8", "method.pca=4"],
    "DeepClusterV2": ["method.clusters=[8, 9, 10]"],
    "Jigsaw": ["data.dataset.size=28"],  # it cuts its views itself
    "ODC": ["method.clusters=8", "method.min_cluster=4", "method.centroid_interval=2"],
    "RelativeLocation": ["data.dataset.size=28"],
    "SwAV": ["method.queue_size=8", "method.queue_from_step=0", "method.frozen_steps=0"],
    "WMSE": ["method.part=4", "method.head.out_features=2"],
}
# Arguments without which a scheduled number would have nothing to do.
IN_USE: dict[str, list[str]] = {"DINOv2": ["method.centering=mean"]}
# Of the same kinds of parts as another one, with other numbers.
TWICE = {"fashion_mnist/demo", "fashion_mnist/rotation_small"}


def recipes() -> dict[str, str]:
    """The method's type by recipe; of cifar10 those of methods that fashion_mnist lacks."""
    found: dict[str, str] = {}
    for folder in ("fashion_mnist", "cifar10"):
        names = [n for n in config.recipes() if n.startswith(f"{folder}/") and n not in TWICE]
        types = {name: resolved(name)["method"]["type"] for name in names}
        found |= {n: kind for n, kind in types.items() if kind not in set(found.values())}
    return found


RECIPES = recipes()
MEMORIES = [
    partial(MoCoQueue, size=20, momentum=0.9),
    partial(MemoryBank, num_negatives=24),
    EndToEnd,
    partial(EndToEnd, same_view_negatives=True),
    partial(MoCHi, size=20, momentum=0.9, hardest=6, mix_negatives=4, mix_query=3),
]
JUDGES = {
    "KNN": partial(evaluation.KNN, k=5),
    "Linear": partial(evaluation.Linear, epochs=2),
    "FewShot": partial(evaluation.FewShot, k=2, draws=2),
    "LinearLayers": partial(evaluation.LinearLayers, epochs=2),
    "LinearAugmented": partial(evaluation.LinearAugmented, epochs=2, milestones=[1]),
    "FineTune": partial(evaluation.FineTune, lrs=[1e-3], layer_decay=1, epochs=1, warmup_epochs=0),
    "SemiSupervised": partial(evaluation.SemiSupervised, share=0.3, epochs=1),
}
# Each process's BatchNorm normalizes its own share of the batches that are trained on.
BY_PROCESS = {"FineTune", "SemiSupervised"}
NEED_FILES = {"CIFAR10", "CIFAR100", "FashionMNIST", "ImageFolder", "ImageNet", "Packed", "STL10"}
NEED_FILES |= {"Textures"}
NEED_FILES |= {"Transfer"}  # pictures with annotations, see test_transfer_evaluation.py


def ours(registry: config.Registry) -> dict:
    """What a test has registered by then is left out."""
    kinds = registry.module_dict.items()
    return {name: kind for name, kind in kinds if kind.__module__.startswith("ssl_zoo.")}


def of_recipe(name: str) -> list[testing.Check]:
    kind = RECIPES[name]
    return testing.method_checks(name, SMALLER.get(kind, ()), IN_USE.get(kind, ()))


@pytest.mark.parametrize("check", [c for name in RECIPES for c in of_recipe(name)], ids=str)
def test_method(check):
    check()


@pytest.mark.parametrize("name", sorted(ours(METHODS)))
def test_a_method_cites_its_paper_and_has_a_config(name):
    kind = ours(METHODS)[name]
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", kind.__doc__)
    assert kind.needs in FITS
    assert name in RECIPES.values(), f"no config of fashion_mnist or cifar10 has type: {name}"


def memories() -> list:
    """In sizes that fit 64 images, and those that came since with their defaults."""
    known = {getattr(memory, "func", memory) for memory in MEMORIES}
    return [*MEMORIES, *(kind for kind in ours(MEMORY).values() if kind not in known)]


@pytest.mark.parametrize(
    "check", [c for memory in memories() for c in testing.memory_checks(memory)], ids=str
)
def test_memory(check):
    check()


@pytest.mark.parametrize(
    "check",
    [
        check
        for name, kind in ours(EVALUATIONS).items()
        if name not in NEED_FILES
        for check in testing.evaluation_checks(JUDGES.get(name, kind))
        if not (name in BY_PROCESS and "on_one_process_and_on_two" in str(check))
    ],
    ids=str,
)
def test_evaluation(check):
    check()


@pytest.mark.parametrize(
    "check",
    [
        check
        for name, kind in ours(DATASETS).items()
        if name not in NEED_FILES
        for check in testing.dataset_checks(kind)
    ],
    ids=str,
)
def test_dataset(check):
    check()
