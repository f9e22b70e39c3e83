"""Pretext tasks and the supervised baseline against their equations written out plainly."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from tiny import TinyNet
from torch.nn import functional as F

from ssl_zoo.backbones import Timm
from ssl_zoo.config import ConfigError, Part
from ssl_zoo.core import Batch
from ssl_zoo.heads import Linear
from ssl_zoo.methods.colorization import Colorization, color_bins
from ssl_zoo.methods.jigsaw import Jigsaw, distant_permutations
from ssl_zoo.methods.relative_location import RelativeLocation, keep_one_channel
from ssl_zoo.methods.rotation import Rotation
from ssl_zoo.methods.supervised import Supervised
from ssl_zoo.ops.color import rgb_to_lab
from ssl_zoo.system import distributed, rng
from ssl_zoo.testing.ranks import on_ranks

N, CELL = 6, 4
HEAD = Part(Linear, out_features=5)
VIT = {
    "name": "vit_tiny_patch16_224",
    "options": {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2},
}


def batch(channels: int = 1, size: int = 3 * CELL, n: int = N) -> Batch:
    images = torch.rand(n, channels, size, size)
    return Batch([images], 10 + torch.arange(n), torch.arange(n) % 3)


def cell(image: torch.Tensor, number: int) -> torch.Tensor:
    row, column = divmod(int(number), 3)
    return image[:, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


def cross_entropy(logits: torch.Tensor, target: int) -> torch.Tensor:
    return -torch.log(torch.exp(logits[target]) / torch.exp(logits).sum())


def assert_same_loss_and_gradients(method, ours, expected) -> None:
    torch.testing.assert_close(ours, expected)
    parameters = list(method.parameters())
    for a, b in zip(
        torch.autograd.grad(ours, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


# Supervised.


def supervised(**kwargs) -> Supervised:
    return Supervised(TinyNet(), 3, torch.tensor([0, 1, 2]), **kwargs)


@pytest.mark.parametrize("s", [0.0, 0.1])
def test_supervised_is_cross_entropy_with_smoothed_labels(s):
    method, data = supervised(label_smoothing=s), batch()
    logits = method.encoder(data.views[0])
    expected = 0
    for row, label in zip(logits, data.label, strict=True):
        y = [(1 - s) * (c == label) + s / 3 for c in range(3)]
        expected = expected + sum(y[c] * cross_entropy(row, c) for c in range(3)) / N
    out = method(data)
    assert_same_loss_and_gradients(method, out["loss"], expected)
    hits = sum(int(row.argmax() == label) for row, label in zip(logits, data.label, strict=True))
    assert out["top1"].item() == pytest.approx(100 * hits / N)


def test_supervised_says_that_labels_are_missing():
    with pytest.raises(ValueError, match="2 of 3 have none"):
        Supervised(TinyNet(), 2, torch.tensor([-1, 1, -1]))
    with pytest.raises(ConfigError, match="label_smoothing: out of range"):
        supervised(label_smoothing=1.5)


# Rotation.


def test_rotation_of_views_that_are_not_square_is_refused():
    views = [batch().views[0][..., :-1]]
    with pytest.raises(ValueError, match="expected square views"):
        Rotation(TinyNet())(batch()._replace(views=views))


def test_rotation_turns_each_image_four_times_and_asks_how_often():
    method, data = Rotation(TinyNet()), batch()
    expected = 0
    for image in data.views[0]:
        for turns in range(4):
            turned = torch.from_numpy(np.rot90(image.numpy(), turns, axes=(1, 2)).copy())
            expected = expected + cross_entropy(method.encoder(turned[None])[0], turns) / (4 * N)
    assert_same_loss_and_gradients(method, method(data)["loss"], expected)


# Jigsaw.


def jigsaw(**kwargs) -> Jigsaw:
    kwargs = {"num_permutations": 7, "patch_size": CELL, "hidden_features": 6} | kwargs
    return Jigsaw(TinyNet(width=4), head=HEAD, **kwargs)


def test_jigsaw_asks_for_the_order_of_tiles_that_are_each_normalized():
    method, data = jigsaw(), batch()
    k = rng.integers(7, method.random_key("permutation", data.index))
    assert len(set(k.tolist())) > 1
    expected = 0
    for image, number in zip(data.views[0], k, strict=True):
        z = []
        for place in method.permutations[number]:
            tile = cell(image, place)
            tile = (tile - tile.mean()) / (tile.var(correction=0) + 1e-5).sqrt()
            z.append(F.relu(method.encoder(tile[None])[0]))
        expected = expected + cross_entropy(method.classifier(torch.cat(z)), number) / N
    assert_same_loss_and_gradients(method, method(data)["loss"], expected)


def test_jigsaw_cannot_see_the_light_and_contrast_of_a_tile():
    method, data = jigsaw(), batch()
    other = data.views[0].clone()
    other[:, :, :CELL, :CELL] = 3 * other[:, :, :CELL, :CELL] + 2
    losses = [method(data._replace(views=[x]))["loss"] for x in (data.views[0], other)]
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [lambda: jigsaw(patch_size=3), lambda: relative(drop=False)])
def test_what_is_asked_depends_on_the_sample_and_the_step(make):
    method, data = make(), batch()
    losses = [method(data._replace(views=[data.views[0]]))["loss"]]
    turned = Batch([data.views[0].flip(0)], data.index.flip(0), data.label.flip(0))
    losses += [method(turned)["loss"]]
    torch.testing.assert_close(*losses)
    method.after_step(data, {})
    assert not torch.isclose(method(data)["loss"], losses[0])


def test_permutations_are_far_apart_and_always_the_same():
    found = distant_permutations(100)
    assert (np.sort(found, axis=1) == np.arange(9)).all()
    assert len({tuple(row) for row in found}) == 100
    distance = (found[:, None] != found[None]).sum(axis=2)[np.triu_indices(100, 1)]
    assert distance.mean() > 8.05  # 8.00 for permutations drawn at random
    distant_permutations.cache_clear()
    assert (distant_permutations(100) == found).all()
    assert (distant_permutations(20) == found[:20]).all()


def test_the_next_permutation_is_the_farthest_from_those_before():
    found, every = distant_permutations(14), np.array(list(permutations(range(9))), np.int8)
    for count in (1, 5, 13):
        distance = sum((every != one).sum(axis=1) for one in found[:count])
        for one in found[:count]:
            distance[(every == one).all(axis=1)] = -1
        assert sum((found[count] != one).sum() for one in found[:count]) == distance.max()


def test_jigsaw_refuses_nonsense():
    with pytest.raises(ConfigError, match="num_permutations: out of range"):
        jigsaw(num_permutations=1)
    with pytest.raises(ConfigError, match="hidden_features: too small"):
        jigsaw(hidden_features=0)
    with pytest.raises(ValueError, match="do not fit"):
        jigsaw(patch_size=5)(batch())


# Relative location.


def relative(drop: bool = True, **kwargs) -> RelativeLocation:
    kwargs = {"patch_size": CELL, "jitter": 0, "hidden_features": 6} | kwargs
    return RelativeLocation(TinyNet(width=4), head=HEAD, drop_colors=drop, **kwargs)


def test_relative_location_asks_for_the_side_of_the_second_patch():
    method, data = relative(), batch(n=24)
    y = rng.integers(8, method.random_key("neighbour", data.index))
    assert len(set(y.tolist())) == 8
    sides = [0, 1, 2, 3, 5, 6, 7, 8]
    expected = 0
    for image, side in zip(data.views[0], y, strict=True):
        pair = torch.stack([cell(image, 4), cell(image, sides[side])])
        z = F.relu(method.encoder(pair)).flatten()
        expected = expected + cross_entropy(method.classifier(z), side) / 24
    assert_same_loss_and_gradients(method, method(data)["loss"], expected)


def test_one_channel_of_each_patch_is_kept_and_the_others_are_faint_noise():
    patches, key = torch.randn(40, 2, 3, 8, 8), torch.arange(40)
    found = keep_one_channel(patches, key)
    same = (found == patches).flatten(3).all(dim=3)  # [N, P, C]
    assert (same.sum(dim=2) == 1).all()
    assert same.flatten(0, 1).any(dim=0).all()  # each channel somewhere
    assert not torch.equal(same[:, 0], same[:, 1])
    kept = patches.std(dim=(3, 4))[same]
    noise = found.std(dim=(3, 4))[~same].view(-1, 2).mean(dim=1)
    torch.testing.assert_close(noise / kept, torch.full_like(kept, 0.01), atol=0.004, rtol=0)
    torch.testing.assert_close(keep_one_channel(patches.flip(0), key.flip(0)), found.flip(0))


def test_gray_patches_stay_as_they_are():
    patches = torch.randn(3, 2, 1, 4, 4)
    assert torch.equal(keep_one_channel(patches, torch.arange(3)), patches)


# Colorization.


def colorization(**kwargs) -> Colorization:
    return Colorization(TinyNet(in_chans=3, width=4), hidden_features=6, **kwargs)


def share(x: torch.Tensor, index: torch.Tensor | None = None):
    return [(part, index) for part in x.split(2)]


def frequencies(method: Colorization, images: torch.Tensor) -> torch.Tensor:
    """Of colors in `images`, smoothed: p [Q], pixel by pixel and bin by bin."""
    bins = method.bins.double()
    p = torch.zeros(len(bins), dtype=torch.float64)
    for image in rgb_to_lab(images)[:, 1:, ::4, ::4].double():
        for color in image.flatten(1).T:
            distance = (bins - color).norm(dim=1)
            five = distance.argsort()[:5]
            z = torch.exp(-(distance[five] ** 2) / (2 * 5.0**2))
            p[five] += z / z.sum()
    p = p / p.sum()
    smooth = torch.zeros_like(p)
    for q in range(len(bins)):
        kernel = torch.exp(-((bins - bins[q]) ** 2).sum(dim=1) / (2 * 5.0**2))
        smooth += p[q] * kernel / kernel.sum()
    return smooth


def test_bins_cover_what_srgb_reaches():
    bins = color_bins(10)
    assert bins.shape == (261, 2) and (bins % 10 == 0).all()
    assert [0, 0] in bins.tolist() and [110, 0] not in bins.tolist()
    ab = rgb_to_lab(torch.rand(4, 3, 16, 16))[:, 1:].movedim(1, 3).flatten(0, 2)
    distance = (ab[:, None] - bins).abs().amax(dim=2)  # the bins are squares
    assert distance.amin(dim=1).max() <= 5


def test_a_color_is_spread_over_its_five_closest_bins():
    method = colorization()
    ab = 100 * torch.rand(2, 2, 3, 3) - 50
    closest, z = method.encode(ab)  # [2, 5, 3, 3]
    for n, row, column in [(0, 0, 0), (1, 2, 1), (0, 1, 2)]:
        distance = (method.bins - ab[n, :, row, column]).norm(dim=1)
        five = distance.argsort()[:5]
        weight = torch.exp(-(distance[five] ** 2) / (2 * 5.0**2))
        assert closest[n, :, row, column].tolist() == five.tolist()
        torch.testing.assert_close(z[n, :, row, column], weight / weight.sum())


def test_rare_colors_weigh_more_and_the_mean_weight_is_one():
    method, images = colorization(), torch.rand(4, 3, 8, 8)
    method.before_epoch(share(images))
    p = frequencies(method, images)
    weight = torch.stack([1 / (0.5 * p[q] + 0.5 / len(p)) for q in range(len(p))])
    weight = weight / sum(p[q] * weight[q] for q in range(len(p)))
    torch.testing.assert_close(method.weight.double(), weight, rtol=1e-4, atol=1e-5)
    assert (p * method.weight).sum().item() == pytest.approx(1, abs=1e-5)
    assert method.weight[p.argmin()] == method.weight.max() > method.weight[p.argmax()]


def test_with_lambda_one_every_color_weighs_the_same():
    method = colorization(uniform=1.0)
    method.before_epoch(share(torch.rand(4, 3, 8, 8)))
    torch.testing.assert_close(method.weight, torch.ones_like(method.weight))


def test_colors_are_counted_before_the_first_step_alone():
    method = colorization()
    method.before_epoch(share(torch.rand(4, 3, 8, 8)))
    weight = method.weight.clone()
    method.after_step(batch(), {})

    def unread():
        raise AssertionError("read again")
        yield

    method.before_epoch(unread())
    assert torch.equal(method.weight, weight)
    assert torch.equal(method.state_dict()["weight"], weight)


def weight_of_my_share() -> torch.Tensor:
    torch.manual_seed(0)
    images, method = torch.rand(6, 3, 8, 8), colorization()
    mine = [images[:4], images[4:]][distributed.rank()] if distributed.world() > 1 else images
    method.before_epoch(share(mine))
    return method.weight


def test_colors_are_counted_over_all_ranks():
    (one,) = on_ranks(1, weight_of_my_share)
    for rank in on_ranks(2, weight_of_my_share):
        torch.testing.assert_close(rank, one)


def test_colorization_is_weighted_cross_entropy_at_twice_the_maps_resolution():
    method, data = colorization(), batch(channels=3, size=8)
    method.before_epoch(share(data.views[0]))
    lab = rgb_to_lab(data.views[0])
    logits = method.encoder(lab[:, :1] / 100)
    assert logits.shape == (N, 261, 8, 8)
    expected, hits = 0, 0
    for n in range(N):
        for row in range(8):
            for column in range(8):
                distance = (method.bins - lab[n, 1:, row, column]).norm(dim=1)
                five = distance.argsort()[:5]
                z = torch.exp(-(distance[five] ** 2) / (2 * 5.0**2))
                pixel = logits[n, :, row, column]
                loss = z / z.sum() @ (pixel.exp().sum().log() - pixel[five])
                expected = expected + method.weight[five[0]] * loss / (N * 64)
                hits += int(pixel.argmax() == five[0])
    out = method(data)
    assert_same_loss_and_gradients(method, out["loss"], expected)
    assert out["top1"].item() == pytest.approx(100 * hits / (N * 64), abs=1e-3)


def test_the_network_sees_lightness_alone():
    method, data = colorization(), batch(channels=3, size=8)
    seen = []
    method.encoder.backbone.net.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    method(data)
    lightness = rgb_to_lab(data.views[0])[:, :1] / 100
    torch.testing.assert_close(seen[0], lightness.repeat(1, 3, 1, 1))


def test_colorization_refuses_images_that_are_not_rgb_in_0_to_1():
    for images in (torch.randn(2, 3, 8, 8), torch.rand(2, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"RGB images in \[0, 1\]"):
            colorization().before_epoch(share(images))


@pytest.mark.parametrize(
    "kind",
    [
        {"name": "resnet18"},
        {"name": "convnext_atto"},
        {"name": "mobilenetv3_small_050"},
        VIT | {"options": VIT["options"] | {"class_token": False, "global_pool": "avg"}},
        VIT | {"options": VIT["options"] | {"class_token": False, "global_pool": "map"}},
    ],
    ids=["resnet", "convnext", "mobilenet", "vit avg", "vit map"],
)
def test_colorization_trains_what_its_map_uses_and_nothing_else(kind):
    method = Colorization(Timm(**kind), hidden_features=6)
    method(batch(channels=3, size=64, n=2))["loss"].backward()
    for name, p in method.named_parameters():
        assert p.requires_grad == (p.grad is not None), name
