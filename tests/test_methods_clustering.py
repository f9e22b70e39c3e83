"""SwAV, DeepCluster, DeepCluster v2, ODC and their parts against their equations."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from lightly.loss import SwaVLoss
from sklearn.metrics import normalized_mutual_info_score
from torch.nn import functional as F

from ssl_zoo import config, experiment
from ssl_zoo.config import ConfigError, Part
from ssl_zoo.core import Batch
from ssl_zoo.engine.hooks.scheduling import Schedules
from ssl_zoo.engine.optimizers import SGD
from ssl_zoo.engine.schedules import Cosine
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.heads import MLP, Prototypes
from ssl_zoo.losses import swapped_prediction
from ssl_zoo.methods.deepcluster import DeepCluster
from ssl_zoo.methods.deepcluster_v2 import DeepClusterV2
from ssl_zoo.methods.odc import ODC
from ssl_zoo.methods.swav import SwAV
from ssl_zoo.ops import health, kmeans
from ssl_zoo.ops.sinkhorn import sinkhorn_knopp
from ssl_zoo.system import distributed
from ssl_zoo.testing.ranks import on_ranks

DIGITS = Path(__file__).resolve().parents[1] / "configs" / "digits" / "moco_v2.yaml"
N, SAMPLES = 12, 48
HEAD = Part(MLP, out_features=6, hidden_features=8)


def crops(n: int = N, step: int = 0) -> Batch:
    """Two full views and two smaller ones."""
    full = tiny.batch(n, step, size=8, num_samples=SAMPLES)
    small = tiny.batch(n, step + 100, size=5, num_samples=SAMPLES)
    return full._replace(views=full.views + small.views)


def images(n: int = SAMPLES):
    """What `before_epoch` gets."""
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    index = torch.arange(n)
    return list(zip(x.split(20), index.split(20), strict=True))


def step(method, batch: Batch, lr: float = 0.1) -> dict:
    """As the trainer does it, with plain SGD."""
    out = method(batch)
    method.zero_grad()
    out["loss"].backward()
    method.after_backward()
    with torch.no_grad():
        for p in method.parameters():
            if p.grad is not None:
                p -= lr * p.grad
    out = {name: value.detach() for name, value in out.items()}
    method.after_step(batch, out)
    return out


def same_gradients(method, loss, reference) -> None:
    parameters = [p for p in method.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, parameters, retain_graph=True)
    theirs = torch.autograd.grad(reference, parameters)
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert any(g.any() for g in ours)


# Sinkhorn-Knopp.


def plain_sinkhorn(scores, epsilon, iterations):
    q = [[math.exp(s / epsilon) for s in row] for row in scores.double().tolist()]
    n, k = len(q), len(q[0])
    for _ in range(iterations):
        for j in range(k):
            total = sum(q[i][j] for i in range(n))
            for i in range(n):
                q[i][j] /= total * k
        for i in range(n):
            total = sum(q[i])
            for j in range(k):
                q[i][j] /= total * n
    return torch.tensor([[n * value for value in row] for row in q])


def test_sinkhorn_is_its_loops():
    scores = torch.rand(7, 4) * 2 - 1
    torch.testing.assert_close(sinkhorn_knopp(scores, 0.2, 3), plain_sinkhorn(scores, 0.2, 3))


def test_sinkhorn_balances_prototypes_and_gives_each_row_one():
    q = sinkhorn_knopp(torch.randn(40, 5), 0.5, 100)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(40))
    torch.testing.assert_close(q.sum(dim=0), torch.full((5,), 8.0), rtol=1e-3, atol=1e-3)


def test_sinkhorn_survives_an_epsilon_whose_exponential_overflows():
    q = sinkhorn_knopp(torch.randn(9, 4), 1e-4, 3)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(9))


def test_sinkhorn_is_float32_without_gradient_and_a_softmax_after_no_iteration():
    scores = torch.randn(5, 3, requires_grad=True)
    assert not sinkhorn_knopp(scores).requires_grad
    assert sinkhorn_knopp(scores.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(sinkhorn_knopp(scores, 0.5, 0), (scores / 0.5).softmax(dim=1))


def test_sinkhorn_leaves_rows_without_weight_out_of_the_balance():
    scores, weight = torch.randn(9, 4), torch.ones(9)
    weight[5:] = 0
    alone = sinkhorn_knopp(scores[:5], 0.3, 3)
    torch.testing.assert_close(sinkhorn_knopp(scores, 0.3, 3, weight)[:5], alone)
    assert not torch.allclose(sinkhorn_knopp(scores, 0.3, 3)[:5], alone)


def assigned_in_parts(sizes: list[int]) -> torch.Tensor:
    scores = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    return sinkhorn_knopp(scores.split(sizes)[distributed.rank()], 0.1, 3)


def test_sinkhorn_balances_the_rows_of_all_ranks_also_where_they_are_uneven():
    whole = assigned_in_parts([9])
    parts = on_ranks(2, assigned_in_parts, [5, 4])
    torch.testing.assert_close(torch.cat(parts), whole)


# SwAV.


def swav(**arguments) -> SwAV:
    torch.manual_seed(0)
    return SwAV(tiny.TinyNet(), head=HEAD, **{"prototypes": 5, "epsilon": 0.1} | arguments)


def embeddings(method, batch: Batch) -> list[torch.Tensor]:
    return [F.normalize(method.encoder(view), dim=1) for view in batch.views]


def test_swav_is_its_equation_gradients_included():
    method, batch = swav(), crops()
    z, c = embeddings(method, batch), method.prototypes.weight
    reference = 0.0
    for s in range(2):
        q = plain_sinkhorn((z[s] @ c.T).detach(), 0.1, 3)
        for v in range(4):
            if v == s:
                continue
            for n in range(N):
                for k in range(5):
                    p = torch.exp(z[v][n] @ c[k] / 0.1) / torch.exp(z[v][n] @ c.T / 0.1).sum()
                    reference = reference - q[n, k] * p.log() / N / 3 / 2
    same_gradients(method, method(batch)["loss"], reference)


def test_swapped_prediction_by_hand_is_cross_entropy_between_the_views():
    z, c = torch.randn(3, N, 6), torch.randn(5, 6)
    q = [sinkhorn_knopp(z[s] @ c.T) for s in range(2)]
    log_p = [(z_v @ c.T / 0.1).log_softmax(dim=1) for z_v in z]
    of = {(s, v): F.cross_entropy(z[v] @ c.T / 0.1, q[s]) for s in range(2) for v in range(3)}
    expected = (of[0, 1] + of[0, 2] + of[1, 0] + of[1, 2]) / 4
    torch.testing.assert_close(swapped_prediction(q, log_p), expected)


def test_swav_agrees_with_lightly():
    method, batch = swav(), crops()
    scores = [method.prototypes(z) for z in embeddings(method, batch)]
    theirs = SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.1)
    same_gradients(method, method(batch)["loss"], theirs(scores[:2], scores[2:])[0])


def test_swav_prototypes_are_frozen_then_move_and_stay_of_unit_length():
    method = swav(frozen_steps=2)
    start = method.prototypes.weight.detach().clone()
    others = method.encoder.head.layers[0].weight.detach().clone()
    for number in range(2):
        step(method, crops(step=number))
        torch.testing.assert_close(method.prototypes.weight.detach(), start)
    assert not torch.allclose(method.encoder.head.layers[0].weight, others)
    step(method, crops(step=2), lr=1.0)
    assert (method.prototypes.weight - start).abs().max() > 1e-3
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(5))


def test_swav_queue_takes_part_once_full_and_from_its_step():
    method = swav(queue_size=20, queue_from_step=3)
    plain = swav()
    for number in range(5):  # full after two steps, used from the third
        batch = crops(step=number)
        plain.encoder.load_state_dict(method.encoder.state_dict())
        plain.prototypes.load_state_dict(method.prototypes.state_dict())
        alone, found = plain(batch)["loss"], method(batch)["loss"]
        assert torch.allclose(alone, found, rtol=1e-6) == (number < 3)
        step(method, batch)


def test_swav_queue_holds_the_newest_embeddings_and_joins_the_balance():
    method = swav(queue_size=20)
    written = [step(method, crops(step=number))["z"] for number in range(3)]  # 36 rows
    newest = torch.cat(written)[-20:].transpose(0, 1)  # [2, 20, D]
    for view in range(2):
        held = {tuple(row) for row in method.queue.z[:, view].tolist()}
        assert held == {tuple(row) for row in newest[view].tolist()}
    batch = crops(step=9)
    z, c = embeddings(method, batch), method.prototypes.weight
    expected = 0.0
    for s in range(2):
        rows = torch.cat([z[s], method.queue.z[:, s]]) @ c.T
        q = plain_sinkhorn(rows.detach(), 0.1, 3)[:N]
        for v in set(range(4)) - {s}:
            expected -= (q * (z[v] @ c.T / 0.1).log_softmax(dim=1)).sum() / N / 3 / 2
    torch.testing.assert_close(method(batch)["loss"], expected)


def trained(folder: Path, *overrides) -> Trainer:
    """SwAV on digits, 60 steps with views that differ little."""
    folder.mkdir()
    head = {"type": "MLP", "out_features": 16, "hidden_features": 32, "batch_norm": True}
    overrides = [
        ("method", {"type": "SwAV", "head": head, "prototypes": 30}),
        ("backbone", {"type": "TinyNet", "norm": True, "width": 16}),
        ("data.dataset.limit", 640),
        ("data.views.ops.crop.scale", [0.9, 1.0]),
        ("data.views.ops.jitter", None),
        "data.batch_size=64",
        ("optimizer", {"type": "SGD", "lr": 0.05, "weight_decay": 0.0}),
        "evaluations.knn=null",
        "train.epochs=6",
        "train.log_every=10",
        "train.precision=fp32",
        *overrides,
    ]
    trainer = experiment.build_trainer(config.load(DIGITS, overrides), torch.device("cpu"), folder)
    trainer.fit()
    return trainer


def spoken(trainer: Trainer) -> str:
    log = trainer.folder.path / "log.txt"
    return log.read_text() if log.exists() else ""


def test_swav_without_sinkhorn_collapses_and_the_log_says_so_once(tmp_path):
    trainer = trained(tmp_path / "run", "method.sinkhorn_iterations=0")
    low = [health.collapse(line) for line in trainer.folder.metrics()]
    assert not low[0] and sum(map(bool, low)) >= 2, "several lines are bad"
    said = spoken(trainer)
    assert said.count("collapse?") == 1
    assert "assigned to the same few prototypes" in said


def test_swav_with_sinkhorn_stays_healthy_and_learns(tmp_path):
    trainer = trained(tmp_path / "run")
    lines = trainer.folder.metrics()
    assert not any(health.collapse(line) for line in lines)
    assert lines[-1]["embedding_std"] > 0.5 and lines[-1]["assignment_entropy"] > 0.9
    assert lines[-1]["loss"] < 0.7 * math.log(30)
    assert "collapse" not in spoken(trainer)


def test_swav_on_equal_embeddings_is_seen_although_its_codes_are_balanced():
    method, batch = swav(), crops()
    torch.nn.init.zeros_(method.encoder.head.layers[-1].weight)
    out = method(batch)
    assert "same embedding" in health.collapse({"embedding_std": out["embedding_std"].item()})
    codes = method._assign(method.prototypes(embeddings(method, batch)[0]), method.queue.z[:, 0])
    assert health.assignment_entropy(codes) > 0.99


# k-means and its measures.


def blobs(n: int = 60, k: int = 3, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    label = torch.arange(n) % k
    return 5 * torch.eye(width)[label] + 0.1 * torch.randn(n, width), label


def test_kmeans_ends_where_lloyd_ends_and_one_seed_gives_one_answer():
    x, _ = blobs()
    found, centroids = kmeans.euclidean_kmeans(x, 3, iterations=10, seed=3)
    assert torch.equal(found, kmeans.closest_centroid(x, centroids))
    for k in range(3):
        torch.testing.assert_close(centroids[k], x[found == k].mean(dim=0), rtol=1e-4, atol=1e-4)
    again, _ = kmeans.euclidean_kmeans(x, 3, iterations=10, seed=3)
    assert torch.equal(found, again)


def test_whitening_is_pca_scaled_to_unit_variance():
    x = torch.randn(200, 5) @ torch.randn(5, 5) + 1
    u = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)[0][:, :3]  # equal variances
    expected = F.normalize(u, dim=1)
    ours = kmeans.whiten(x, 3)
    # Axes may point either way: inner products may not.
    torch.testing.assert_close(ours @ ours.T, expected @ expected.T, rtol=1e-3, atol=1e-3)


def test_whitening_survives_a_feature_that_never_varies():
    x = torch.randn(50, 4)
    x[:, 2] = 7.0
    assert kmeans.whiten(x, 4).isfinite().all()


def test_mutual_information_agrees_with_scikit_learn():
    a, b = torch.randint(4, (80,)), torch.randint(6, (80,))
    b[:40] = a[:40]
    expected = normalized_mutual_info_score(a, b, average_method="geometric")
    assert kmeans.mutual_information(a, b) == pytest.approx(expected, abs=1e-5)
    assert kmeans.mutual_information(a, torch.zeros_like(a)) == 0.0


def test_nearest_is_by_distance_and_not_by_angle():
    x, c = torch.randn(30, 3), 3 * torch.rand(5, 1) * torch.randn(5, 3)
    assert torch.equal(kmeans.closest_centroid(x, c), torch.cdist(x, c).argmin(dim=1))


def spherical() -> torch.Tensor:
    x = F.normalize(torch.randn(31, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    return kmeans.spherical_kmeans(x, 3, 6, "test")


def test_spherical_kmeans_is_its_loops_and_the_same_on_two_ranks():
    x = F.normalize(torch.randn(31, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    c = x[kmeans.rng.permutation(31, "test")[:3]].clone()
    for _ in range(6):
        label = [max(range(3), key=lambda k: float(row @ c[k])) for row in x]
        for k in range(3):
            total = sum(row for row, y in zip(x, label, strict=True) if y == k)
            c[k] = total / total.norm()
    torch.testing.assert_close(spherical(), c)
    first, second = on_ranks(2, spherical)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, c)


def test_a_centroid_that_nothing_is_nearest_to_stays():
    x = torch.eye(3)[torch.tensor([0, 0, 0, 1])]  # with three centroids one is a duplicate
    assert kmeans.spherical_kmeans(x, 3, 4, "x").norm(dim=1).tolist() == [1.0, 1.0, 1.0]


def normalized() -> tiny.TinyNet:
    """A network that has seen images, on each rank its own."""
    torch.manual_seed(0)
    net = tiny.TinyNet(norm=True)
    torch.manual_seed(distributed.rank())
    net(torch.randn(30, 1, 8, 8) * (1 + distributed.rank()))
    return net


def embedded_by_rank() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs, positions, and the statistics of rank's own, which stay."""
    net, share = normalized(), images()[distributed.rank() :: distributed.world()]
    return *kmeans.embed(net, share), net.net[1].running_var


def test_ranks_embed_with_rank_0s_batchnorm_statistics_and_keep_their_own():
    expected, positions, statistics = embedded_by_rank()
    ranks = on_ranks(2, embedded_by_rank)
    found = torch.empty_like(expected)
    for outputs, index, _ in ranks:
        found[index] = outputs
    assert torch.equal(positions, torch.arange(SAMPLES))
    torch.testing.assert_close(found, expected)
    assert torch.equal(ranks[0][2], statistics) and not torch.allclose(ranks[1][2], statistics)


# DeepCluster.


def deepcluster(**arguments) -> DeepCluster:
    torch.manual_seed(0)
    arguments = {"clusters": 6, "pca": 4} | arguments
    return DeepCluster(tiny.TinyNet(norm=True), SAMPLES, **arguments)


def test_deepcluster_is_its_equation_gradients_included():
    method, batch = deepcluster(), crops()
    method.before_epoch(images())
    y = method.assignments[batch.index].tolist()
    logits = method.encoder(batch.views[0])
    size = [int((method.assignments == k).sum()) for k in range(6)]
    used = sum(s > 0 for s in size)
    reference = 0.0
    for n in range(N):
        w = SAMPLES / (used * size[y[n]])
        reference = reference - w * logits[n].log_softmax(dim=0)[y[n]] / N
    same_gradients(method, method(batch)["loss"], reference)


def test_deepcluster_over_the_whole_set_equals_uniform_sampling_over_clusters():
    method = deepcluster().eval()
    method.before_epoch(images())
    x = torch.cat([x for x, _ in images()])
    whole = Batch([x], torch.arange(SAMPLES), torch.zeros(SAMPLES))
    y = method.assignments
    each = F.cross_entropy(method.encoder(x), y, reduction="none")
    uniform = torch.stack([each[y == k].mean() for k in y.unique()]).mean()
    torch.testing.assert_close(method(whole)["loss"], uniform)


def test_deepcluster_labels_are_kmeans_of_whitened_features_in_evaluation_mode():
    method = deepcluster()
    before = copy.deepcopy(method.encoder.backbone.state_dict())
    method.before_epoch(images())
    torch.testing.assert_close(method.encoder.backbone.state_dict(), before, rtol=0, atol=0)
    assert method.encoder.training
    with torch.no_grad():
        features = method.eval().encoder.backbone(torch.cat([x for x, _ in images()]))
    seed = method._seed("k-means")
    expected, _ = kmeans.euclidean_kmeans(kmeans.whiten(features, 4), 6, 20, seed)
    assert kmeans.mutual_information(method.assignments, expected) == pytest.approx(1.0)
    assert torch.equal(method.sizes, torch.bincount(method.assignments, minlength=6))


def test_deepcluster_draws_its_classifier_anew_by_seed_and_step():
    method, twin = deepcluster(), deepcluster()
    drawn = []
    for m in (method, twin):
        torch.rand(3)  # torch's own random numbers have no part in it
        m.before_epoch(images())
        drawn.append(m.encoder.head.layers[0].weight.detach().clone())
    assert torch.equal(*drawn)
    step(method, crops())
    kept = method.encoder.head.layers[0].weight
    method.before_epoch(images())
    assert method.encoder.head.layers[0].weight is kept, "in place, the optimiser holds it"
    assert not torch.equal(kept, drawn[0]) and kept.std().item() == pytest.approx(0.01, rel=0.4)
    assert not method.encoder.head.layers[0].bias.any()


def test_deepcluster_classifier_has_no_momentum_to_hand_on():
    method = deepcluster()
    for apart in (True, False):
        groups = method.param_groups(1e-4, decay_norm_and_bias=apart)
        found = {id(p): g.get("momentum") for g in groups for p in g["params"]}
        assert len(found) == len(list(method.parameters()))
        head = [found.pop(id(p)) for p in method.encoder.head.parameters()]
        assert head == [0.0, 0.0] and set(found.values()) == {None}
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    method(crops())["loss"].backward()
    optimizer.step()
    state = optimizer.state[method.encoder.head.layers[0].weight]
    assert state.get("momentum_buffer") is None
    assert optimizer.state[method.encoder.backbone.net[0].weight]["momentum_buffer"].any()


@pytest.mark.parametrize("name", ["DeepCluster", "ODC"])
def test_a_scheduled_momentum_leaves_the_classifier_without(name):
    method = deepcluster() if name == "DeepCluster" else odc()
    classifier = method.encoder.head if name == "DeepCluster" else method.classifier
    optimizer = SGD(method, lr=0.1, momentum=0.5, decay_norm_and_bias=False)
    trainer = SimpleNamespace(optimizer=optimizer, step=10, total_steps=10, unit=1)
    schedules = Schedules({"optimizer.momentum": Cosine(final=0.9)})
    schedules.attach(trainer)
    schedules.before_step(trainer)
    momentum = {
        id(p): group["momentum"] for group in optimizer.param_groups for p in group["params"]
    }
    assert [momentum.pop(id(p)) for p in classifier.parameters()] == [0.0, 0.0]
    assert list(momentum.values()) == pytest.approx([0.9] * len(momentum))


def test_deepcluster_reports_agreement_with_the_clusters_before():
    method = deepcluster()
    method.before_epoch(images())
    first = method.assignments.clone()
    step(method, crops(), lr=0.5)
    method.before_epoch(images())
    said = method.telemetry(None)
    expected = normalized_mutual_info_score(first, method.assignments, average_method="geometric")
    assert said["nmi"] == pytest.approx(expected, abs=1e-4)
    assert said["clusters_in_use"] == len(method.assignments.unique())


def test_deepcluster_survives_empty_clusters():
    method, batch = deepcluster(), crops()
    method.assignments.zero_()
    method.sizes.copy_(torch.tensor([SAMPLES, 0, 0, 0, 0, 0]))
    out = method(batch)
    assert out["loss"].isfinite() and out["assignment_entropy"] == 0
    torch.testing.assert_close(
        out["loss"], F.cross_entropy(method.encoder(batch.views[0]), method.assignments[:N])
    )


def test_more_clusters_than_images_are_refused():
    with pytest.raises(ConfigError, match="too large"):
        deepcluster(clusters=SAMPLES + 1)
    with pytest.raises(ConfigError, match="at most 8"):
        deepcluster(pca=9)
    with pytest.raises(ConfigError, match="too large"):
        v2(clusters=[5, SAMPLES + 1])
    with pytest.raises(ConfigError, match=f"at most {SAMPLES}"):
        odc(clusters=6, min_cluster=9)


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (lambda **a: deepcluster(**a), {"clusters": 1}),
        (lambda **a: v2(**a), {"temperature": 0.0}),
        (lambda **a: v2(**a), {"clusters": []}),
        (lambda **a: v2(**a), {"clusters": [4, 1]}),
        (lambda **a: odc(**a), {"momentum": 1.5}),
        (lambda **a: odc(**a), {"centroid_interval": 0}),
        (lambda **a: swav(**a), {"prototypes": 1}),
    ],
)
def test_numbers_without_sense_are_refused_from_python_too(build, arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        build(**arguments)


# DeepCluster v2.


def v2(**arguments) -> DeepClusterV2:
    torch.manual_seed(0)
    arguments = {"clusters": [4, 5, 6]} | arguments
    return DeepClusterV2(tiny.TinyNet(), SAMPLES, head=HEAD, **arguments)


def test_deepcluster_v2_is_its_equation_gradients_included():
    method = v2()
    method.before_epoch(images())
    step(method, crops(step=3))
    method.before_epoch(images())
    batch = crops()
    z, reference = embeddings(method, batch), 0.0
    for h in range(3):
        c = method.centroids[h].weight
        for n in range(N):
            m = method.bank[h % 2][batch.index[n]]
            y = max(range(len(c)), key=lambda k, m=m, c=c: float(m @ c[k]))
            for v in range(4):
                log_p = (c @ z[v][n] / 0.1).log_softmax(dim=0)
                reference = reference - log_p[y] / N / 4 / 3
    same_gradients(method, method(batch)["loss"], reference)


def test_deepcluster_v2_centroids_are_spherical_kmeans_of_each_bank_and_get_no_gradient():
    method = v2()
    method.before_epoch(images())
    step(method, crops())  # the two banks differ from here on
    assert not torch.equal(*method.bank)
    method.before_epoch(images())
    assert not any(p.requires_grad for p in method.centroids.parameters())
    for h in range(3):
        key = (method.seed, method.steps, f"k-means {h}")
        c = method.centroids[h].weight
        expected = kmeans.spherical_kmeans(method.bank[h % 2], len(c), 10, *key)
        torch.testing.assert_close(c.detach(), expected)


def test_deepcluster_v2_remembers_both_full_views_and_targets_stand_until_seen():
    method, batch = v2(), crops()
    method.before_epoch(images())
    others = torch.tensor(sorted(set(range(SAMPLES)) - set(batch.index.tolist())))
    before = [method._assigned(h, others) for h in range(3)]
    rows = method.bank[:, others].clone()
    z = [z.detach() for z in embeddings(method, batch)]
    step(method, batch)
    for view in range(2):
        torch.testing.assert_close(method.bank[view][batch.index], z[view])
    assert torch.equal(method.bank[:, others], rows)
    assert all(torch.equal(method._assigned(h, others), y) for h, y in enumerate(before))


def test_deepcluster_v2_fills_its_bank_before_the_first_epoch_only():
    method = v2()
    method.before_epoch(images())
    torch.testing.assert_close(method.bank.norm(dim=2), torch.ones(2, SAMPLES))
    step(method, crops())
    kept = method.bank.clone()
    method.before_epoch(iter([]))  # reads nothing
    assert torch.equal(method.bank, kept)


# ODC.


def odc(**arguments) -> ODC:
    torch.manual_seed(0)
    arguments = {"clusters": 4, "min_cluster": 3, "centroid_interval": 2} | arguments
    method = ODC(tiny.TinyNet(), SAMPLES, head=HEAD, **arguments)
    method.before_epoch(images())
    return method


def test_odc_is_its_equation_gradients_included():
    method, batch = odc(), crops()
    y = method.labels[batch.index].tolist()
    size = [int((method.labels == k).sum()) for k in range(4)]
    logits = method.classifier(method.encoder(batch.views[0]))
    w = [size[k] ** -0.5 for k in y]
    reference = sum(-w[n] * logits[n].log_softmax(dim=0)[y[n]] for n in range(N)) / sum(w)
    same_gradients(method, method(batch)["loss"], reference)


def test_odc_begins_with_kmeans_of_unit_features():
    method = odc()
    torch.testing.assert_close(method.features.norm(dim=1), torch.ones(SAMPLES))
    x = torch.cat([x for x, _ in images()])
    with torch.no_grad():
        torch.testing.assert_close(method.features, F.normalize(method.encoder(x), dim=1))
    for k in range(4):
        members = method.features[method.labels == k]
        torch.testing.assert_close(method.centroids[k], members.mean(dim=0), rtol=1e-3, atol=1e-4)
    kept = method.features.clone()
    step(method, crops())
    method.before_epoch(iter([]))  # reads nothing in later epochs
    assert not torch.equal(method.features, kept)


def test_odc_samples_memory_and_labels_follow_the_batch_alone():
    method, batch = odc(momentum=0.3, min_cluster=0), crops()
    old, labels, centroids = (x.clone() for x in (method.features, method.labels, method.centroids))
    f = F.normalize(method.encoder(batch.views[0]), dim=1).detach()
    step(method, batch)
    assert torch.equal(method.centroids, centroids), "centroids move every second step"
    others = torch.ones(SAMPLES, dtype=torch.bool)
    others[batch.index] = False
    assert torch.equal(method.features[others], old[others])
    assert torch.equal(method.labels[others], labels[others])
    changed = 0
    for n, i in enumerate(batch.index.tolist()):
        m = 0.7 * old[i] + 0.3 * f[n]
        m = m / m.norm()
        torch.testing.assert_close(method.features[i], m)
        y = min(range(4), key=lambda k, m=m: float((m - centroids[k]).square().sum()))
        assert method.labels[i] == y
        changed += int(y != labels[i])
    assert method.telemetry(None)["label_change"] == pytest.approx(changed / N)


def test_odc_moves_centroids_every_few_steps():
    method = odc(min_cluster=0)
    for number in range(2):
        step(method, crops(step=number))
    for k in method.labels.unique():
        expected = method.features[method.labels == k].mean(dim=0)
        torch.testing.assert_close(method.centroids[k], expected)


def test_odc_reads_its_steps_off_the_device_once_after_a_start_and_after_a_resume():
    """Centroids move at steps 2, 4, ...: also in a method that was at step 0 or 2 before."""
    first = odc(min_cluster=0)
    for number in range(3):
        step(first, crops(step=number))
    for steps_before in (0, 2):
        resumed = odc(min_cluster=0)
        for number in range(steps_before):
            step(resumed, crops(step=number))
        resumed.load_state_dict(first.state_dict())
        kept = resumed.centroids.clone()
        step(resumed, crops(step=3))
        assert not torch.equal(resumed.centroids, kept)
        resumed.steps += 1  # is not read again
        kept = resumed.centroids.clone()
        step(resumed, crops(step=4))
        assert torch.equal(resumed.centroids, kept)
        step(resumed, crops(step=5))
        assert not torch.equal(resumed.centroids, kept)


def test_odc_merges_a_small_cluster_and_gives_it_half_of_the_largest():
    method = odc()
    angle = torch.tensor([0.0, 0.1, 1.5, 1.6, 1.7])  # of five bundles
    which = torch.tensor([0] * 12 + [1] * 11 + [2] * 12 + [3] * 11 + [4] * 2)
    x = torch.zeros(SAMPLES, 6)
    x[:, 0], x[:, 1] = angle[which].cos(), angle[which].sin()
    method.features.copy_(x)
    method.labels.copy_(torch.tensor([0, 0, 1, 1, 2])[which])  # 23, 23, 2, and nothing
    kmeans.move_centroids(method.features, method.labels, method.centroids)
    kmeans.replace_small_clusters(method.features, method.labels, method.centroids, 3)
    sizes = torch.bincount(method.labels, minlength=4)
    assert sorted(sizes.tolist()) == [11, 12, 12, 13]
    # The two images of the small cluster went to the nearest other, and in its split to its half.
    assert len(set(method.labels[35:].tolist())) == 1
    for k in range(4):
        members = method.features[method.labels == k]
        torch.testing.assert_close(method.centroids[k], members.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_odc_collapsed_features_still_leave_no_cluster_empty():
    method = odc()
    method.features.copy_(F.normalize(torch.ones(SAMPLES, 6), dim=1))
    method.labels.zero_()
    kmeans.move_centroids(method.features, method.labels, method.centroids)
    kmeans.replace_small_clusters(method.features, method.labels, method.centroids, 3)
    assert torch.bincount(method.labels, minlength=4).min() >= 3


def test_halving_finds_two_clusters_and_deals_out_equal_rows():
    x, label = blobs(20, 2)
    second = kmeans.halve(x)
    assert kmeans.mutual_information(second.long(), label) == pytest.approx(1.0)
    assert kmeans.halve(torch.ones(7, 3)).sum() == 3


# Prototypes.


def test_prototypes_are_cosines_in_float32_also_under_autocast():
    head = Prototypes(6, 5)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(5))
    z = F.normalize(torch.randn(3, 6), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        scores = head(z)
    torch.testing.assert_close(scores, F.cosine_similarity(z[:, None], head.weight[None], dim=2))
