"""Contrastive methods against their equations written out plainly, gradients included."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from lightly.loss import DCLLoss, DCLWLoss
from tiny import TinyNet, batch
from torch import Tensor, nn

from ssl_zoo import config, experiment
from ssl_zoo.backbones import Timm
from ssl_zoo.config import ConfigError, Part
from ssl_zoo.core import Batch, Method
from ssl_zoo.heads import MLP, Linear
from ssl_zoo.losses import DCL, InfoNCE
from ssl_zoo.memory import EndToEnd, MemoryBank, MoCoQueue
from ssl_zoo.memory.mochi import MoCHi
from ssl_zoo.memory.observers import KeyDrift
from ssl_zoo.methods.contrastive import Contrastive
from ssl_zoo.methods.moco_v3 import MoCoV3
from ssl_zoo.methods.nnclr import NNCLR
from ssl_zoo.methods.ressl import ReSSL
from ssl_zoo.methods.supcon import SupCon
from ssl_zoo.system import rng

N, D, SAMPLES = 6, 5, 64
HEAD = Part(Linear, out_features=D)
PREDICTOR = Part(MLP, out_features=D, hidden_features=7)
NT_XENT = Part(EndToEnd, same_view_negatives=True)


def contrastive(memory: Part, loss: Part = Part(InfoNCE, temperature=0.2), **others) -> Contrastive:  # noqa: B008
    torch.manual_seed(0)
    return Contrastive(TinyNet(), SAMPLES, head=HEAD, memory=memory, loss=loss, **others)


def moco_v3(**others) -> MoCoV3:
    torch.manual_seed(0)
    return MoCoV3(TinyNet(), head=HEAD, predictor=PREDICTOR, temperature=0.3, **others)


def nnclr(queue_size: int = 9) -> NNCLR:
    torch.manual_seed(0)
    return NNCLR(TinyNet(), head=HEAD, predictor=PREDICTOR, queue_size=queue_size, temperature=0.3)


def ressl(**others) -> ReSSL:
    torch.manual_seed(0)
    memory = Part(MoCoQueue, size=15, momentum=0.75)
    return ReSSL(TinyNet(), SAMPLES, head=HEAD, memory=memory, **others)


def unit(z: Tensor) -> Tensor:
    return z / z.norm(dim=1, keepdim=True)


def cross_entropy(scores: list[Tensor], right: int) -> Tensor:
    return -torch.log(torch.exp(scores[right]) / sum(torch.exp(score) for score in scores))


def assert_equal_with_gradients(method: Method, whole: Batch, equation) -> None:
    """The method's loss and gradients against those of `equation(method, batch)`."""
    other = copy.deepcopy(method)
    loss, expected = method(whole)["loss"], equation(other, whole)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, a), b in zip(method.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name} {text}")


def train(
    method: Method, steps: int = 1, n: int = N, first: int = 0, **of_batch
) -> list[dict[str, Tensor]]:
    optimizer = torch.optim.SGD(method.param_groups(0.0), lr=0.5)
    outputs = []
    for step in range(first, first + steps):
        whole = batch(n, step, **of_batch)
        out = method(whole)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        out = {name: value.detach() for name, value in out.items()}
        method.after_step(whole, out)
        outputs.append(out)
    return outputs


# A symmetric loss: MoCo v2+.


@pytest.mark.parametrize(
    "memory",
    [
        Part(MoCoQueue, size=20, momentum=0.9),
        Part(EndToEnd),
        Part(EndToEnd, same_view_negatives=True),
        Part(MoCHi, size=20, hardest=6, mix_negatives=4, mix_query=3),
    ],
    ids=["queue", "end-to-end", "NT-Xent", "MoCHi"],
)
def test_a_symmetric_loss_is_the_mean_of_both_directions(memory):
    def both_ways(method, whole):
        method.symmetric = False
        turned = whole._replace(views=whole.views[::-1])
        return (method(whole)["loss"] + method(turned)["loss"]) / 2

    assert_equal_with_gradients(contrastive(memory, symmetric=True), batch(N), both_ways)


def test_moco_v2_plus_enqueues_the_keys_of_both_views_view_after_view():
    method = contrastive(Part(MoCoQueue, size=20, momentum=0.9), symmetric=True)
    before, whole = copy.deepcopy(method), batch(N)
    train(method)
    first, second = (unit(before.memory.key_encoder(x)) for x in whole.views)
    keys = torch.cat([second, first, before.memory.stored[2 * N :]])
    torch.testing.assert_close(method.memory.stored, keys)
    queue = method.memory.queue
    assert queue.index.tolist() == [*whole.index.tolist() * 2, *[-1] * (20 - 2 * N)]
    assert queue.pushed == 2 * N


def test_moco_v2_plus_takes_one_momentum_step_an_optimiser_step():
    method = contrastive(Part(MoCoQueue, size=20, momentum=0.75), symmetric=True)
    before = [p.clone() for p in method.memory.key_encoder.parameters()]
    train(method)
    online = method.encoder.parameters()
    for old, now, q in zip(before, method.memory.key_encoder.parameters(), online, strict=True):
        torch.testing.assert_close(now, 0.75 * old + 0.25 * q)
    assert method.memory.steps == 1


def test_moco_v2_plus_follows_the_key_that_it_says_it_follows():
    method, drift = (
        contrastive(Part(MoCoQueue, size=4 * N, momentum=1.0), symmetric=True),
        KeyDrift(),
    )
    for number in range(6):
        (out,) = train(method, first=number)
        drift.after_step(method, batch(N, number), out)
        assert drift.scalars(method, None)["key_cosine"] == pytest.approx(1.0, abs=1e-5)


def test_moco_v2_plus_fills_its_queue_in_half_the_steps():
    memory = Part(MoCoQueue, size=20)
    assert "until step 5 " in contrastive(memory).remark(4)
    assert "until step 3 " in contrastive(memory, symmetric=True).remark(4)


def test_a_memory_bank_has_no_key_for_a_second_view_and_says_so():
    with pytest.raises(ConfigError, match="symmetric: MemoryBank recalls its keys") as caught:
        contrastive(Part(MemoryBank), symmetric=True)
    assert "MoCoQueue" in caught.value.expected
    assert Contrastive.views_needed(memory=Part(MemoryBank)) == 1
    assert Contrastive.views_needed(memory=Part(MoCoQueue), symmetric=True) == 2


class Counted(TinyNet):
    """Counts its passes."""

    passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(images)


@pytest.mark.parametrize(("memory", "passes"), [(Part(EndToEnd), 2), (NT_XENT, 2)])
def test_symmetric_and_end_to_end_nothing_is_encoded_twice(memory, passes):
    backbone, loss = Counted(), Part(InfoNCE)
    Contrastive(backbone, SAMPLES, head=HEAD, memory=memory, loss=loss, symmetric=True)(batch(N))
    assert backbone.passes == passes


def test_symmetric_directions_into_one_dictionary_are_one_look_up():
    whole = batch(N)
    for memory, count in ((Part(MoCoQueue, size=20), 1), (NT_XENT, 1), (Part(EndToEnd), 2)):
        method, seen = contrastive(memory, symmetric=True), []
        method.loss.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        method(whole)
        assert [len(lookup.q) for lookup in seen] == [2 * N // count] * count


def test_simclr_is_nt_xent_written_out():
    def equation(method, whole):
        z = torch.cat([unit(method.encoder(x)) for x in whole.views])
        loss = 0
        for i in range(2 * N):
            others = [j for j in range(2 * N) if j != i]
            scores = [z[i] @ z[j] / 0.2 for j in others]
            loss = loss + cross_entropy(scores, others.index((i + N) % (2 * N))) / (2 * N)
        return loss

    assert_equal_with_gradients(contrastive(NT_XENT, symmetric=True), batch(N), equation)


# MoCHi.


def mochi(**others) -> Contrastive:
    sizes = {"size": 20, "momentum": 0.9, "hardest": 6, "mix_negatives": 4, "mix_query": 3}
    return contrastive(Part(MoCHi, **sizes | others))


def test_mochi_is_its_equations_and_mixtures_are_constants():
    def equation(method, whole):
        memory = method.memory
        q = unit(method.encoder(whole.views[0]))
        k = unit(memory.key_encoder(whole.views[1])).detach()
        loss = 0
        for i, row in enumerate(whole.index):

            def drawn(what, count, purpose, row=row):
                keys = (memory.seed, memory.steps, purpose, row, torch.arange(count))
                return rng.integers(6, *keys) if what == "place" else rng.uniform(*keys)

            n = sorted(memory.stored, key=lambda key, i=i: -(q[i] @ key).item())[:6]
            h = []
            for a, x, y in zip(
                drawn("share", 4, "a"), drawn("place", 4, "i"), drawn("place", 4, "j"), strict=True
            ):
                h.append(a * n[x] + (1 - a) * n[y])
            places = drawn("place", 3, "with query")
            for b, x in zip(drawn("share", 3, "b") / 2, places, strict=True):
                assert 0 <= b < 0.5
                h.append(b * q[i].detach() + (1 - b) * n[x])
            negatives = [*memory.stored, *(x / x.norm() for x in h)]
            scores = [q[i] @ k[i], *(q[i] @ x for x in negatives)]
            loss = loss + cross_entropy([score / 0.2 for score in scores], 0) / N
        return loss

    method = mochi()
    train(method, 3)
    method.zero_grad()
    assert_equal_with_gradients(method, batch(N, 3), equation)


def test_mochi_warms_up_as_moco():
    method, plain = mochi(warmup_steps=2), contrastive(Part(MoCoQueue, size=20, momentum=0.9))
    plain.load_state_dict(method.state_dict())
    for number in range(4):
        (ours,), (theirs,) = (train(m, first=number) for m in (method, plain))
        assert torch.equal(ours["loss"], theirs["loss"]) == (number < 2)


def test_mochis_mixtures_count_as_negatives_and_are_new_at_each_step():
    method, whole = mochi(), batch(N)
    q = unit(torch.randn(N, D))
    lookup = method.memory.lookup(q, q, whole.index)
    assert lookup.num_negatives == 20 + 4 + 3
    torch.testing.assert_close(lookup.extra.norm(dim=2), torch.ones(N, 7))
    method.memory.steps += 1
    assert not torch.equal(method.memory.lookup(q, q, whole.index).extra, lookup.extra)


def test_mochi_without_as_many_keys_as_it_mixes_is_refused():
    with pytest.raises(ConfigError, match="hardest: too large"):
        mochi(hardest=21)


# DCL.


@pytest.mark.parametrize(
    ("sigma", "theirs"), [(None, DCLLoss(0.2)), (0.5, DCLWLoss(0.2, sigma=0.5))]
)
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_dcl_and_dclw_with_simclrs_look_up_equal_lightlys(sigma, theirs):
    loss = Part(DCL, temperature=0.2, sigma=sigma)
    method = contrastive(NT_XENT, loss, symmetric=True)
    assert_equal_with_gradients(
        method, batch(N), lambda other, whole: theirs(*(other.encoder(x) for x in whole.views))
    )


# The classical recipes with these.

CLASSICAL = ["moco_v1", "moco_v2", "simclr", "instdisc"]


def classical(root: Path, recipe: str, override: str) -> Contrastive:
    whole = experiment.parse(config.load(root / f"configs/fashion_mnist/{recipe}.yaml", [override]))
    return whole.kwargs["method"](backbone=TinyNet(), num_samples=SAMPLES)


@pytest.mark.parametrize("recipe", CLASSICAL)
def test_the_classical_recipes_take_dcl(root, recipe):
    method, whole = classical(root, recipe, "method.loss={type: DCL, temperature: 0.2}"), batch(N)
    out = method(whole)
    q, k = (list(out[name].unbind(dim=1)) for name in ("q", "k"))
    k = q[::-1] if method.symmetric else k  # SimCLR: one view's query is the other's key
    (lookup,) = method.memory.lookups(q, k, whole.index)
    expected = (lookup.negatives / 0.2).logsumexp(1) - lookup.positives[:, 0] / 0.2
    torch.testing.assert_close(out["loss"], expected.mean())


@pytest.mark.parametrize("recipe", CLASSICAL)
def test_the_classical_recipes_become_symmetric_or_say_why_not(root, recipe):
    if recipe == "instdisc":
        with pytest.raises(ConfigError, match="MemoryBank recalls its keys"):
            classical(root, recipe, "method.symmetric=true")
        return
    method = classical(root, recipe, "method.symmetric=true")
    (out,) = train(method)
    assert out["loss"].isfinite() and out["q"].shape == out["k"].shape == (N, 2, 128)


# MoCo v3.


def test_moco_v3_equals_its_equation():
    def equation(method, whole):
        f_q = nn.Sequential(method.encoder, method.predictor)
        q1, q2 = (unit(f_q(x)) for x in whole.views)
        k1, k2 = (unit(method.key_encoder(x)) for x in whole.views)
        loss, t = 0, method.temperature
        for q, k in ((q1, k2), (q2, k1)):
            for i in range(N):
                loss = loss + 2 * t * cross_entropy([q[i] @ k[j] / t for j in range(N)], i) / N
        return loss

    method = moco_v3()
    train(method)  # so that the two encoders differ
    method.zero_grad()
    assert_equal_with_gradients(method, batch(N, 1), equation)


def test_moco_v3s_key_encoder_starts_equal_and_follows_once_a_step_head_included():
    method = moco_v3(momentum=0.75)
    before = [p.clone() for p in method.encoder.parameters()]
    for p, k in zip(before, method.key_encoder.parameters(), strict=True):
        assert torch.equal(p, k) and not k.requires_grad
    train(method)
    keys, online = method.key_encoder.parameters(), method.encoder.parameters()
    for old, k, q in zip(before, keys, online, strict=True):
        assert not torch.equal(old, q)
        torch.testing.assert_close(k, 0.75 * old + 0.25 * q)


def test_moco_v3s_momentum_is_read_at_each_step():
    method = moco_v3(momentum=0.5)
    method.momentum = 1.0  # as a schedule sets it
    before = copy.deepcopy(method.key_encoder.state_dict())
    train(method, 2)
    torch.testing.assert_close(method.key_encoder.state_dict(), before, rtol=0, atol=0)


def test_a_frozen_patch_embedding_stays_while_the_rest_of_the_vit_learns():
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    vit = Timm(name="vit_tiny_patch16_224", in_chans=1, options=options)
    method = MoCoV3(vit, head=HEAD, predictor=PREDICTOR, frozen_patch_embed=True)
    before = copy.deepcopy(vit.state_dict())
    train(method, 2)
    changed = {
        name for name, value in vit.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed
    assert changed == {name for name in before if "patch_embed" not in name}


def test_a_backbone_without_patches_cannot_freeze_them():
    with pytest.raises(ConfigError, match="no patch embedding to freeze") as caught:
        moco_v3(frozen_patch_embed=True)
    assert "vit_small_patch16_224" in caught.value.expected


# SupCon.


LABELS = torch.arange(SAMPLES) % 3


def supcon_equation(method: SupCon, whole: Batch) -> Tensor:
    z = torch.cat([unit(method.encoder(x)) for x in whole.views])
    labels, images = whole.label.tolist() * 2, list(range(len(whole.label))) * 2
    loss = 0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        scores = [z[i] @ z[a] / method.temperature for a in others]
        positives = [
            n
            for n, a in enumerate(others)
            if images[a] == images[i] or (labels[a] == labels[i] and labels[i] >= 0)
        ]
        loss = loss + sum(cross_entropy(scores, p) for p in positives) / len(positives) / len(z)
    return loss


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0], [0, -1, 0, 2, -1, 0]])
def test_supcon_equals_l_out_and_an_unlabelled_image_has_its_other_view_alone(labels):
    method = SupCon(TinyNet(), LABELS, head=HEAD, temperature=0.3)
    assert_equal_with_gradients(
        method, batch(N)._replace(label=torch.tensor(labels)), supcon_equation
    )


def test_supcon_without_any_label_is_refused():
    with pytest.raises(ValueError, match="SupCon needs labels"):
        SupCon(TinyNet(), torch.full((SAMPLES,), -1), head=HEAD)
    SupCon(TinyNet(), LABELS - 1, head=HEAD)  # a third without


def test_supcon_on_a_batch_without_labels_is_simclr():
    simclr = contrastive(NT_XENT, symmetric=True)
    supcon = SupCon(TinyNet(), LABELS, head=HEAD, temperature=0.2)
    supcon.encoder = simclr.encoder
    whole = batch(N)
    unlabelled = whole._replace(label=torch.full((N,), -1))
    torch.testing.assert_close(supcon(unlabelled)["loss"], simclr(whole)["loss"])
    assert supcon(whole._replace(label=torch.zeros(N).long()))["loss"] > simclr(whole)["loss"]


# NNCLR.


def test_nnclr_equals_its_equation_and_neighbours_carry_no_gradient():
    def equation(method, whole):
        z1, z2 = (method.encoder(x) for x in whole.views)
        loss = 0
        for z, other in ((z1, z2), (z2, z1)):
            p = unit(method.predictor(other))
            for i in range(N):
                distance = [(unit(z.detach())[i] - row).norm() for row in method.queue.z]
                nn_i = method.queue.z[min(range(len(distance)), key=lambda j: distance[j])]
                scores = [nn_i @ p[k] / method.temperature for k in range(N)]
                loss = loss + cross_entropy(scores, i) / N / 2
        return loss

    method = nnclr()
    train(method, 2)
    method.zero_grad()
    assert_equal_with_gradients(method, batch(N, 2), equation)


@pytest.mark.parametrize("size", [1, 6, 7, 15])
@pytest.mark.parametrize("n", [1, 6, 13])
def test_nnclrs_support_set_holds_the_newest_embeddings_of_the_first_view(size, n):
    method = nnclr(size)
    newest = list(method.queue.z.clone())
    for step in range(4):
        whole = batch(n, step)
        out = {name: value.detach() for name, value in method(whole).items()}
        oldest = method.queue.pushed % size
        assert torch.equal(method.queue.z[oldest], newest[0])  # not yet written
        newest = [*newest, *unit(method.encoder(whole.views[0]).detach())][-size:]
        method.after_step(whole, out)
    order = (int(method.queue.pushed) + torch.arange(size)) % size  # oldest first
    torch.testing.assert_close(method.queue.z[order], torch.stack(newest))


# ReSSL.


def test_ressl_equals_its_equation():
    def equation(method, whole):
        q = unit(method.encoder(whole.views[0]))  # strong
        k = unit(method.memory.key_encoder(whole.views[1]))  # weak
        queue, loss = method.memory.stored, 0
        for i in range(N):
            target = torch.stack([k[i] @ row / 0.04 for row in queue]).softmax(0)
            scores = [q[i] @ row / 0.1 for row in queue]
            for j in range(len(queue)):
                loss = loss + target[j] * cross_entropy(scores, j) / N
        return loss

    method = ressl()
    train(method)
    method.zero_grad()
    assert_equal_with_gradients(method, batch(N, 1), equation)


def test_ressl_enqueues_the_teachers_keys_and_the_teacher_follows_once_a_step():
    method = ressl()
    before, whole = copy.deepcopy(method), batch(N)
    train(method)
    weak = unit(before.memory.key_encoder(whole.views[1]))
    torch.testing.assert_close(method.memory.stored[:N], weak)
    old, new = before.encoder.parameters(), method.encoder.parameters()
    for a, b, k in zip(old, new, method.memory.key_encoder.parameters(), strict=True):
        torch.testing.assert_close(k, 0.75 * a + 0.25 * b)


def test_ressl_without_a_queue_or_with_a_blurred_teacher_is_refused():
    with pytest.raises(ConfigError, match="teacher must be sharper"):
        ressl(teacher_temperature=0.1)
    with pytest.raises(ConfigError, match="relates images to those of a queue"):
        ReSSL(TinyNet(), SAMPLES, head=HEAD, memory=Part(EndToEnd))


def test_ressl_refuses_a_queue_whose_mixtures_it_would_not_use():
    mixing = Part(MoCHi, size=15, hardest=8, mix_negatives=4, mix_query=2)
    with pytest.raises(ConfigError, match="relates images to those of a queue") as caught:
        ReSSL(TinyNet(), SAMPLES, head=HEAD, memory=mixing)
    assert (caught.value.found, caught.value.expected) == ("MoCHi", "MoCoQueue")


def test_half_precision_embeddings_do_not_reach_the_softmax():
    """A loss under bf16 autocast is that of the bf16 embeddings, in float32."""
    for method in (moco_v3(), nnclr(), ressl(), SupCon(TinyNet(), LABELS, head=HEAD)):
        plain = method(batch(N))["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            loss = method(batch(N))["loss"]
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, plain, rtol=0.05, atol=0.02)
