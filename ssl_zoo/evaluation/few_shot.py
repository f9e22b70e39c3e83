"""Classifiers learned from a few labeled images of each class."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.config import EVALUATIONS, AtLeastTwo, NonNegativeInt, PositiveFloat, PositiveInt
from ssl_zoo.data import Splits
from ssl_zoo.evaluation.base import UNTRAINED, Evaluation, Outcome, Rows
from ssl_zoo.evaluation.features import Labeled, Precision, check_usable
from ssl_zoo.evaluation.linear import standardized
from ssl_zoo.system import rng

CONFIDENCE = 0.95


def classifiers(cost: float, svm: bool, seed: int) -> dict[str, Callable[[], Any]]:
    """Makers of scikit-learn's classifiers by name; ImportError where it is not installed."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC
    except ImportError as error:
        needs = "FewShot's classifiers are scikit-learn's: pip install scikit-learn"
        raise ImportError(needs) from error
    makers: dict[str, Callable[[], Any]] = {
        "logistic": lambda: LogisticRegression(C=cost, max_iter=1000)
    }
    if svm:
        makers["svm"] = lambda: LinearSVC(C=cost, random_state=seed, max_iter=10000)
    return makers


def draw(labels: Tensor, counts: Tensor, *key: int | str) -> Tensor:
    """Positions of so many images of each class, drawn by `key`, class by class.

    `counts` [C] is by the classes that have any, in their order, and no more than they have.
    """
    order = rng.permutation(len(labels), *key)
    by_class = order[labels[order].argsort(stable=True)]
    there = labels.unique(return_counts=True)[1]  # [C]
    first = (there.cumsum(0) - there).repeat_interleave(there)  # where each one's class begins
    kept = torch.arange(len(labels)) - first < counts.repeat_interleave(there)
    return by_class[kept]


def interval(values: list[float]) -> tuple[float, float]:
    """Of the mean over draws, by Student's t: [low, high], at CONFIDENCE."""
    from scipy import stats  # not at the top, as in `clusters`

    mean, error = np.mean(values), stats.sem(values)
    margin = error * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(mean - margin), float(mean + margin)


@EVALUATIONS.register_module()
class FewShot(Evaluation):
    """Logistic regression and a linear SVM on k labeled images of each class (arXiv:1905.01235).

    Several draws of these, each scored on the whole test split. Features are brought to mean 0 and
    variance 1 over the training split, without labels.

    Args:
        k: images of a class.
        draws: of the images, by `seed`; the same for every network.
        cost: scikit-learn's C, the inverse of the regularization.
        svm: train them too. They are one against all: of hundreds of classes they take minutes.
        train_limit, test_limit: images used of the split; null: all.
        precision: of the backbone's pass.
    """

    metric = "logistic"
    baselines: ClassVar = {UNTRAINED: None}

    def __init__(
        self,
        *,
        k: PositiveInt = 5,
        draws: AtLeastTwo = 5,
        cost: PositiveFloat = 1.0,
        svm: bool = True,
        seed: NonNegativeInt = 0,
        train_limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
        precision: Precision = "fp32",
    ):
        self.k, self.draws, self.cost, self.svm, self.seed = k, draws, cost, svm, seed
        self.limits, self.precision = (train_limit, test_limit), precision

    def check(self, splits: Splits) -> None:
        train = splits.split("train")
        check_usable("FewShot", train_split=train, test_split=splits.split("test"))
        self._check_labels(train.labels[splits.chosen("train", self.limits[0])], train.classes)
        classifiers(self.cost, self.svm, self.seed)

    def _check_labels(self, labels: Tensor, names: list[str] | None = None) -> None:
        """Raises ValueError unless there are two classes, and k images of each that has any."""
        classes, counts = labels.unique(return_counts=True)
        if len(classes) < 2:
            found = f"the {len(labels)} training images are of {len(classes)}"
            raise ValueError(f"FewShot tells classes apart, and {found}")
        least = int(counts.argmin())
        if counts[least] < self.k:
            number = int(classes[least])
            name = f"{number} ({names[number]})" if names else number
            problem = f"k = {self.k} training images of each class asked"
            raise ValueError(f"FewShot: {problem}, class {name} has {int(counts[least])}")

    def judge(self, train: Labeled, test: Labeled, device: torch.device | str = "cpu") -> Outcome:
        """'logistic' and, if asked for, 'svm', the mean top-1 in % over draws.

        As details each draw's, and an 'interval' of the mean at 95%.

        The rows are of logistic regression: what most draws say of a test image, and as score the
        share of the draws that are right, whose mean over the images is the metric. A class that
        has no training image is never said.

        Raises:
            ValueError: unknown labels, features that are not finite, too few images of a class.
        """
        check_usable("FewShot", train_split=train, test_split=test)
        self._check_labels(train.labels)
        x, inputs = (part.numpy() for part in standardized(train.features, test.features))
        few = torch.full_like(train.labels.unique(), self.k)  # [C]
        said: dict[str, list[Tensor]] = {}
        for number in range(self.draws):
            chosen = draw(train.labels, few, self.seed, "few shot", number).numpy()
            for name, make in classifiers(self.cost, self.svm, self.seed).items():
                model = make().fit(x[chosen], train.labels.numpy()[chosen])
                said.setdefault(name, []).append(torch.from_numpy(model.predict(inputs)))
        right = {name: torch.stack(of) == test.labels for name, of in said.items()}  # [draws, m]
        scores = {name: (100 * of.double().mean(1)).tolist() for name, of in right.items()}
        intervals = {name: interval(values) for name, values in scores.items()}
        protocol = {
            "k": self.k,
            "draws": self.draws,
            "cost": self.cost,
            "seed": self.seed,
            "classes": len(few),
            "standardized": True,
            "train": f"drawn from {len(x)} images, clean views",
            "test": f"{len(inputs)} images, clean views",
            "precision": self.precision,
        }
        prediction = torch.stack(said["logistic"]).mode(0).values
        rows = Rows.of(test, prediction, right["logistic"].float().mean(0))
        remarks = tuple(
            f"{name}: {self.draws} draws, 95% of their mean: {low:.2f}% to {high:.2f}%"
            for name, (low, high) in intervals.items()
        )
        metrics = {name: float(np.mean(values)) for name, values in scores.items()}
        return Outcome(metrics, protocol, rows, {"draws": scores, "interval": intervals}, remarks)
