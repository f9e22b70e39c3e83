"""k-means, retrieval and few-shot classifiers against scikit-learn, and what cannot be judged."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from test_knn import clusters

from ssl_zoo.config import ConfigError
from ssl_zoo.evaluation import clusters as k_means
from ssl_zoo.evaluation import few_shot, knn, retrieval
from ssl_zoo.evaluation.clusters import KMeans
from ssl_zoo.evaluation.features import Labeled
from ssl_zoo.evaluation.few_shot import FewShot
from ssl_zoo.evaluation.knn import KNN
from ssl_zoo.evaluation.linear import Linear
from ssl_zoo.evaluation.retrieval import Retrieval


def splits_of(train=(), test=()):
    """Splits of these labels, for `check`."""
    sets = {"train": train, "test": test}
    sets = {
        name: SimpleNamespace(labels=torch.tensor(labels), classes=["a", "b", "c", "d"])
        for name, labels in sets.items()
    }
    return SimpleNamespace(
        split=sets.get, chosen=lambda name, limit: torch.arange(len(sets[name].labels))[:limit]
    )


def rows_of(labels, features=None):
    labels = torch.tensor(labels)
    return Labeled(torch.eye(len(labels)) if features is None else features, labels)


# k-means.


@pytest.mark.parametrize("number", [None, 4, 15])
def test_agreement_is_scikit_learns(number):
    x = clusters(300, noise=2.0)
    x = Labeled(x.features, 3 * x.labels)  # gaps in the labels
    found = KMeans(clusters=number, starts=2).judge(x)
    features = torch.nn.functional.normalize(x.features)
    assigned, _ = k_means.euclidean_kmeans(features, number or 10, 50, 0, 2)
    y = x.labels.numpy()
    nmi = metrics.normalized_mutual_info_score(y, assigned, average_method="geometric")
    assert found.metrics["nmi"] == pytest.approx(100 * nmi, abs=1e-3)
    ari = metrics.adjusted_rand_score(y, assigned)
    assert found.metrics["ari"] == pytest.approx(100 * ari, abs=1e-6)
    hits = 100 * (found.rows.prediction == found.rows.label).float().mean()
    assert found.metrics["top1"] == pytest.approx(float(hits)) and 20 < hits < 99
    said = set(found.rows.prediction.tolist())
    assert said <= {-1, *y.tolist()} and (-1 in said) == (number == 15)


def test_matching_is_the_best_of_all():
    counts = torch.tensor([[5, 9, 0], [0, 8, 1], [7, 2, 6]])
    # 9 and 7 would be taken first, and leave 1: 17; the best is 5 + 8 + 6.
    assert k_means.matched_classes(counts).tolist() == [0, 1, 2]


@pytest.mark.parametrize("a, b", [([0, 0, 0], [0, 0, 0]), ([0, 1, 2], [2, 0, 1]), ([0, 0], [0, 1])])
def test_the_rand_index_of_trivial_labelings_is_scikit_learns(a, b):
    counts = torch.from_numpy(metrics.cluster.contingency_matrix(a, b))
    assert k_means.adjusted_rand(counts) == metrics.adjusted_rand_score(a, b)


def test_clusters_of_one_image_each_are_right_and_more_are_refused():
    found = KMeans(clusters=4).judge(rows_of([0, 1, 2, 7]))
    assert found.metrics == pytest.approx({"nmi": 100, "ari": 100, "top1": 100})
    with pytest.raises(ValueError, match="5 clusters asked of 4 test images"):
        KMeans(clusters=5).judge(rows_of([0, 1, 2, 7]))
    with pytest.raises(ValueError, match="5 clusters asked of 3 test images"):
        KMeans(clusters=5, test_limit=3).check(splits_of(test=[0, 1, 2, 7]))


# Retrieval.


def test_retrieval_is_scikit_learns_average_precision(monkeypatch):
    monkeypatch.setattr(retrieval, "SIMILARITIES_AT_ONCE", 1000)  # over several blocks
    x = clusters(120, noise=2.0)
    found = Retrieval(ks=[1, 3]).judge(x)
    unit = torch.nn.functional.normalize(x.features)
    precisions, hits = [], []
    for i in range(120):
        others = torch.arange(120) != i
        similarity, relevant = unit[others] @ unit[i], x.labels[others] == x.labels[i]
        precisions.append(metrics.average_precision_score(relevant, similarity))
        nearest = relevant[similarity.argsort(descending=True)]
        hits.append([bool(nearest[:k].any()) for k in (1, 3)])
    assert found.metrics["map"] == pytest.approx(100 * np.mean(precisions), abs=1e-4)
    recall = [found.metrics["recall_1"], found.metrics["recall_3"]]
    assert recall == pytest.approx(100 * np.mean(hits, axis=0), abs=1e-4)
    np.testing.assert_allclose(found.rows.score, precisions, atol=1e-5)
    right = 100 * (found.rows.prediction == found.rows.label).float().mean()
    assert float(right) == pytest.approx(found.metrics["recall_1"])


def test_of_features_all_alike_no_order_is_made_up():
    similarity = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.9, 0.5, 0.5, 0.1]])
    relevant = torch.tensor([[True, True, False, False], [False, True, False, True]])
    expected = [
        metrics.average_precision_score(y, x) for x, y in zip(similarity, relevant, strict=True)
    ]
    assert retrieval.average_precision(similarity, relevant).tolist() == pytest.approx(expected)
    assert retrieval.first_rank(similarity, relevant).tolist() == [3, 3]


def test_an_image_alone_in_its_class_is_no_query():
    x = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1]])
    found = Retrieval(ks=[2]).judge(rows_of([5, 5, 2], x))
    assert found.metrics["map"] == 100 and found.rows.index.tolist() == [0, 1]
    assert found.protocol["alone in their class, no queries"] == 1
    with pytest.raises(ValueError, match="3 test images are of as many classes"):
        Retrieval(ks=[1]).judge(rows_of([0, 1, 2]))
    with pytest.raises(ValueError, match="10 nearest are asked of 2 others, of 3 test images"):
        Retrieval(ks=[1, 10]).check(splits_of(test=[0, 1, 1]))
    for ks in ([], [1, 1]):
        with pytest.raises(ConfigError, match="at least one number, each once"):
            Retrieval(ks=ks)


@pytest.mark.parametrize("kind", [KMeans, Retrieval])
def test_what_looks_at_test_images_alone_has_no_others_extracted(kind):
    asked = []

    class Given:
        device = torch.device("cpu")

        def features(self, *asked_for):
            asked.append(asked_for)
            return clusters(40)

    kind(test_limit=40, precision="bf16").evaluate(Given())
    assert asked == [("test", "bf16", 40)]


# Few-shot.


def test_few_shot_is_scikit_learns_classifiers_on_each_draw():
    train, test = clusters(200, noise=2.0), clusters(80, seed=1, noise=2.0)
    train, test = (Labeled(x, 2 * y + 1) for x, y, _ in (train, test))  # gaps in the labels
    found = FewShot(k=3, draws=3).judge(train, test)
    scaler = StandardScaler().fit(train.features)
    scores = []
    for number in range(3):
        rows = few_shot.draw(train.labels, torch.full((10,), 3), 0, "few shot", number)
        assert train.labels[rows].tolist() == [c for c in range(1, 20, 2) for _ in range(3)]
        assert len(set(rows.tolist())) == 30
        model = LogisticRegression(max_iter=1000)
        model.fit(scaler.transform(train.features[rows]), train.labels[rows])
        scores.append(100 * model.score(scaler.transform(test.features), test.labels))
    assert found.details["draws"]["logistic"] == pytest.approx(scores) and len(set(scores)) > 1
    assert found.metrics["logistic"] == pytest.approx(np.mean(scores))
    assert found.metrics["svm"] == pytest.approx(np.mean(found.details["draws"]["svm"]))
    without = FewShot(k=3, draws=3, svm=False).judge(train, test)
    assert without.metrics == {"logistic": found.metrics["logistic"]}
    low, high = found.details["interval"]["logistic"]
    # Student's t at 2 degrees of freedom: 4.303.
    half = 4.3027 * np.std(scores, ddof=1) / 3**0.5
    assert (low, high) == pytest.approx((np.mean(scores) - half, np.mean(scores) + half), rel=1e-4)
    assert 100 * float(found.rows.score.mean()) == pytest.approx(np.mean(scores), abs=1e-4)


def test_few_shot_takes_one_image_a_class_and_says_what_it_lacks():
    train, test = rows_of([0, 0, 2, 2]), rows_of([0, 1, 2, 2])  # class 1 has no training image
    found = FewShot(k=1, draws=2).judge(train, test)
    assert found.rows.prediction[1] != 1
    for labels, message in (
        ([0, 0, 0, 1], r"k = 3 training images of each class asked, class 1 \(b\) has 1"),
        ([2, 2, 2, 2], "the 4 training images are of 1"),
    ):
        with pytest.raises(ValueError, match=message):
            FewShot(k=3).check(splits_of(labels, [0]))


def test_without_scikit_learn_few_shot_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.svm", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        FewShot(k=1).check(splits_of([0, 1], [0]))


# An approximate index.


def test_the_recall_of_an_index_is_what_it_finds_of_the_exact_neighbors(monkeypatch):
    monkeypatch.setattr(knn, "QUERIES_FOR_RECALL", 50)
    bank, queries = clusters(2000), clusters(100, seed=1)
    unit, asked = (torch.nn.functional.normalize(x.features) for x in (bank, queries))
    search, _ = knn.build_index(unit, "ivf", 10)
    search.nprobe = 1
    found = knn.index_recall(search, unit, asked, 10)
    half = asked[::2]
    exact = (half @ unit.T).topk(10).indices
    neighbors = torch.from_numpy(search.search(half.numpy(), 10)[1])
    shared = (exact[:, :, None] == neighbors[:, None]).any(1).float().mean()
    assert found == pytest.approx(100 * float(shared)) and 20 < found < 99.9
    assert KNN(k=10, index="hnsw").judge(bank, queries).metrics["index_recall"] > 95
    assert "index_recall" not in KNN(k=10).judge(bank, queries).metrics


def test_neighbors_all_alike_are_recalled_whichever_are_found():
    same = torch.ones(300, 4) / 2
    search, _ = knn.build_index(same, "ivf", 5)
    assert knn.index_recall(search, same, same[:10], 5) == 100


# Labels with gaps, one image a class, a class that one split lacks.


@pytest.mark.parametrize(
    "evaluation",
    [KNN(k=1), Linear(lrs=[1.0], held_out=0.2, epochs=20), FewShot(k=1, draws=2)],
    ids=lambda of: type(of).__name__,
)
def test_what_can_be_known_is_right_and_the_rest_counts_as_wrong(evaluation):
    rows = torch.eye(6)
    train = Labeled(rows[:4].repeat(3, 1), torch.tensor([0, 2, 7, 9] * 3))  # 9 is not tested
    if not isinstance(evaluation, Linear):  # which holds some out
        train = Labeled(rows[:4], train.labels[:4])
    test = Labeled(rows[[0, 1, 2, 4]], torch.tensor([0, 2, 7, 5]))  # 5 was never seen
    found = evaluation.judge(train, test)
    assert found.metrics[evaluation.metric] == 75.0
    assert found.rows.prediction[:3].tolist() == [0, 2, 7]
