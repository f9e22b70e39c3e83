"""Non-contrastive methods against their papers' equations written out plainly."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import TinyNet, batch

from ssl_zoo.config import ConfigError, Part
from ssl_zoo.core import MomentumEncoder, merge_outputs
from ssl_zoo.engine.hooks.scheduling import Schedules
from ssl_zoo.engine.optimizers import SGD
from ssl_zoo.engine.schedules import Cosine
from ssl_zoo.heads import MLP
from ssl_zoo.losses import sigreg, vicreg_terms
from ssl_zoo.methods import w_mse
from ssl_zoo.methods.barlow_twins import BarlowTwins, cross_correlation
from ssl_zoo.methods.byol import BYOL
from ssl_zoo.methods.lejepa import LeJEPA
from ssl_zoo.methods.mmcr import MMCR
from ssl_zoo.methods.simsiam import SimSiam
from ssl_zoo.methods.tico import TiCo
from ssl_zoo.methods.vicreg import VICReg
from ssl_zoo.methods.vicregl import VICRegL, match
from ssl_zoo.methods.w_mse import WMSE, whiten

N, D = 9, 4
HEAD = Part(MLP, hidden_features=6, out_features=D, batch_norm=True)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a):
    return a / dot(a, a).sqrt()


def mean_of(rows):
    return sum(rows) / len(rows)


def var(values):
    mean = mean_of(values)
    return sum((x - mean) ** 2 for x in values) / (len(values) - 1)


def cov(z, i, j):
    mean = z.mean(dim=0)
    return sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in z) / (len(z) - 1)


# ---------------------------------------------------------------- the equations, one a method


def byol(method, views):
    q = [method.predictor(method.encoder(x)) for x in views]
    t = [method.target.encoder(x).detach() for x in views]
    total = 0
    for i in range(N):
        for mine, other in ((0, 1), (1, 0)):
            gap = unit(q[mine][i]) - unit(t[other][i])
            total = total + dot(gap, gap)
    return total / N


def simsiam(method, views):
    z = [method.encoder(x) for x in views]
    p = [method.predictor(each) for each in z]
    total = 0
    for i in range(N):
        for mine, other in ((0, 1), (1, 0)):
            total = total - dot(unit(p[mine][i]), unit(z[other][i].detach())) / 2
    return total / N


def barlow_twins(method, views):
    a, b = (method.encoder(x) for x in views)
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    total = 0
    for i in range(D):
        for j in range(D):
            length_a = (sum(row[i] ** 2 for row in a) + N * 1e-5).sqrt()
            length_b = (sum(row[j] ** 2 for row in b) + N * 1e-5).sqrt()
            c = sum(ra[i] * rb[j] for ra, rb in zip(a, b, strict=True)) / (length_a * length_b)
            total = total + ((1 - c) ** 2 if i == j else 0.1 * c**2)
    return 0.5 * total


def equation_of_vicreg(z_1, z_2):
    s = mean_of([(a - b) ** 2 for a, b in zip(z_1.flatten(), z_2.flatten(), strict=True)])
    v = [
        mean_of([(1 - (var(z[:, j]) + 1e-4).sqrt()).clamp(min=0) for j in range(D)])
        for z in (z_1, z_2)
    ]
    c = [
        sum(cov(z, i, j) ** 2 for i in range(D) for j in range(D) if i != j) / D for z in (z_1, z_2)
    ]
    return s, sum(v) / 2, sum(c)


def vicreg(method, views):
    s, v, c = equation_of_vicreg(*(method.encoder(x) for x in views))
    return 3 * s + 5 * v + 7 * c


def matches(here, there, gamma):
    """For one image: (place, nearest place of the other map), the gamma closest pairs."""
    pairs = []
    for i, a in enumerate(here):
        distances = [((a - b) ** 2).sum().item() for b in there]
        pairs.append((min(distances), i, distances.index(min(distances))))
    return sorted((i, j) for _, i, j in sorted(pairs)[:gamma])


def vicregl(method, views):
    def criterion(z_1, z_2):
        s, v, c = equation_of_vicreg(z_1, z_2)
        return 3 * s + 5 * v + 7 * c / 2

    backbone, maps, places = method.encoder.backbone, [], []
    for x, boxes in zip(views, batch(N, size=5).boxes, strict=True):
        rows = backbone.feature_map(x).permute(0, 2, 3, 1)  # [N, h, w, F]
        maps.append(method.local_head(rows.reshape(-1, rows.shape[3])).view(N, -1, D))
        down, across = rows.shape[1:3]
        places.append(
            [
                [
                    torch.stack(
                        [
                            top + (bottom - top) * (i + 0.5) / down,
                            left + (right - left) * (j + 0.5) / across,
                        ]
                    )
                    for i in range(down)
                    for j in range(across)
                ]
                for top, left, bottom, right in boxes
            ]
        )
    local = 0
    for near, gamma in ((maps, 4), (places, 3)):
        for a, b, here, there in ((*maps, *near), (*maps[::-1], *near[::-1])):
            found = [matches(here[n], there[n], gamma) for n in range(N)]
            slots = []
            for k in range(gamma):
                z_1 = torch.stack([a[n][found[n][k][0]] for n in range(N)])
                z_2 = torch.stack([b[n][found[n][k][1]] for n in range(N)])
                slots.append(criterion(z_1, z_2))
            local = local + mean_of(slots) / 2
    return 0.75 * criterion(*(method.encoder(x) for x in views)) + 0.25 * local


def wmse(method, views):
    z = method.encoder(torch.cat(views)).split(N)  # a pass for all views, BatchNorm included
    whitened = []
    for rows in z:
        sigma = torch.stack([torch.stack([cov(rows, i, j) for j in range(D)]) for i in range(D)])
        sigma = 0.99 * sigma + 0.01 * torch.eye(D)
        inverse_root = torch.linalg.inv(torch.linalg.cholesky(sigma))
        whitened.append([inverse_root @ (row - rows.mean(dim=0)) for row in rows])
    total, pairs = 0, 0
    for i in range(len(views)):
        for j in range(i):
            pairs += 1
            for a, b in zip(whitened[i], whitened[j], strict=True):
                total = total + (2 - 2 * dot(unit(a), unit(b))) / N
    return total / pairs


def tico(method, views):
    z_1 = [unit(row) for row in method.encoder(views[0])]
    z_2 = [unit(row) for row in method.target.encoder(views[1])]
    past = torch.arange(D * D).view(D, D) / 10
    moments = sum(torch.outer(z, z) for z in z_1).detach() / N
    c = 0.7 * past + 0.3 * moments
    total = 0
    for a, b in zip(z_1, z_2, strict=True):
        total = total + 1 - dot(a, b) + 3 * a @ c @ a
    return total / N


def nuclear(matrix):
    return torch.linalg.eigvalsh(matrix.T @ matrix).clamp(min=0).sqrt().sum()


def mmcr(method, views):
    z = method.encoder(torch.cat(views)).split(N)
    manifolds = [torch.stack([unit(view[n]) for view in z]) for n in range(N)]  # N x [V, D]
    centroids = torch.stack([manifold.mean(dim=0) for manifold in manifolds])
    # Of V x V, lest roots of zeros be differentiated.
    return -nuclear(centroids) + 0.1 * mean_of([nuclear(m.T) for m in manifolds])


def epps_pulley(x):
    """The statistic's integral over all t in closed form, for projections x."""
    n = len(x)
    pairs = sum(torch.exp(-((a - b) ** 2) / 2) for a in x for b in x) / n**2
    cross = sum(torch.exp(-(a**2) / 4) for a in x) / n
    tail = math.sqrt(2 * math.pi / 3)
    return n * (math.sqrt(2 * math.pi) * pairs - 2 * math.sqrt(math.pi) * cross + tail)


def lejepa(method, views):
    z = method.encoder(torch.cat(views)).split(N)
    center = (z[0] + z[1]) / 2
    prediction = mean_of([((each - center) ** 2).mean() for each in z])
    directions = method.directions(z[0])
    statistic = mean_of([epps_pulley(each @ a) for each in z for a in directions.T])
    return 0.8 * prediction + 0.2 * statistic


CASES = {
    "BYOL": (BYOL, {"predictor": HEAD}, 2, byol),
    "SimSiam": (SimSiam, {"predictor": HEAD}, 2, simsiam),
    "BarlowTwins": (BarlowTwins, {"lam": 0.1, "scale": 0.5}, 2, barlow_twins),
    "VICReg": (VICReg, {"lam": 3.0, "mu": 5.0, "nu": 7.0}, 2, vicreg),
    "VICRegL": (
        VICRegL,
        {"local_head": HEAD, "gamma": 3, "feature_gamma": 4, "lam": 3.0, "mu": 5.0, "nu": 7.0},
        2,
        vicregl,
    ),
    "WMSE": (WMSE, {"eps": 0.01, "part": 2 * D}, 3, wmse),
    "TiCo": (TiCo, {"beta": 0.7, "rho": 3.0}, 2, tico),
    "MMCR": (MMCR, {"lam": 0.1}, 2, mmcr),
    "LeJEPA": (LeJEPA, {"lam": 0.2, "slices": 3}, 3, lejepa),
}


def make(name: str, **changed):
    kind, arguments, count, _ = CASES[name]
    method = kind(TinyNet(width=16), head=HEAD, **(arguments | changed))
    if name == "TiCo":
        method.C.copy_(torch.arange(D * D).view(D, D) / 10)
    return method, batch(N, views=count, size=5)


def move_away(method) -> None:
    """As training would, the online weights from the target's."""
    with torch.no_grad():
        for p in method.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)


def gradients(loss, method):
    parameters = [p for p in method.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("name", CASES)
def test_loss_equals_its_equation_gradients_included(name):
    method, images = make(name)
    move_away(method)
    value = method(images)["loss"]
    expected = CASES[name][3](method, images.views)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(gradients(value, method), gradients(expected, method), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 + 1e-3 * b.abs().max().item())


# ------------------------------------------------------------------------------------ targets


@pytest.mark.parametrize("name", ["BYOL", "TiCo"])
def test_the_target_starts_equal_and_follows_once_a_step_head_included(name):
    method, images = make(name, momentum=0.9)
    pairs = [
        (method.target.encoder.get_parameter(n), p) for n, p in method.encoder.named_parameters()
    ]
    assert any("head" in n for n, _ in method.encoder.named_parameters())
    assert all(torch.equal(target, online) for target, online in pairs)
    before = [target.clone() for target, _ in pairs]
    move_away(method)
    parts = images.split(2)
    outputs = [(len(part.index) / N, method(part)) for part in parts]
    assert all(torch.equal(t, old) for (t, _), old in zip(pairs, before, strict=True))
    method.after_step(images, merge_outputs(outputs))
    for (target, online), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(target, 0.9 * old + 0.1 * online.detach())
    assert method.steps == 1


def test_byol_predicts_with_the_online_network_alone():
    method, _ = make("BYOL")
    assert isinstance(method.target, MomentumEncoder)
    online = {id(p) for p in method.parameters() if p.requires_grad}
    assert {id(p) for p in method.predictor.parameters()} <= online
    assert not any("predictor" in n for n, _ in method.target.named_parameters())


def test_tico_takes_a_step_into_its_covariance_once_however_it_is_cut():
    whole, images = make("TiCo")
    past = whole.C.clone()
    out = whole(images)
    assert torch.equal(whole.C, past)
    whole.after_step(images, merge_outputs([(1.0, out)]))
    z = out["z"].detach()
    torch.testing.assert_close(whole.C, 0.7 * past + 0.3 * z.T @ z / N)


# ------------------------------------------------------------------------------------ SimSiam


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_simsiam_keeps_the_predictors_learning_rate_while_the_others_decay(decay_norm_and_bias):
    method, _ = make("SimSiam")
    optimizer = SGD(method, lr=0.1, decay_norm_and_bias=decay_norm_and_bias)
    trainer = SimpleNamespace(
        optimizer=optimizer,
        step=50,
        total_steps=100,
        unit=10,
    )
    schedules = Schedules({"optimizer.lr": Cosine()})
    schedules.attach(trainer)
    schedules.before_train(trainer)
    schedules.before_step(trainer)
    predictor = {id(p) for p in method.predictor.parameters()}
    grouped = [(id(p), group["lr"]) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(p for p, _ in grouped) == sorted(id(p) for p in method.parameters())
    for p, lr in grouped:
        assert lr == pytest.approx(0.1 if p in predictor else 0.05)


# ---------------------------------------------------------------------------------- whitening


def test_whitened_rows_have_mean_zero_and_no_correlations():
    w = whiten(torch.randn(2, 50, D) @ torch.randn(D, D) + 3, eps=0.0)
    for view in w:
        torch.testing.assert_close(view.mean(dim=0), torch.zeros(D), atol=1e-5, rtol=0)
        torch.testing.assert_close(view.T.cov(), torch.eye(D), atol=1e-4, rtol=0)


def test_collapsed_embeddings_are_whitened_to_something_finite():
    assert whiten(torch.ones(2, 8, D), eps=1e-4).isfinite().all()


def test_a_covariance_without_an_inverse_gives_nan_in_its_view_alone():
    z = torch.randn(2, 8, D)
    z[1] = -1 - torch.arange(D)
    z[1, 0, 0] += 8  # the factorisation gets half-way
    w = whiten(z, eps=0.0)
    assert w[0].isfinite().all() and w[1].isnan().all()


def test_w_mse_refuses_parts_that_are_too_small_and_batches_below_a_part():
    with pytest.raises(ConfigError, match="too small") as caught:
        make("WMSE", part=2 * D - 1)
    assert caught.value.key == "part"
    method, images = make("WMSE", part=N + 1)
    with pytest.raises(ValueError, match=rf"{N} over all ranks.*at least {N + 1}"):
        method(images)


def test_w_mse_whitens_each_row_once_an_iteration_in_an_order_of_the_step(monkeypatch):
    seen = []
    monkeypatch.setattr(w_mse, "whiten", lambda z, eps: seen.append(z) or whiten(z, eps))
    method, images = make("WMSE", iterations=2)
    method.part = 4
    method(images)
    z = torch.stack(method.encoder(torch.cat(images.views)).split(N))  # [V, N, D]
    assert [part.shape[1] for part in seen] == [5, 4, 5, 4]
    orders = []
    for parts in (seen[:2], seen[2:]):
        rows = torch.cat(parts, dim=1)
        same = (rows[0][:, None] - z[0]).abs().amax(dim=2) < 1e-6  # [N, N]
        orders.append(same.float().argmax(dim=1).tolist())
        assert sorted(orders[-1]) == list(range(N))
        torch.testing.assert_close(rows, z[:, orders[-1]])
    assert orders[0] != orders[1]
    seen.clear()
    method(images)
    torch.testing.assert_close(seen[0][0], z[0, orders[0][:5]])
    seen.clear()
    method.after_step(images, {})
    method(images)
    assert not torch.allclose(seen[0][0], z[0, orders[0][:5]])


# ----------------------------------------------------------------------------------- the rest


def test_vicregs_terms_by_hand_are_its_equations():
    z_1, z_2 = torch.randn(N, D), 0.5 * torch.randn(N, D)
    for ours, theirs in zip(vicreg_terms(z_1, z_2), equation_of_vicreg(z_1, z_2), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_matches_stay_within_an_image_and_may_share_a_partner():
    z = torch.tensor([[[0.0], [5.0], [1.0]], [[9.0], [1.0], [2.0]]])  # [2, 3, 1]
    other = torch.tensor([[[0.9], [7.0]], [[0.0], [3.0]]])  # [2, 2, 1]
    kept, partner = match(torch.cdist(z, other), gamma=2)
    assert kept.tolist() == [[0, 2], [1, 2]]
    assert partner.tolist() == [[0, 0], [0, 1]]
    for gamma in (None, 20):
        assert match(torch.cdist(z, other), gamma)[0].tolist() == [[0, 1, 2]] * 2


def test_barlow_twins_is_zero_at_perfect_agreement_without_redundancy():
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    torch.testing.assert_close(cross_correlation(z, 5 * z + 1), torch.eye(2), atol=1e-4, rtol=0)


def test_mmcr_wants_all_views_of_an_image_alike():
    method, _ = make("MMCR")
    images = batch(N, size=5, views=4)
    alike = method(images._replace(views=images.views[:1] * 4))
    torch.testing.assert_close(alike["centroid_length"], torch.tensor(1.0))
    apart = method(images)
    assert apart["centroid_length"] < 0.99 and alike["loss"] < apart["loss"]


def test_lejepa_draws_unit_directions_new_at_each_step_and_alike_on_each_rank():
    (method, images), (other, _) = make("LeJEPA", slices=500), make("LeJEPA", slices=500)
    z = torch.zeros(1, 8)
    first = method.directions(z)  # [8, 500]
    torch.testing.assert_close(first.norm(dim=0), torch.ones(500))
    assert first.mean(dim=1).abs().max() < 0.1
    torch.testing.assert_close(first @ first.T / 500, torch.eye(8) / 8, atol=0.03, rtol=0)
    assert torch.equal(first, other.directions(z))
    method.after_step(images, {})
    assert not torch.allclose(first, method.directions(z))


def test_sigreg_tells_a_gaussian_from_a_collapsed_a_stretched_and_a_shifted_one():
    torch.manual_seed(1)
    z, directions = torch.randn(1000, D), torch.eye(D)
    gaussian = sigreg(z, directions)
    assert gaussian < 2
    for wrong in (torch.zeros_like(z), 2 * z, z + 1, z.sign()):
        assert sigreg(wrong, directions) > 10 * gaussian


@pytest.mark.parametrize(
    "change",
    [
        ("BYOL", {"momentum": 1.5}),
        ("BarlowTwins", {"lam": 0.0}),
        ("VICReg", {"mu": -1.0}),
        ("VICRegL", {"alpha": 2.0}),
        ("VICRegL", {"gamma": 0}),
        ("VICRegL", {"feature_gamma": 0}),
        ("WMSE", {"part": 1}),
        ("WMSE", {"iterations": 0}),
        ("TiCo", {"beta": 1.1}),
        ("MMCR", {"lam": -0.1}),
        ("LeJEPA", {"lam": 1.2}),
        ("LeJEPA", {"slices": 0}),
    ],
    ids=str,
)
def test_nonsense_is_refused(change):
    name, arguments = change
    with pytest.raises(ConfigError, match=r"too small|out of range"):
        make(name, **arguments)
