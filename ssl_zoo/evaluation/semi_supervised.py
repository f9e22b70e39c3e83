"""Fine-tuning on the labels of a few images of the training split."""

import hashlib
import os
from typing import Any, ClassVar

import torch
from torch import Tensor

from ssl_zoo.config import (
    EVALUATIONS,
    ConfigError,
    HalfOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    OfMachine,
    Part,
    PositiveFloat,
    PositiveInt,
)
from ssl_zoo.data import ImageSet, Splits, Views
from ssl_zoo.data.files import some
from ssl_zoo.engine.optimizers import SGD
from ssl_zoo.engine.schedules import Cosine
from ssl_zoo.evaluation.base import UNTRAINED
from ssl_zoo.evaluation.classifier import Classifier, TrainedClassifier, Tuned, check_lrs
from ssl_zoo.evaluation.features import Precision
from ssl_zoo.evaluation.few_shot import draw
from ssl_zoo.evaluation.linear import Share
from ssl_zoo.system.files import user_path


def listed(file: str | os.PathLike, dataset: ImageSet) -> Tensor:
    """Positions of the images that a text file names, one a line, in their order in the data set.

    By what `ImageSet.names` calls them, or by its last part, a file's name alone: so ImageNet's
    1percent.txt and 10percent.txt of arXiv:2002.05709 name them.

    Raises:
        ValueError: no such file, no names in it, or one that no image or more than one has.
    """
    path = user_path(file)
    try:
        text = os.fsdecode(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    found: dict[str, list[int]] = {line.strip(): [] for line in text.split("\n") if line.strip()}
    if not found:
        raise ValueError(f"{path}: no names of images in it; expected one a line")
    for position, name in enumerate(dataset.names(torch.arange(len(dataset)))):
        for said in {name, os.path.basename(name)} & found.keys():
            found[said].append(position)
    for wrong, problem in (
        ([name for name, of in found.items() if not of], "are not among the training images"),
        ([name for name, of in found.items() if len(of) > 1], "are each of several images"),
    ):
        if wrong:
            names = f"{len(wrong)} of the {len(found)} names {problem}: {some(wrong)}"
            raise ValueError(f"{path}: {names}")
    return torch.tensor([of[0] for of in found.values()]).unique()


def part_of_each(labels: Tensor, share: float, seed: int) -> Tensor:
    """Positions of a share of each class, at least one image, drawn by `seed`; in order."""
    counts = labels.unique(return_counts=True)[1]
    few = (share * counts).round().long().clamp(min=1)
    return draw(labels, few, seed, "semi-supervised").sort().values


@EVALUATIONS.register_module()
class SemiSupervised(TrainedClassifier):
    """All weights of a copy, fine-tuned on a few labeled training images (arXiv:2002.05709).

    As in appendix B.5 there: SGD with Nesterov's momentum, without weight decay or a warm-up, an lr
    of 0.05 for a batch of 256. It falls along half a cosine.

    Args:
        share: of the images of each class, drawn by `seed`, at least one; 0.01 is 1%.
        file: in its place the names of the images, one a line; the hash covers which these are.
        lrs: one, or several of which a held-out part of these images selects.
        epochs: there 60 with 1%, 30 with 10%.
        batch_size: all the images, where they are fewer.
        held_out: this fraction of the labeled images selects lr, if there are several.
        views: of the labeled images; null: random crops of the clean images' size, and flips, then
            what the clean view does with colors.
        test_limit: test images used; null: all.
        precision: of all passes.
    """

    baselines: ClassVar = {UNTRAINED: None}
    kind = Tuned
    drop_last = True

    def __init__(
        self,
        *,
        share: Share | None = None,
        file: OfMachine[str | None] = None,
        lrs: list[PositiveFloat] = [0.05],  # noqa: B006
        epochs: PositiveFloat = 60.0,
        batch_size: PositiveInt = 256,
        momentum: HalfOpenUnitInterval = 0.9,
        weight_decay: NonNegativeFloat = 0.0,
        held_out: Share = 0.1,
        seed: NonNegativeInt = 0,
        views: Part[Views] | None = None,
        test_limit: PositiveInt | None = None,
        precision: Precision = "fp32",
    ):
        self.share, self.file, self.seed = share, file, seed
        self.momentum, self.weight_decay = momentum, weight_decay
        super().__init__(
            lrs,
            Cosine(),
            held_out=held_out,
            epochs=epochs,
            batch_size=batch_size,
            views=views,
            limits=(None, test_limit),
            precision=precision,
        )

    @staticmethod
    def validate(*, share: float | None, file: str | None, lrs: list[float], **_) -> None:
        check_lrs(lrs)
        if (share is None) == (file is None):
            found = "neither" if share is None else "both"
            expected = "one of share=0.01 (1% of each class) and file=1percent.txt"
            raise ConfigError("share", "which images?", found=found, expected=expected)

    def images(self, splits: Splits) -> Tensor:
        train = splits.split("train")
        if self.file is not None:
            return listed(self.file, train)
        return part_of_each(train.labels, self.share, self.seed)

    def depends_on(self, splits: Splits) -> dict[str, Any]:
        listed = {} if self.file is None else {"listed": self._digest(splits)}
        return super().depends_on(splits) | listed

    def _digest(self, splits: Splits) -> str:
        names = splits.split("train").names(self.images(splits))
        return hashlib.sha256("\n".join(names).encode(errors="replace")).hexdigest()[:12]

    def optimizer(self, classifier: Classifier, lr: float) -> torch.optim.Optimizer:
        settings = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        return SGD(classifier, lr=lr, nesterov=self.momentum > 0, **settings)

    def recipe(self) -> dict[str, Any]:
        by_share = f"{self.share:.3g} of each class, drawn by seed {self.seed}"
        by_file = f"listed in {os.path.basename(self.file)}" if self.file else ""
        decay = f"weight decay {self.weight_decay:g}"
        return {
            "trained": "all weights of a copy",
            "labeled": by_file or by_share,
            "optimizer": f"SGD, Nesterov's momentum {self.momentum:g}, {decay}",
            "schedule": "cosine",
        }
