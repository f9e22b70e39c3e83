"""Whether the images nearest to an image are of its class."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_zoo.config import EVALUATIONS, ConfigError, PositiveInt
from ssl_zoo.data import Splits
from ssl_zoo.evaluation.base import UNTRAINED, Evaluation, Outcome, Rows
from ssl_zoo.evaluation.features import Labeled, Precision, check_usable

SIMILARITIES_AT_ONCE = 2**24


def average_precision(similarity: Tensor, relevant: Tensor) -> Tensor:
    """AP of each query [q], of similarities [q, m] and which are relevant, [q, m] bool.

    The mean over the relevant of the precision at their rank. Images equally similar have one rank,
    the last of them, so that no order of theirs is made up.
    """
    similarity, order = similarity.sort(dim=1, descending=True)
    found = relevant.gather(1, order)  # [q, m]
    m = similarity.shape[1]
    place = torch.arange(m, device=similarity.device).expand_as(similarity)
    ends = similarity[:, :-1] != similarity[:, 1:]  # [q, m - 1], before one less similar
    rank = place.masked_fill(~F.pad(ends, (0, 1), value=True), m)
    rank = rank.flip(1).cummin(1).values.flip(1)  # [q, m], from 0: the last that is as similar
    precision = found.cumsum(1).gather(1, rank).double() / (rank + 1)
    return (precision * found).sum(1) / found.sum(1)


def first_rank(similarity: Tensor, relevant: Tensor) -> Tensor:
    """Rank, from 1, of each query's most similar relevant image, [q]; behind its equals."""
    best = similarity.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    return 1 + ((similarity >= best) & ~relevant).sum(1)


@EVALUATIONS.register_module()
class Retrieval(Evaluation):
    """Each test image asks for its like among all the other test images, by cosine similarity.

    'map' is the mean over queries of the average precision, and 'recall_K' the share of the queries
    with an image of their class among the K nearest (arXiv:1511.06452). An image that is
    the only one of its class is no query, and is among the images that others are shown.

    Args:
        ks: the numbers K.
        test_limit: test images used; null: all.
        precision: of the backbone's pass.
    """

    metric, given = "map", ("test",)
    baselines: ClassVar = {UNTRAINED: None}

    def __init__(
        self,
        *,
        ks: list[PositiveInt] = [1, 5, 10],  # noqa: B006
        test_limit: PositiveInt | None = None,
        precision: Precision = "fp32",
    ):
        self.ks = ks
        self.limits, self.precision = (None, test_limit), precision

    @staticmethod
    def validate(*, ks: list[int], **_) -> None:
        if not ks or len(set(ks)) < len(ks):
            expected = "at least one number, each once"
            raise ConfigError("ks", "no numbers of neighbors", found=str(ks), expected=expected)

    def check(self, splits: Splits) -> None:
        test = splits.split("test")
        check_usable("Retrieval", test_split=test)
        self._check_labels(test.labels[splits.chosen("test", self.limits[1])])

    def _check_labels(self, labels: Tensor) -> Tensor:
        """Which images are queries, [m] bool; ValueError if none is, or for a K beyond the rest."""
        if max(self.ks) > len(labels) - 1:
            others = f"{len(labels) - 1} others, of {len(labels)} test images"
            raise ValueError(f"Retrieval: the {max(self.ks)} nearest are asked of {others}")
        _, of, counts = labels.unique(return_inverse=True, return_counts=True)
        if not (counts > 1).any():
            problem = f"the {len(labels)} test images are of as many classes"
            raise ValueError(f"Retrieval: {problem}, so none has another of its class to find")
        return counts[of] > 1

    def judge(self, test: Labeled, device: torch.device | str = "cpu") -> Outcome:
        """In %; of each query the class of the nearest image and, as score, its average precision.

        Raises:
            ValueError: unknown labels, features that are not finite, no query, a K too large.
        """
        check_usable("Retrieval", test_split=test)
        queries = self._check_labels(test.labels).nonzero()[:, 0]  # [q]
        m = len(test.labels)
        x = F.normalize(test.features.float(), dim=1).to(device)
        y = test.labels.to(device)
        precisions, ranks, nearest = [], [], []
        for rows in queries.to(device).split(max(1, SIMILARITIES_AT_ONCE // m)):
            others = torch.arange(m, device=device) != rows[:, None]  # [b, m]
            similarity = (x[rows] @ x.T)[others].view(-1, m - 1)
            labels = y.expand(len(rows), m)[others].view(-1, m - 1)
            relevant = labels == y[rows, None]
            precisions.append(average_precision(similarity, relevant).cpu())
            ranks.append(first_rank(similarity, relevant).cpu())
            nearest.append(labels.gather(1, similarity.argmax(1, keepdim=True))[:, 0].cpu())
        precision, rank = torch.cat(precisions), torch.cat(ranks)
        recall = {f"recall_{k}": 100 * (rank <= k).float().mean().item() for k in self.ks}
        protocol = {
            "ks": self.ks,
            "queries": f"test split, clean views, {len(queries)} images",
            "among": f"the other {m - 1} test images",
            "alone in their class, no queries": m - len(queries),
            "normalized": True,
            "precision": self.precision,
        }
        index = torch.arange(m) if test.index is None else test.index
        asked = Labeled(test.features[queries], test.labels[queries], index[queries])
        rows = Rows.of(asked, torch.cat(nearest), precision)
        return Outcome({"map": 100 * precision.mean().item()} | recall, protocol, rows)
