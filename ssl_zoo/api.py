"""From Python, without a YAML file: `train` a run, `load` what it has learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_zoo import config as configs
from ssl_zoo.config import Config, ConfigError, Part
from ssl_zoo.data import Data
from ssl_zoo.data.given import (
    PRESETS,
    PUBLISHED,
    as_bytes,
    dataset_block,
    given_images,
    preset,
    shows_whole,
)
from ssl_zoo.data.image import Views, decode
from ssl_zoo.data.image.decode import AS_USUAL, Decoding
from ssl_zoo.engine.stop import Interrupted
from ssl_zoo.experiment import load_subject, run_splits, train_into, whole_run
from ssl_zoo.runs import RunFolder
from ssl_zoo.system import distributed
from ssl_zoo.system.hardware import kept_threads
from ssl_zoo.system.rng import kept_random_state
from ssl_zoo.weights.as_subject import subject_of

SECTIONS = tuple(configs.signature(whole_run)[1])
# What a call without a config starts from: MoCo's optimizer and batch (arXiv:1911.05722), a cosine.
USUAL = {
    "data": {"batch_size": 256},
    "optimizer": {"type": "SGD", "lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4},
    "schedules": {"optimizer.lr": {"type": "Cosine"}},
    "train": {"lr_reference_batch": 256},
}


def train(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    data: Any = None,
    backbone: Any = None,
    views: Any = None,
    size: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    resume: bool = False,
    device: str = "auto",
    **sections: Any,
) -> Run:
    """Trains into the folder `out`; the numbers are those of `ssl-zoo train`, to the bit.

    Each section of a config is a keyword: `method`, `optimizer`, `schedules`, `train`,
    `evaluations`, `seed` and so on. Its value is what stands in YAML (a mapping, a number), or a
    class, a `functools.partial` of one, a function, or a ready object.

    Args:
        config: a file, a recipe's name, or a mapping, over which the other arguments are laid;
            without one, over `USUAL`.
        data: a section; or a folder of images; or a torch data set of images or (image, label); or
            {'train': data set, 'test': data set}; then kNN (k 20) judges each epoch, if no config
            says otherwise.
        backbone: a section; a timm model's name; or any module [N, C, H, W] -> [N, F] with an
            attribute `num_features`, F.
        views: a section; or the name of a preset, see `data.given.PRESETS`, which makes the clean
            view as well. Without a config: moco_v2.
        size: pixels of the views that a name stands for; None: 224.
        epochs, batch_size: `train.epochs` and `data.batch_size`.
        resume: go on from the newest checkpoint in `out`, if there is one.

    Raises:
        ConfigError: what was given does not go together, before anything is read.
        FileExistsError: `out` holds another run, or this one and `resume` is False.
        Interrupted: Ctrl-C; the run is saved.
    """
    for name in sections:
        if name not in SECTIONS:
            raise configs.not_among(name, "no section of a config", name, SECTIONS)
    if isinstance(backbone, str):
        backbone = {"type": "Timm", "name": backbone}
    whole = _laid_over(config, {**sections, "backbone": backbone}, data, views, size)
    _lay(whole, {"train.epochs": epochs, "data.batch_size": batch_size})
    try:
        with kept_threads(), kept_random_state(distributed.start(device)):
            train_into(RunFolder(out), whole, device, resume)
    except Interrupted as stop:
        raise Interrupted(f"{stop}\nThe same call with resume=True goes on from there.") from None
    return Run(out, whole.data)


def _laid_over(
    config: str | Path | Mapping[str, Any] | None,
    sections: Mapping[str, Any],
    data: Any,
    views: Any,
    size: int | None,
) -> Config:
    """A config of plain values and Python's parts; the arguments are those of `train`."""
    if config is not None and not isinstance(config, Mapping):
        whole = configs.load(config)
    else:
        first = USUAL if config is None else config
        whole = Config({n: dict(v) if isinstance(v, Mapping) else v for n, v in first.items()})
    block = {} if data is None else {"dataset": data}
    if isinstance(data, Mapping) and set(data) & set(configs.signature(Data)[1]):
        block = dict(data)
    # Images may be many: they go past what is merged, which is copied.
    dataset = dataset_block(block.pop("dataset")) if "dataset" in block else None
    if config is None:
        views = "moco_v2" if views is None else views
        if isinstance(dataset, Part) and {"train", "test"} <= set(dataset.kwargs.get("splits", ())):
            whole.data["evaluations"] = {"knn": {"type": "KNN", "k": 20, "every_epochs": 1}}
    if isinstance(views, str):
        size = PUBLISHED if size is None else size
        random, clean = preset(views, size, shows_whole(dataset, size))
        block = {"views": random, "clean": clean} | block
    elif size is not None:
        expected = f"views={' or '.join(map(repr, sorted(PRESETS)))}"
        raise ConfigError("size", "of views that go by a name", found=str(size), expected=expected)
    elif views is not None:
        block["views"] = views
    given = {**sections, "data": block or None}
    _lay(whole, given)
    if dataset is not None:
        whole.data["data"]["dataset"] = dataset
    return whole


def _lay(whole: Config, given: Mapping[str, Any]) -> None:
    """Sets keys of a config in place, but those that are None; errors say whose they are."""
    set_here = {key: value for key, value in given.items() if value is not None}
    configs.override(whole, set_here.items())
    whole.origins |= dict.fromkeys(set_here, "ssl_zoo.train")


class Run:
    """A run's folder, from Python.

    Args:
        path: of the folder.
        given: sections of its config that no file can name, as `train` was given them.
    """

    def __init__(self, path: str | Path, given: Mapping[str, Any] | None = None):
        self.folder, self.given = RunFolder(path), dict(given or {})
        self.path = self.folder.path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl, a dict each; `kind` is train, evaluation or baseline."""
        return self.folder.metrics()

    @property
    def result(self) -> dict[str, Any]:
        """What it ended with; {} before its end."""
        return self.folder.result()

    def evaluate(
        self, name: str, *, train: Any = None, test: Any = None, device: str = "auto", **keys: Any
    ) -> dict[str, Any]:
        """The newest checkpoint's network, judged: metrics, unit and the protocol they are of.

        Args:
            name: an evaluation of the run's config, or the type of a registered one: knn, linear.
            train, test: data sets of (image, label); None: the run's.
            keys: of the evaluation's block, `k=20`.
        """
        on = distributed.start(device)
        with kept_random_state(on):
            subject = load_subject(self.path, on, self.given)
            parts = subject.parts(name, list(keys.items()))
            given = {"train": train, "test": test}
            if splits := {n: x for n, x in given.items() if x is not None}:
                for missing in given.keys() - splits:
                    splits[missing] = run_splits(subject.sections).split(missing)
                subject.judge_on(Part(given_images, splits=splits), parts)
            [(_, result, _)] = subject.evaluate(parts, on)
        return result


class Embedder(nn.Module):
    """A trained backbone in evaluation mode, with the clean view that it was judged on.

    Attributes:
        backbone: images [N, C, H, W] after `transform` -> features [N, F].
        channels: C, that the backbone takes; 3 where it does not say.
        about: where it is from: the file's `path`, the `network` in it, the view as `clean`; plain
            values.
        decoding: what of a file becomes pixels: of `Decoding` what the run's folder of images has
            otherwise than usual, `exif` and `background`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        clean: Views,
        about: Mapping[str, Any],
        decoding: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.backbone, self.clean, self.about = backbone, clean, dict(about)
        self.num_features: int = backbone.num_features
        self.channels: int = getattr(backbone, "in_chans", 3)
        told = {key: tuple(x) if isinstance(x, list) else x for key, x in (decoding or {}).items()}
        self.decoding = Decoding(self.channels, **told)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def transform(self, image: Any) -> Tensor:
        """A file, PIL image, array or tensor (see `as_bytes`) -> float32 [C, H, W]."""
        if isinstance(image, str | Path):
            pixels = decode.pixels(str(image), how=self.decoding)
        else:
            pixels = as_bytes(image, self.channels)
        brings_to_one_size = any(op.one_size for _, op in self.clean.ops_of(0))
        images = [pixels] if brings_to_one_size else pixels[None]
        return self.clean(images, 0, 0, torch.zeros(1, dtype=torch.int64))[0][0]

    @torch.inference_mode()
    def embed(self, images: Iterable[Any], batch_size: int = 64) -> np.ndarray:
        """Features [n, F], float32, of what `transform` takes."""
        device, found = next(self.parameters()).device, [torch.empty(0, self.num_features)]
        images = iter(images)
        while batch := [self.transform(image) for image in islice(images, batch_size)]:
            found.append(self(torch.stack(batch).to(device)).float().cpu())
        return torch.cat(found).numpy()


def load(
    path: str | Path,
    *,
    network: str | None = None,
    backbone: Any = None,
    device: str = "auto",
) -> Embedder:
    """What a run has learned, or what was imported.

    Args:
        path: a run's folder (its newest checkpoint), a checkpoint, or a file of weights that
            `ssl-zoo import` or `ssl-zoo export --to safetensors` wrote.
        network: one of the method's `networks`; None: the one that its paper evaluates.
        backbone: where the run was given one that no file can name, the same once more.

    Raises:
        ConfigError: no such network, or one that was given in Python.
        FileNotFoundError: there is no checkpoint.
    """
    on = distributed.start(device)
    given = {} if backbone is None else {"backbone": backbone}
    with kept_random_state(on):
        subject = subject_of(Path(path), on, given)
    name = subject.named(network)
    splits = run_splits(subject.sections)
    clean = splits.blocks["clean"].spelled_out(machine=False)
    of_folder = splits.blocks["dataset"].kwargs
    asked = {key: of_folder[key] for key in ("exif", "background") if key in of_folder}
    asked = {key: list(x) if isinstance(x, tuple) else x for key, x in asked.items()}
    decoding = {key: x for key, x in asked.items() if x != getattr(AS_USUAL, key)}
    clean |= {"decoding": decoding} if decoding else {}
    about = {"path": str(subject.path.resolve()), "network": name, "clean": clean}
    return Embedder(subject.networks[name], splits.clean, about, decoding)
