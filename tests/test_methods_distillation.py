"""DINO, iBOT, DINOv2 and MSN: losses written out, what targets see, and how they collapse."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from lightly import loss as lightly
from torch import nn
from torch.nn import functional as F

from ssl_zoo.backbones import Backbone, Timm
from ssl_zoo.config import ConfigError, Part
from ssl_zoo.core import Batch
from ssl_zoo.engine.hooks.scheduling import Schedules
from ssl_zoo.engine.optimizers import AdamW
from ssl_zoo.engine.schedules import Cosine, Linear
from ssl_zoo.heads import MLP, DINOHead
from ssl_zoo.losses import Center, SinkhornCenter, dino_loss, ibot_loss, koleo_loss
from ssl_zoo.methods.dino import DINO
from ssl_zoo.methods.dinov2 import DINOv2
from ssl_zoo.methods.ibot import IBOT
from ssl_zoo.methods.msn import MSN, msn_losses
from ssl_zoo.ops import health
from ssl_zoo.ops.masking import block_order, masked_patches
from ssl_zoo.ops.sinkhorn import sinkhorn_knopp

N, K = 6, 10
HEAD = Part(DINOHead, out_features=K, hidden_features=16, bottleneck_features=8, depth=2)
PROJECTION = Part(MLP, out_features=8, hidden_features=16, batch_norm=True)
MAKE = {
    "DINO": lambda **kwargs: DINO(tiny.TinyNet(), head=HEAD, **kwargs),
    "IBOT": lambda **kwargs: IBOT(vit(), head=HEAD, **kwargs),
    "DINOv2": lambda **kwargs: DINOv2(vit(), head=HEAD, patch_head=HEAD, **kwargs),
    "MSN": lambda **kwargs: MSN(vit(), head=PROJECTION, num_prototypes=K, **kwargs),
}
every_method = pytest.mark.parametrize("name", MAKE)
with_dinos_head = pytest.mark.parametrize("name", ["DINO", "IBOT", "DINOv2"])


def vit() -> Backbone:
    options = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
    options |= {"dynamic_img_size": True}
    return Timm(name="vit_tiny_patch16_224", in_chans=1, options=options)


def batch(local: int = 2, seed: int = 0) -> Batch:
    """Two views of 8 x 8, and `local` of 4 x 4."""
    large, small = tiny.batch(N, seed), tiny.batch(N, seed + 99, size=4, views=local)
    return Batch(large.views + small.views, large.index, large.label)


def train(method, batches, lr=0.01, weight_decay=0.1) -> dict[str, torch.Tensor]:
    """As the trainer does."""
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    for views in batches:
        out = method(views)
        out["loss"].backward()
        method.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(views, {name: value.detach() for name, value in out.items()})
    return out


def cross_entropy(p, scores, temperature):
    """H(p, softmax(scores / temperature)) of one row, by its definition."""
    e = [math.e ** (s / temperature) for s in scores]
    return -sum(p[k] * torch.log(e[k] / sum(e)) for k in range(len(e)))


def softmax(scores, temperature):
    e = [math.e ** (s / temperature) for s in scores]
    return torch.stack([x / sum(e) for x in e])


def assert_same_gradients(loss, expected, method):
    trained = [p for p in method.parameters() if p.requires_grad]
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, trained, allow_unused=True)
    theirs = torch.autograd.grad(expected, trained, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


# What they share.


def test_the_heads_scores_are_cosines_with_its_prototypes():
    head = DINOHead(5, out_features=K, hidden_features=7, bottleneck_features=4, depth=3)
    x = torch.randn(N, 5)
    z = head.layers(x)
    expected = F.cosine_similarity(z[:, None], head.last.v[None], dim=2)
    torch.testing.assert_close(head(x), expected)
    assert [m.out_features for m in head.layers if isinstance(m, nn.Linear)] == [7, 7, 4]


def test_learned_lengths_scale_the_cosines():
    head = DINOHead(5, out_features=K, learn_scale=True)
    x = torch.randn(N, 5)
    before = head(x)
    with torch.no_grad():
        head.last.g[3] = 2.0
    expected = before * torch.where(torch.arange(K) == 3, 2.0, 1.0)
    torch.testing.assert_close(head(x), expected)
    assert len(list(head.last.parameters())) == 2


def test_the_center_is_the_running_mean_of_scores():
    center = Center(K)
    scores = torch.randn(3, N, K)
    expected = torch.zeros(K)
    for step in range(3):
        center.update(scores[step], momentum=0.9)
        expected = 0.9 * expected + 0.1 * scores[step].mean(dim=0)
    torch.testing.assert_close(center.c, expected)
    p = center(scores, 0.04)
    torch.testing.assert_close(p[1, 2], softmax(scores[1, 2] - expected, 0.04))


def test_the_sinkhorn_center_balances_all_views_rows_together():
    scores = torch.randn(2, N, 4)
    p = SinkhornCenter()(scores, 0.5)
    q = torch.exp(scores.view(2 * N, 4) / 0.5).T
    for _ in range(3):
        q = q / q.sum(dim=1, keepdim=True) / 4
        q = q / q.sum(dim=0, keepdim=True) / (2 * N)
    torch.testing.assert_close(p, (q * 2 * N).T.view(2, N, 4))


def test_rows_that_do_not_count_have_no_say_in_sinkhorns_balance():
    scores, counted = 20 * torch.randn(2, N, 4), torch.rand(2, N) < 0.4
    p = SinkhornCenter()(scores, 0.5, counted)
    torch.testing.assert_close(p[counted], SinkhornCenter()(scores[counted], 0.5))
    none = SinkhornCenter()(scores, 0.5, torch.zeros(2, N, dtype=torch.bool))
    torch.testing.assert_close(none, SinkhornCenter()(scores, 0.5))


def test_dinos_loss_equals_lightlys():
    g_t, g_s = torch.randn(2, N, K), torch.randn(5, N, K)
    reference = lightly.DINOLoss(output_dim=K, teacher_temp=0.05, student_temp=0.1)
    expected = reference(list(g_t), list(g_s), teacher_temp=0.05)
    p_t = Center(K)(g_t, 0.05)
    torch.testing.assert_close(dino_loss(p_t, list(g_s), 0.1), expected)
    ours = Center(K)
    ours.update(g_t.mean(dim=0), 0.9)
    torch.testing.assert_close(ours.c, reference.center.flatten())


@every_method
def test_the_target_starts_equal_and_takes_one_small_step_a_step_head_included(name):
    method = MAKE[name](momentum=0.9)
    target = (method.target if name == "MSN" else method.teacher).encoder
    start = copy.deepcopy(target)
    for a, b in zip(target.parameters(), method.encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    train(method, [batch()])
    moved = 0
    for name_, was in start.named_parameters():
        online = method.encoder.get_parameter(name_)
        torch.testing.assert_close(target.get_parameter(name_), 0.9 * was + 0.1 * online)
        moved += not torch.equal(online, was)
    assert moved > len(list(start.parameters())) / 2
    assert any("head" in name_ for name_, _ in start.named_parameters())


@with_dinos_head
def test_the_last_layer_stands_still_for_the_first_steps_and_the_rest_does_not(name):
    method = MAKE[name](frozen_steps=2)
    heads = {id(m): m for m in method.encoder.modules() if isinstance(m, DINOHead)}.values()
    assert len(heads) == (2 if name == "DINOv2" else 1)
    last = [head.last.v for head in heads]
    first = [head.layers[0].weight for head in heads]
    was, was_first = copy.deepcopy(last), copy.deepcopy(first)
    train(method, [batch(seed=0), batch(seed=1)])
    assert all(torch.equal(a, b) for a, b in zip(last, was, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, was_first, strict=True))
    train(method, [batch(seed=2)])
    assert not any(torch.equal(a, b) for a, b in zip(last, was, strict=True))


@with_dinos_head
def test_the_teacher_sees_the_first_two_views_alone(name):
    method, views = MAKE[name](), batch()
    one = method(views)
    other = method(Batch([*views.views[:2], *batch(seed=5).views[2:]], *views[1:]))
    assert torch.equal(one["g_t"], other["g_t"])
    assert not torch.equal(one["loss"], other["loss"])


@with_dinos_head
def test_a_later_view_is_matched_with_both_that_the_teacher_saw(name):
    method, views = MAKE[name](), batch(local=1).views
    loss = "loss" if name == "DINO" else "class_loss"
    batches = [Batch(list(v), *batch()[1:]) for v in (views, [views[1], views[0], views[2]])]
    if name == "DINO":  # masks are drawn by the view's number
        torch.testing.assert_close(method(batches[0])[loss], method(batches[1])[loss])
    x = views[2].requires_grad_()
    method(batches[0])[loss].backward()
    assert x.grad.flatten(1).any(dim=1).all()


@every_method
def test_nonsense_is_refused(name):
    cases = {
        "DINO": {"teacher_temperature": 0.0},
        "IBOT": {"mask_ratio": (0.5, 0.1)},
        "DINOv2": {"koleo_weight": -1.0},
        "MSN": {"drop": 1.0},
    }
    for wrong in (cases[name], {"momentum": 1.5}):
        with pytest.raises(ConfigError) as caught:
            MAKE[name](**wrong)
        assert caught.value.key in wrong


@pytest.mark.parametrize("name", ["DINO", "IBOT"])
def test_the_centers_momentum_may_change_from_step_to_step(name):
    method = MAKE[name]()
    train(method, [batch(seed=0)])
    was, method.center_momentum = method.center.c.clone(), 0.5
    out = train(method, [batch(seed=1)])
    torch.testing.assert_close(method.center.c, 0.5 * was + 0.5 * out["g_t"].mean(dim=0))


def test_freezing_the_last_layer_of_a_head_that_has_none_is_refused():
    with pytest.raises(ConfigError, match="DINOHead") as caught:
        DINO(tiny.TinyNet(), head=PROJECTION, frozen_steps=3)
    assert caught.value.key == "frozen_steps"
    DINO(tiny.TinyNet(), head=PROJECTION)


def test_a_linear_schedule_arrives_and_stays():
    schedule = Linear(final=0.07, over_epochs=30)
    values = [schedule(0.04, epoch, 100) for epoch in (0, 15, 30, 80)]
    torch.testing.assert_close(values, [0.04, 0.055, 0.07, 0.07])


# DINO.


def test_dino_equals_its_equation():
    method, views = MAKE["DINO"](teacher_temperature=0.05), batch(local=1)
    method.center.c.copy_(0.1 * torch.randn(K))
    student = [method.encoder(x) for x in views.views]
    teacher = [method.teacher(x) for x in views.views[:2]]
    expected = 0
    for t in range(2):
        for s in range(3):
            for n in range(N) if s != t else ():
                p = softmax(teacher[t][n] - method.center.c, 0.05)
                expected = expected + cross_entropy(p, student[s][n], 0.1)
    assert_same_gradients(method(views)["loss"], expected / (4 * N), method)


def train_on_blots(**kwargs) -> dict[str, float]:
    """Health of a small DINO after 100 steps on 64 images, seen twice through noise."""
    torch.manual_seed(0)
    head = Part(DINOHead, out_features=16, hidden_features=32, bottleneck_features=16, depth=2)
    method = DINO(tiny.TinyNet(width=16, norm=True), head=head, momentum=0.97, **kwargs)
    images = F.interpolate(torch.randn(64, 1, 4, 4), size=8)
    steps = [[images + 0.3 * torch.randn_like(images) for _ in range(2)] for _ in range(100)]
    index = torch.arange(64)
    out = train(method, [Batch(views, index, index) for views in steps], 3e-3, 0.0)
    return {name: value.item() for name, value in out.items() if value.dim() == 0}


def test_without_a_center_all_images_go_to_one_output_and_the_health_says_so():
    found = train_on_blots(center_momentum=1.0)
    assert found["loss"] < 0.01
    assert found["assignment_entropy"] < 0.01 and found["assignment_sharpness"] > 0.99
    assert "assignment_entropy" in health.collapse(found)


def test_without_sharpening_all_outputs_are_alike_and_the_health_says_so():
    found = train_on_blots(teacher_temperature=0.2)
    assert found["loss"] == pytest.approx(math.log(16), abs=0.01)
    assert found["assignment_sharpness"] < 0.002 and found["assignment_entropy"] > 0.99
    assert "assignment_sharpness" in health.collapse(found)


def test_with_both_it_is_healthy():
    found = train_on_blots()
    assert found["assignment_sharpness"] > 0.5 and found["assignment_entropy"] > 0.3
    assert health.collapse(found) == ""


# iBOT.


def test_masks_are_of_some_images_and_of_a_share_within_bounds():
    key = torch.arange(2000) * 7919
    patches, masked = masked_patches(key, (7, 7), masked_images=0.5, ratio=(0.1, 0.5))
    assert patches.shape == masked.shape == (2000, 24)
    count = masked.sum(dim=1)
    assert (count == 0).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert count[count > 0].min() == 4 and count.max() == 24
    assert count[count > 0].float().mean().item() == pytest.approx(0.3 * 49 - 0.5, abs=0.5)
    assert torch.equal(patches, block_order(key, (7, 7))[:, :24])
    # A sample's mask is its own, wherever it stands.
    again = masked_patches(key[5:9], (7, 7), masked_images=0.5, ratio=(0.1, 0.5))
    assert torch.equal(again[0], patches[5:9]) and torch.equal(again[1], masked[5:9])


def test_the_patch_loss_equals_lightlys():
    p, g_t, g_s = torch.rand(N, 4, 4), torch.randn(N, 16, K), torch.randn(N, 16, K)
    mask = p < 0.4
    mask[2] = False
    flat = mask.flatten(1)
    reference = lightly.IBOTPatchLoss(output_dim=K, teacher_temp=0.05, student_temp=0.1)
    expected = reference(g_t[flat], g_s[flat], mask)
    torch.testing.assert_close(ibot_loss(Center(K)(g_t, 0.05), g_s, flat, 0.1), expected)


def masks(method, views):
    """Each large view's (patches, masked) of the coming forward pass."""
    found = []
    for number in range(2):
        key = method.random_key(f"mask {number}", views.index)
        found.append(masked_patches(key, (4, 4), method.masked_images, method.mask_ratio))
    return found


def reference_ibot(method, views, class_targets, patch_targets):
    """Class and patch losses, image by image, from plain passes through the ViT."""
    student, teacher = method.encoder, method.teacher.encoder
    dino, ibot, tokens_s = 0, 0, []
    for x, (patches, masked) in zip(views.views[:2], masks(method, views), strict=True):
        mask = torch.zeros(N, 16, dtype=torch.bool)
        for n in range(N):
            mask[n, patches[n, masked[n]]] = True
        tokens_s.append((student.backbone.tokens(x, mask, student.mask_token), mask))
    with torch.no_grad():
        tokens_t = [teacher.backbone.tokens(x) for x in views.views[:2]]
        p_class = class_targets([teacher.head(tokens[:, 0]) for tokens in tokens_t])
        p_patch = [
            [[patch_targets(teacher.patch_head(token)) for token in image[1:]] for image in view]
            for view in tokens_t
        ]
    class_s = [student.head(tokens[:, 0]) for tokens, _ in tokens_s]
    class_s += [student.head(student.backbone(x)) for x in views.views[2:]]
    for t in range(2):
        for s in range(len(class_s)):
            if s != t:
                rows = [cross_entropy(p_class[t][n], class_s[s][n], 0.1) for n in range(N)]
                dino = dino + sum(rows) / N / (2 * len(class_s) - 2)
    for view, (tokens, mask) in enumerate(tokens_s):
        for n in range(N):
            hidden = mask[n].nonzero()[:, 0].tolist()
            for patch in hidden:
                scores = student.patch_head(tokens[n, 1 + patch])
                loss = cross_entropy(p_patch[view][n][patch], scores, 0.1)
                ibot = ibot + loss / len(hidden) / N / 2
    return dino, ibot


def test_ibot_equals_its_equations():
    method, views = MAKE["IBOT"](patch_temperature=0.07), batch(local=1)
    with torch.no_grad():
        method.center.c.normal_(std=0.1)
        method.patch_center.c.normal_(std=0.1)
        method.encoder.mask_token.normal_()
    assert any(masked.any() for _, masked in masks(method, views))

    def of_class(scores):
        return [[softmax(row - method.center.c, 0.04) for row in view] for view in scores]

    def of_patch(scores):
        return softmax(scores - method.patch_center.c, 0.07)

    dino, ibot = reference_ibot(method, views, of_class, of_patch)
    out = method(views)
    torch.testing.assert_close(out["class_loss"], dino)
    torch.testing.assert_close(out["patch_loss"], ibot)
    assert_same_gradients(out["loss"], dino + ibot, method)


@pytest.mark.parametrize("name", ["IBOT", "DINOv2"])
def test_the_student_does_not_see_what_is_masked_and_the_teacher_does(name):
    encoder = MAKE[name]().encoder
    x, patches = torch.randn(N, 1, 8, 8), torch.tensor([[0, 5]]).repeat(N, 1)
    masked = torch.ones(N, 2, dtype=torch.bool)
    other = x.clone()
    other[:, :, :2, :2] += 1  # patch 0
    other[:, :, 2:4, 2:4] -= 1  # patch 5
    student = [encoder.scores(*encoder.features(images, patches, masked)) for images in (x, other)]
    teacher = [encoder.scores(*encoder.features(images, patches)) for images in (x, other)]
    for head in range(2):
        assert torch.equal(student[0][head], student[1][head])
        assert not torch.allclose(teacher[0][head], teacher[1][head])


def test_ibots_head_is_shared_unless_there_are_two():
    shared, apart = MAKE["IBOT"](), MAKE["IBOT"](patch_head=HEAD)
    assert shared.encoder.patch_head is shared.encoder.head
    assert shared.teacher.encoder.patch_head is shared.teacher.encoder.head
    assert apart.encoder.patch_head is not apart.encoder.head


def test_class_tokens_and_patches_have_centers_of_their_own():
    method, views = MAKE["IBOT"](), batch()
    teacher = method.teacher.encoder
    expected, expected_patch = [], []
    for x, (patches, _) in zip(views.views[:2], masks(method, views), strict=True):
        tokens = teacher.backbone.tokens(x)
        expected.append(teacher.head(tokens[:, 0]).mean(dim=0))
        rows = [teacher.patch_head(tokens[n, 1 + patches[n]]).mean(dim=0) for n in range(N)]
        expected_patch.append(torch.stack(rows).mean(dim=0))
    expected, expected_patch = torch.stack(expected).mean(0), torch.stack(expected_patch).mean(0)
    train(method, [views])
    torch.testing.assert_close(method.center.c, 0.1 * expected)
    torch.testing.assert_close(method.patch_center.c, 0.1 * expected_patch)


# DINOv2.


def test_koleo_equals_lightlys():
    x = torch.randn(N, 7, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    loss, expected = koleo_loss(x), lightly.KoLeoLoss()(y)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_dinov2_is_dino_ibot_and_koleo():
    method, views = MAKE["DINOv2"](koleo_weight=0.3, centering="mean"), batch(local=1)

    def of_class(scores):
        return [[softmax(row, 0.04) for row in view] for view in scores]

    def of_patch(scores):
        return softmax(scores, 0.04)

    dino, ibot = reference_ibot(method, views, of_class, of_patch)
    expected = dino + ibot
    for x, (patches, masked) in zip(views.views[:2], masks(method, views), strict=True):
        u, _ = method.encoder.features(x, patches, masked)
        expected = expected + 0.3 * lightly.KoLeoLoss()(u)
    assert_same_gradients(method(views)["loss"], expected, method)


def test_dinov2s_sinkhorn_balances_class_tokens_and_patches():
    method, views = MAKE["DINOv2"](), batch()
    teacher = method.teacher.encoder
    drawn = masks(method, views)
    found = [
        teacher.scores(*teacher.features(x, drawn[view][0]))
        for view, x in enumerate(views.views[:2])
    ]
    p_t = SinkhornCenter()(torch.stack([g for g, _ in found]), 0.04)
    masked = torch.stack([hidden for _, hidden in drawn])
    p_v = SinkhornCenter()(torch.stack([v for _, v in found]), 0.04, masked)
    assert masked.any() and not masked.all()
    student, g_s, expected = method.encoder, [], 0
    for view, (patches, masked) in enumerate(drawn):
        g, v = student.scores(*student.features(views.views[view], patches, masked))
        g_s.append(g)
        expected = expected + ibot_loss(p_v[view], v, masked, 0.1) / 2
    g_s += [student(x) for x in views.views[2:]]
    out = method(views)
    torch.testing.assert_close(out["patch_loss"], expected)
    torch.testing.assert_close(out["class_loss"], dino_loss(p_t, g_s, 0.1))
    assert not dict(method.center.named_buffers())


# MSN.


@pytest.mark.parametrize("iterations", [0, 3])
def test_msns_losses_equal_lightlys(iterations):
    anchors, targets = torch.randn(3, N, 8, requires_grad=True), torch.randn(N, 8)
    prototypes = torch.randn(K, 8)
    reference = lightly.MSNLoss(0.1, iterations, regularization_weight=0.7)
    expected = reference(anchors.flatten(0, 1), targets, prototypes, 0.25) - 0.7 * math.log(K)
    q = F.normalize(prototypes, dim=1)
    log_p_t = (F.normalize(targets, dim=1) @ q.T / 0.025).log_softmax(dim=1)
    p_t = sinkhorn_knopp(log_p_t, 1.0, iterations)
    matching, me_max = msn_losses(F.normalize(anchors, dim=2) @ q.T / 0.1, p_t)
    torch.testing.assert_close(matching + 0.7 * me_max, expected)


def test_msns_targets_are_balanced_if_asked_for():
    method, views = MAKE["MSN"](sinkhorn_iterations=3), batch(local=0)
    target = method.cosines(method.target(views.views[0])) / 0.025
    p_t = sinkhorn_knopp(target.log_softmax(dim=1), 1.0, 3)
    expected = health.assignment_entropy(p_t)
    torch.testing.assert_close(method(views)["assignment_entropy"], expected)
    assert not torch.allclose(expected, health.assignment_entropy(target.softmax(dim=1)))


def test_msn_equals_its_equation():
    method, views = MAKE["MSN"](drop=0.4, me_max_weight=0.7), batch(local=2)
    method.encoder.head.eval()  # its BatchNorm would tie rows together
    method.target.encoder.head.eval()
    kept = method.kept(views.views[1], views.index)
    assert kept.shape == (N, 9)
    tokens = method.encoder.backbone.tokens(views.views[1], kept=kept)
    anchors = [method.encoder.head(tokens[:, 0])]
    anchors += [method.encoder(x) for x in views.views[2:]]
    targets, q = method.target(views.views[0]), method.prototypes.weight

    def scores(z):
        return torch.stack([F.cosine_similarity(z, q[k], dim=0) for k in range(K)])

    matching, mean = 0, 0
    for anchor in anchors:
        for n in range(N):
            p_t = softmax(scores(targets[n]), 0.025).detach()
            matching = matching + cross_entropy(p_t, scores(anchor[n]), 0.1) / (3 * N)
            mean = mean + softmax(scores(anchor[n]), 0.1) / (3 * N)
    entropy = -sum(m * torch.log(m) for m in mean)
    assert_same_gradients(method(views)["loss"], matching - 0.7 * entropy, method)


def test_msns_masked_anchor_does_not_see_what_is_dropped():
    method, views = MAKE["MSN"](drop=0.5), batch(local=0)
    kept = method.kept(views.views[1], views.index)
    x = views.views[1].requires_grad_()
    method(views)["loss"].backward()
    seen = x.grad.unfold(2, 2, 2).unfold(3, 2, 2).abs().sum(dim=(1, 4, 5)).flatten(1) > 0  # [N, 16]
    for n in range(N):
        assert set(seen[n].nonzero()[:, 0].tolist()) == set(kept[n].tolist())


def test_msns_prototypes_learn_from_anchors_and_not_from_targets():
    method, views = MAKE["MSN"](me_max_weight=0.0), batch()
    z = torch.randn(2, N, 8)
    p_t = (method.cosines(z[0]) / 0.025).softmax(dim=1).detach()
    matching, _ = msn_losses(method.cosines(z[1])[None] / 0.1, p_t)
    matching.backward()
    assert method.prototypes.weight.grad.any()
    was = method.prototypes.weight.detach().clone()
    train(method, [views])
    assert not torch.equal(method.prototypes.weight, was)


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_msns_prototypes_have_no_weight_decay_also_where_it_is_scheduled(decay_norm_and_bias):
    method = MAKE["MSN"]()
    optimizer = AdamW(method, lr=0.1, weight_decay=0.04, decay_norm_and_bias=decay_norm_and_bias)
    trainer = SimpleNamespace(optimizer=optimizer, step=10, total_steps=10, unit=1)
    schedules = Schedules({"optimizer.weight_decay": Cosine(final=0.4)})
    schedules.attach(trainer)
    schedules.before_step(trainer)
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decay.pop(id(method.prototypes.weight)) == 0.0
    assert decay.pop(id(method.encoder.head.layers[0].weight)) == pytest.approx(0.4)


def test_a_prototype_that_no_anchor_comes_near_leaves_msns_gradient_finite():
    scores = torch.tensor([[[0.9, -0.9]]]).div(0.01).requires_grad_()
    matching, me_max = msn_losses(scores, torch.tensor([[0.7, 0.3]]))
    (matching + me_max).backward()
    assert me_max == 0 and scores.grad.isfinite().all()


def test_me_max_is_least_where_anchors_use_all_prototypes_alike():
    even, one = torch.eye(4)[:, None] * 50, torch.zeros(4, 1, 4)
    one[:, :, 0] = 50
    p_t = torch.full((1, 4), 0.25)
    assert msn_losses(even, p_t)[1].item() == pytest.approx(-math.log(4))
    assert msn_losses(one, p_t)[1].item() == pytest.approx(0, abs=1e-6)
