"""What every data set must do."""

import math
import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from ssl_zoo import config, experiment
from ssl_zoo.config import DATASETS, Part
from ssl_zoo.data import ImageSet
from ssl_zoo.data.source import Split
from ssl_zoo.runs import RunFolder
from ssl_zoo.testing.check import Check, each, part_of
from ssl_zoo.testing.methods import CPU
from ssl_zoo.testing.tiny import TinyNet

LOOKED_AT = 16  # images of a split, evenly spaced
SPLITS: tuple[str, ...] = get_args(Split)


def dataset_checks(dataset: Part | type[ImageSet] | Callable[..., ImageSet]) -> list[Check]:
    """Checks of a data set: a class, or `functools.partial(MyImages, root="...")`."""
    part, name = part_of(DATASETS, dataset)
    return each(CHECKS, part, name)


@lru_cache(maxsize=len(SPLITS))  # some take seconds
def built(dataset: Part, split: str) -> ImageSet:
    return dataset(split=split)


def some(images: ImageSet) -> Tensor:
    """Positions [n], the last one first."""
    count = min(LOOKED_AT, len(images))
    return (torch.arange(count) * len(images) // count).flip(0)


def fetched(images: ImageSet, index: Tensor) -> list[Tensor]:
    return list(images.fetch(index))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def it_has_its_splits_and_no_other(dataset: Part, folder: Path) -> None:
    for split in SPLITS:
        assert len(built(dataset, split)) > 0, f"{split} is empty"
    try:
        dataset(split="no such split")
    except ValueError:
        return
    raise AssertionError("a split of another name is no ValueError")


def labels_are_classes_or_unknown(dataset: Part, folder: Path) -> None:
    for split in SPLITS:
        images = built(dataset, split)
        labels, classes = images.labels, images.num_classes
        assert labels.dtype == torch.int64, f"labels of {split} are {labels.dtype}, not int64"
        assert labels.shape == (len(images),), f"{split}: {list(labels.shape)} labels"
        wrong = labels[(labels < -1) | (labels >= classes)].unique().tolist()
        assert not wrong, f"labels of {split}: {wrong}, expected below {classes}, or -1"
        if images.classes is not None:
            assert len(images.classes) == classes, f"{len(images.classes)} names, {classes} classes"


def images_are_bytes_of_one_number_of_channels(dataset: Part, folder: Path) -> None:
    channels = set()
    for split in SPLITS:
        images = built(dataset, split)
        found = fetched(images, some(images))
        assert len(found) == len(some(images)), f"{len(found)} images of {len(some(images))}"
        kinds = {(image.dtype, image.ndim) for image in found}
        assert kinds == {(torch.uint8, 3)}, f"{split}: {kinds}, expected uint8 [C, H, W]"
        shapes = {tuple(image.shape) for image in found}
        assert images.varies or len(shapes) == 1, f"`varies` is False, and {split} has {shapes}"
        channels |= {shape[0] for shape in shapes}
    assert len(channels) == 1, f"images of {' and '.join(map(str, sorted(channels)))} channels"


def an_image_is_the_same_whenever_it_is_fetched(dataset: Part, folder: Path) -> None:
    for split in SPLITS:
        images, again = built(dataset, split), dataset(split=split)
        index = some(images)
        found = fetched(images, index)
        twice = fetched(images, torch.cat([index, index[:1]]))
        assert same(twice, [*found, found[0]]), f"{split}: another image the second time"
        alone = fetched(images, index[-1:])
        assert same(alone, found[-1:]), f"{split}: image {index[-1]} depends on what is beside it"
        assert same(fetched(again, index), found), f"{split}: built again it has other images"
        assert torch.equal(images.labels, again.labels), f"{split}: built again, other labels"


def images_are_known_by_name_and_size(dataset: Part, folder: Path) -> None:
    for split in SPLITS:
        images, again = built(dataset, split), dataset(split=split)
        names, sizes = images.names(some(images)), images.file_sizes(some(images))
        assert len(names) == len(sizes) == len(some(images)), f"{split}: a name and size of each"
        assert len(set(names)) == len(names), f"{split}: two images of one name"
        assert torch.equal(images.fingerprint, again.fingerprint), f"{split}: another fingerprint"


def it_goes_to_other_processes(dataset: Part, folder: Path) -> None:
    for split in SPLITS:
        images = built(dataset, split)
        there: ImageSet = pickle.loads(pickle.dumps(images))
        index = some(images)
        assert same(fetched(there, index), fetched(images, index)), f"{split}: other images there"


def a_run_trains_on_it(dataset: Part, folder: Path) -> None:
    """Two steps, of images that a process of its own reads, and an evaluation of nothing."""
    images = built(dataset, "pretrain")
    channels = len(fetched(images, some(images)[:1])[0])
    middle = [0.5] * channels
    normalize = {"type": "Normalize", "mean": middle, "std": middle}
    crop, whole = ({"type": kind, "size": 16} for kind in ("RandomResizedCrop", "Resize"))
    size = math.ceil(len(images) / 2)
    data = {
        "dataset": dataset,
        "views": {"ops": {"crop": crop, "normalize": normalize}},
        "clean": {"ops": {"resize": whole, "center": {"type": "CenterCrop", "size": 16}}},
        "batch_size": min(size, LOOKED_AT),
        "workers": 1,
    }
    data["clean"]["ops"]["normalize"] = normalize
    run = {
        "data": data,
        "backbone": {"type": TinyNet.__name__, "in_chans": channels},
        "method": {"type": "Rotation"},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "train": {"epochs": 1, "precision": "fp32"},
    }
    trainer = experiment.build_trainer(config.Config(run), CPU, RunFolder(folder))
    trainer.console.quiet, trainer.total_steps = True, 2
    trainer.fit()
    for split in ("train", "test"):
        clean, label, _ = next(trainer.data.splits.clean_batches(split, CPU, LOOKED_AT))
        assert len(clean) == len(label) > 0


CHECKS = (
    it_has_its_splits_and_no_other,
    labels_are_classes_or_unknown,
    images_are_bytes_of_one_number_of_channels,
    an_image_is_the_same_whenever_it_is_fetched,
    images_are_known_by_name_and_size,
    it_goes_to_other_processes,
    a_run_trains_on_it,
)
