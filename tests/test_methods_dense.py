"""PIRL, CMC, CPC and DenseCL against their equations written out; color."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo import config, experiment
from ssl_zoo.backbones import LabPair, Timm
from ssl_zoo.config import ConfigError, Part
from ssl_zoo.core import Batch
from ssl_zoo.heads import MLP, Linear
from ssl_zoo.losses import NCE
from ssl_zoo.memory import MemoryBank, MoCoQueue
from ssl_zoo.methods.cmc import CMC
from ssl_zoo.methods.cpc import CPC, RowsAbove
from ssl_zoo.methods.densecl import DenseCL
from ssl_zoo.methods.pirl import PIRL
from ssl_zoo.ops.color import rgb_to_lab
from ssl_zoo.ops.masking import random_order
from ssl_zoo.ops.patches import cut
from ssl_zoo.system import rng

SAMPLES, N, D, K = 40, 3, 4, 6


def assert_same_with_gradients(method: nn.Module, ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs)
    trained = [p for p in method.parameters() if p.requires_grad]
    a, b = (torch.autograd.grad(loss, trained) for loss in (ours, theirs))
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert any(g.abs().max() > 1e-4 for g in a)


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def nce(q: Tensor, positive: Tensor, negatives: Tensor, log_z: Tensor, t: float) -> Tensor:
    """-log h(positive) - sum log(1 - h(negative)), h = P / (P + K / n), P = exp(q.k / t) / Z."""
    noise = len(negatives) / SAMPLES
    p = torch.exp(q @ positive / t) / log_z.exp()
    loss = -torch.log(p / (p + noise))
    for k in negatives:
        p = torch.exp(q @ k / t) / log_z.exp()
        loss = loss - torch.log(noise / (p + noise))
    return loss


def info_nce(q: Tensor, positive: Tensor, negatives: Tensor, t: float) -> Tensor:
    e = torch.exp(q @ positive / t)
    return -torch.log(e / (e + sum(torch.exp(q @ k / t) for k in negatives)))


# Color


def lab_of(rgb: list[float]) -> list[float]:
    """CIE's definition for one pixel, with the white computed from the primaries."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
    rows = [
        (0.4124564, 0.3575761, 0.1804375),
        (0.2126729, 0.7151522, 0.0721750),
        (0.0193339, 0.1191920, 0.9503041),
    ]
    ratios = [(x * r + y * g + z * b) / (x + y + z) for x, y, z in rows]
    f = [v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in ratios]
    return [116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]


def test_lab_is_cies_formula_pixel_by_pixel():
    images = torch.rand(2, 3, 4, 5)
    images[0, :, 0] *= 0.02  # where both of its branches are straight
    lab = rgb_to_lab(images)
    for n in range(2):
        for i in range(4):
            for j in range(5):
                expected = torch.tensor(lab_of(images[n, :, i, j].tolist()))
                torch.testing.assert_close(lab[n, :, i, j], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((1, 1, 1), (100, 0, 0)),
        ((0.5, 0.5, 0.5), (53.389, 0, 0)),
        ((1, 0, 0), (53.241, 80.092, 67.203)),
        ((0, 1, 0), (87.735, -86.183, 83.179)),
        ((0, 0, 1), (32.297, 79.188, -107.860)),
    ],
)
def test_lab_of_the_colors_that_tables_give(rgb, lab):
    found = rgb_to_lab(torch.tensor(rgb).float().view(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(found, torch.tensor(lab).float(), rtol=0, atol=0.01)


def test_lab_is_as_exact_under_autocast():
    images = torch.rand(2, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = rgb_to_lab(images)
    torch.testing.assert_close(found, rgb_to_lab(images), rtol=0, atol=0)


def pair() -> LabPair:
    return LabPair(of=Part(tiny.TinyNet, width=5))


def test_one_half_of_the_pair_sees_lightness_and_the_other_color():
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)[:, :, None, None]
    x_l, x_ab = LabPair.views(corners)
    assert x_l.shape == (8, 1, 1, 1) and x_ab.shape == (8, 2, 1, 1)
    for x in (x_l, x_ab):
        torch.testing.assert_close(
            x.amin(dim=(0, 2, 3)), -torch.ones(x.shape[1]), rtol=0, atol=0.01
        )
        torch.testing.assert_close(x.amax(dim=(0, 2, 3)), torch.ones(x.shape[1]), rtol=0, atol=0.01)
    network, gray = pair(), torch.rand(2, 1, 8, 8).expand(2, 3, 8, 8)
    features = network(gray)
    assert features.shape == (2, 10) and network.num_features == 10
    assert not torch.allclose(features[0, :5], features[1, :5])
    torch.testing.assert_close(features[0, 5:], features[1, 5:], rtol=1e-3, atol=1e-4)


# CMC


def cmc() -> tuple[CMC, Batch]:
    bank = Part(MemoryBank, num_negatives=K, momentum=0.5)
    loss = Part(NCE, temperature=0.3)
    method = CMC(pair(), SAMPLES, head=Part(Linear, out_features=D), bank=bank, loss=loss)
    index = torch.tensor([7, 0, 31])
    return method, Batch([torch.rand(N, 3, 8, 8)], index, index % 10)


def test_cmc_is_nce_from_each_view_to_the_other_views_bank():
    method, batch = cmc()
    out = method(batch)
    backbone, heads = method.encoder.backbone, method.encoder.head
    x_l, x_ab = LabPair.views(batch.views[0])
    total = 0
    for i, row in enumerate(batch.index):
        z_l = unit(heads.l(backbone.l(x_l[i : i + 1]))[0])
        z_ab = unit(heads.ab(backbone.ab(x_ab[i : i + 1]))[0])
        torch.testing.assert_close(out["z_l"][i, 0], z_l)
        torch.testing.assert_close(out["z_ab"][i, 0], z_ab)
        for z, bank, loss in (
            (z_l, method.bank_ab, method.loss),
            (z_ab, method.bank, method.loss_ab),
        ):
            negatives = bank.stored[bank._other_rows(batch.index)]
            total = total + nce(z, bank.stored[row], negatives, loss.log_z, 0.3)
    assert_same_with_gradients(method, out["loss"], total / N)


def test_each_cmc_bank_keeps_its_own_view():
    method, batch = cmc()
    before = {name: getattr(method, name).stored.clone() for name in ("bank", "bank_ab")}
    out = {name: value.detach() for name, value in method(batch).items()}
    method.after_step(batch, out)
    for name, z in (("bank", out["z_l"]), ("bank_ab", out["z_ab"])):
        expected = before[name].clone()
        for i, row in enumerate(batch.index):
            expected[row] = unit(expected[row] + z[i, 0])
        torch.testing.assert_close(getattr(method, name).stored, expected)


def test_cmc_refuses_a_network_without_two_halves(root):
    cfg = config.load(root / "configs/cifar10/cmc.yaml")
    experiment.parse(cfg)
    plain = config.load(
        root / "configs/cifar10/cmc.yaml", [("backbone", {"type": "Timm", "name": "resnet18"})]
    )
    with pytest.raises(ConfigError, match="LabPair"):
        experiment.parse(plain)


# PIRL


BANK = Part(MemoryBank, num_negatives=K, momentum=0.5)


SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}


def pirl(
    transform: str, memory: Part = BANK, backbone: nn.Module | None = None
) -> tuple[PIRL, Batch]:
    method = PIRL(
        backbone or tiny.TinyNet(),
        SAMPLES,
        transform=transform,
        head=Part(Linear, out_features=D),
        memory=memory,
        loss=Part(NCE, temperature=0.3),
        weight=0.3,
        grid=2,
        patch_size=5,
    )
    return method, tiny.batch(N, size=12, num_samples=SAMPLES)


def g_of(method: PIRL, x: Tensor, key: Tensor) -> Tensor:
    """g(v_It) of one image [C, H, W] with its key [1]."""
    v = method.encoder.backbone
    if method.transform == "rotation":
        turns = int(rng.integers(4, key))
        for _ in range(turns):
            x = x.transpose(1, 2).flip(1)  # a quarter, anticlockwise
        return unit(method.g(v(x[None]))[0])
    patches = cut(x[None], 2, 5, key)[0]
    outputs = [method.g(v(patches[p][None]))[0] for p in random_order(key, 4)[0]]
    return unit(method.join(torch.cat(outputs)))


@pytest.mark.parametrize("transform", ["jigsaw", "rotation"])
def test_pirl_is_nce_of_the_transformed_and_of_the_image_to_the_bank(transform):
    method, batch = pirl(transform)
    out = method(batch)
    bank, key = method.memory, method.random_key(transform, batch.index)
    negatives = bank.stored[bank._other_rows(batch.index)]
    total = 0
    for i, row in enumerate(batch.index):
        f = unit(method.encoder(batch.views[0][i : i + 1])[0])
        g = g_of(method, batch.views[1][i], key[i : i + 1])
        of = [nce(z, bank.stored[row], negatives, method.loss.log_z, 0.3) for z in (g, f)]
        total = total + 0.3 * of[0] + 0.7 * of[1]
    assert_same_with_gradients(method, out["loss"], total / N)


@pytest.mark.parametrize("transform", ["jigsaw", "rotation"])
def test_the_bank_keeps_the_untransformed_image(transform):
    method, batch = pirl(transform)
    expected = method.memory.stored.clone()
    f = F.normalize(method.encoder(batch.views[0]), dim=1).detach()
    for i, row in enumerate(batch.index):
        expected[row] = unit(expected[row] + f[i])
    method.after_step(batch, {name: value.detach() for name, value in method(batch).items()})
    torch.testing.assert_close(method.memory.stored, expected)


@pytest.mark.parametrize("transform", ["jigsaw", "rotation"])
def test_a_transform_is_drawn_for_the_sample_and_the_step(transform):
    method, _ = pirl(transform)
    batch = tiny.batch(16, size=12, num_samples=SAMPLES)
    encode = method.encode_jigsaw if transform == "jigsaw" else method.encode_rotation
    x, back = batch.views[1], torch.arange(15, -1, -1)

    def drawn(index: Tensor) -> Tensor:
        return method.random_key(transform, index)

    first = encode(x, drawn(batch.index))
    torch.testing.assert_close(encode(x[back], drawn(batch.index[back]))[back], first)
    same_image = encode(x[:1].expand_as(x), drawn(batch.index))  # transformed differently
    assert len(same_image.detach().mul(1e4).round().unique(dim=0)) >= 4
    method.steps += 1
    assert not torch.allclose(encode(x, drawn(batch.index)), first)


@pytest.mark.parametrize(
    "backbone",
    [
        lambda: tiny.TinyNet(norm=True),
        lambda: Timm(name="resnet18", in_chans=1, options=SMALL, grad_checkpointing=True),
    ],
    ids=["plain", "recomputed"],
)
def test_pirls_running_statistics_are_of_whole_images_and_of_no_patches(backbone):
    method, batch = pirl("jigsaw", backbone=backbone())
    alone = copy.deepcopy(method.encoder.backbone)
    for _ in range(2):
        method(batch)["loss"].backward()
        alone(batch.views[0]).sum().backward()
    expected = {k: v for k, v in alone.state_dict().items() if "running" in k}
    found = method.encoder.backbone.state_dict()
    assert expected and not any(v.isnan().any() for v in expected.values())
    torch.testing.assert_close({k: found[k] for k in expected}, expected, rtol=0, atol=0)


def test_pirl_without_a_bank_is_refused():
    with pytest.raises(ConfigError, match="memory bank") as caught:
        pirl("jigsaw", Part(MoCoQueue, size=K))
    assert caught.value.key == "memory.type"


def test_pirl_turns_square_views_alone():
    method, batch = pirl("rotation")
    views = [batch.views[0], batch.views[1][..., :-1]]
    with pytest.raises(ValueError, match="square views, found 12 x 11"):
        method(batch._replace(views=views))


# CPC


def cpc(directions: int = 1, rows_down: tuple[int, ...] = (1, 3)) -> tuple[CPC, Batch]:
    method = CPC(
        tiny.TinyNet(),
        patch_size=6,
        stride=3,
        rows_down=list(rows_down),
        directions=directions,
        out_features=D,
        hidden_features=6,
        depth=2,
        temperature=0.5,
    )
    return method, tiny.batch(2, size=18, views=1)


def turned(quarters: int, i: int, j: int) -> tuple[int, int]:
    """Where a place of a grid of 5 x 5 comes to lie when the grid is turned to the left."""
    for _ in range(quarters):
        i, j = 4 - j, i
    return i, j


@pytest.mark.parametrize("steps", [[(1, 0)], [(1, 0), (0, -1), (-1, 0), (0, 1)]])
def test_cpc_tells_the_patch_further_on_from_all_others(steps):
    """Down; or down, left, up and right, which a quarter turn to the left each makes down."""
    method, batch = cpc(directions=len(steps))
    rows = range(5)  # 18 = 6 + 4 * 3
    places = [(n, i, j) for n in range(2) for i in rows for j in rows]
    patches = [batch.views[0][n, :, 3 * i :, 3 * j :][:, :6, :6] for n, i, j in places]
    z = torch.cat([method.encoder.backbone(patch[None]) for patch in patches])
    z = dict(zip(places, z, strict=True))

    def linear(layer: nn.Conv2d, value: Tensor) -> Tensor:
        return layer.weight[:, :, 0, 0] @ value + layer.bias

    y = {place: linear(method.w, z[place]) for place in places}
    every = torch.stack(list(y.values()))
    losses = []
    for quarters, (down, right) in enumerate(steps):
        grid = torch.empty(2, 8, 5, 5)
        for n, i, j in places:
            grid[(n, slice(None), *turned(quarters, i, j))] = z[n, i, j]
        c = method.contexts[quarters](grid)
        for w_k, k in zip(method.w_k[quarters], (1, 3), strict=True):
            for n, i, j in places:
                goal = (n, i + k * down, j + k * right)
                if goal in y:
                    prediction = linear(w_k, c[(n, slice(None), *turned(quarters, i, j))]) / 0.5
                    total = torch.exp(every @ prediction).sum()
                    losses.append(-torch.log(torch.exp(y[goal] @ prediction) / total))
    assert len(losses) == len(steps) * 2 * 5 * (4 + 2)
    assert_same_with_gradients(method, method(batch)["loss"], sum(losses) / len(losses))


def test_the_context_sees_its_own_row_and_those_above_and_nothing_below():
    context, z = RowsAbove(3, 4, depth=4), torch.randn(1, 3, 6, 6)
    changed = z.clone()
    changed[:, :, 3] += 1
    difference = (context(z) - context(changed)).abs().amax(dim=(0, 1, 3))  # [6], by row
    assert not difference[:3].any()
    assert (difference[3:] > 0).all()


def test_cpc_refuses_views_without_a_row_to_predict():
    method, _ = cpc()
    with pytest.raises(ValueError, match="3 rows down"):
        method(tiny.batch(2, size=12, views=1))


def test_cpc_in_four_directions_refuses_views_too_narrow_for_a_prediction_sideways():
    method, _ = cpc(directions=4)
    wide = tiny.batch(2, size=18, views=1)
    narrow = wide._replace(views=[wide.views[0][..., :12]])
    with pytest.raises(ValueError, match="5 x 3 patches, too few to predict 3 rows in each"):
        method(narrow)
    assert cpc(directions=1)[0](narrow)["loss"].isfinite()


def test_cpcs_temperature_may_be_scheduled():
    (method, batch), (hot, _) = cpc(), cpc()
    hot.load_state_dict(method.state_dict())
    before = method(batch)["loss"]
    vars(hot)["temperature"] = 2.0  # as a schedule does
    assert not torch.isclose(hot(batch)["loss"], before)
    vars(hot)["temperature"] = method.temperature
    assert torch.equal(hot(batch)["loss"], before)


def test_cpc_refuses_views_smaller_than_a_patch():
    method, _ = cpc()
    with pytest.raises(ValueError, match="views make 0 x 0 patches"):
        method(tiny.batch(2, size=5, views=1))


@pytest.mark.parametrize("rows_down", [[], [0], [2, 2]])
def test_cpc_refuses_rows_that_are_not_below(rows_down):
    with pytest.raises(ConfigError, match="rows_down"):
        cpc(rows_down=rows_down)


# DenseCL


def densecl(weight: float = 0.4) -> tuple[DenseCL, Batch]:
    method = DenseCL(
        tiny.TinyNet(),
        head=Part(MLP, out_features=D),
        dense_head=Part(MLP, out_features=5),
        size=7,
        momentum=0.9,
        temperature=0.3,
        weight=weight,
    )
    with torch.no_grad():  # away from where keys equal queries
        for p in method.key_encoder.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method, tiny.batch(N, size=6)


def test_densecl_is_moco_for_the_image_and_for_each_place_with_its_match():
    method, batch = densecl()
    keys = method.key_encoder.encoder
    image_losses, place_losses = [], []
    for x_q, x_k in zip(*batch.views, strict=True):
        f_q = method.encoder.backbone.feature_map(x_q[None])[0]  # [F, 3, 3]
        q = unit(method.encoder.head(f_q.mean(dim=(1, 2))[None])[0])
        with torch.no_grad():
            f_k = keys.backbone.feature_map(x_k[None])[0]
            k = unit(keys.head(f_k.mean(dim=(1, 2))[None])[0])
        image_losses.append(info_nce(q, k, method.queue.keys, 0.3))
        places = [(i, j) for i in range(3) for j in range(3)]
        for i, j in places:
            r = unit(method.encoder.dense_head(f_q[:, i, j][None])[0])
            cosines = [F.cosine_similarity(f_q[:, i, j], f_k[:, a, b], dim=0) for a, b in places]
            a, b = places[max(range(9), key=lambda s: cosines[s].item())]
            with torch.no_grad():
                t = unit(keys.dense_head(f_k[:, a, b][None])[0])
            place_losses.append(info_nce(r, t, method.queue.dense_keys, 0.3))
    expected = 0.6 * sum(image_losses) / N + 0.4 * sum(place_losses) / (9 * N)
    assert_same_with_gradients(method, method(batch)["loss"], expected)


def test_the_dense_queue_takes_the_mean_of_an_images_keys():
    method, batch = densecl()
    out = {name: value.detach() for name, value in method(batch).items()}
    keys = method.key_encoder.encoder
    _, k, t = keys(batch.views[1])
    queue, dense_queue = method.queue.keys.clone(), method.queue.dense_keys.clone()
    method.after_step(batch, out)
    for i in range(N):
        torch.testing.assert_close(method.queue.keys[i], unit(k[i]).detach())
        torch.testing.assert_close(method.queue.dense_keys[i], unit(t[i].mean(dim=0)).detach())
    assert torch.equal(method.queue.keys[N:], queue[N:])
    assert torch.equal(method.queue.dense_keys[N:], dense_queue[N:])


def test_densecls_temperature_is_read_at_each_step():
    method, batch = densecl()
    before = method(batch)["loss"]
    method.temperature = 3.0  # as a schedule sets it
    assert method(batch)["loss"] != before


def test_keys_start_as_queries_and_follow_once_a_step_heads_included():
    parts = {"head": Part(MLP, out_features=D), "dense_head": Part(MLP, out_features=D)}
    method, batch = DenseCL(tiny.TinyNet(), **parts, size=7, momentum=0.9), tiny.batch(N, size=6)
    online, keys = method.encoder, method.key_encoder.encoder
    pairs = list(zip(online.parameters(), keys.parameters(), strict=True))
    assert all(torch.equal(p, k) for p, k in pairs)
    out = {name: value.detach() for name, value in method(batch).items()}
    with torch.no_grad():
        for p, _ in pairs:
            p.add_(1.0)
    method.after_step(batch, out)
    for p, k in pairs:
        torch.testing.assert_close(p - k, torch.full_like(k, 0.9))


def test_keys_are_normalised_in_other_company_and_put_back_in_order():
    heads = {"head": Part(MLP, out_features=D), "dense_head": Part(MLP, out_features=D)}
    x = torch.randn(8, 1, 6, 6)
    backbone = tiny.TinyNet(norm=True, bn_groups=2)
    method = DenseCL(backbone, **heads, size=7)
    keys = method.key_encoder.encoder
    assert not torch.allclose(method.encode_keys(x)[1], keys(x)[1], atol=1e-4)
    keys.eval()  # each image on its own: only the order could differ
    for found, expected in zip(method.encode_keys(x), keys(x), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "vit_tiny_patch16_224",
            {"img_size": 56, "patch_size": 14, "embed_dim": 32, "depth": 1, "num_heads": 2},
        ),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 56, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1]},
        ),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [4, 4, 8, 8]}),
    ],
)
def test_densecl_trains_all_of_every_kind_of_network_with_a_map(name, options):
    backbone = Timm(name=name, options=options)
    heads = {"head": Part(MLP, out_features=D), "dense_head": Part(MLP, out_features=D)}
    method = DenseCL(backbone, **heads, size=7)
    batch = Batch([torch.randn(2, 3, 56, 56)] * 2, torch.arange(2), torch.zeros(2))
    method(batch)["loss"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
