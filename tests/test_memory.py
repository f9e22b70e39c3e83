"""The three mechanisms against their papers.

What every memory must do is in ssl_zoo.testing; test_conformance.py calls it.
"""

from __future__ import annotations

import collections
import copy

import pytest
import torch
from tiny import TinyNet, batch, share
from torch.nn import functional as F

from ssl_zoo.config import Part
from ssl_zoo.core import Encoder, Method
from ssl_zoo.heads import MLP, Linear
from ssl_zoo.losses import InfoNCE
from ssl_zoo.memory import EndToEnd, MemoryBank, MoCoQueue, Ring
from ssl_zoo.memory.mochi import MoCHi
from ssl_zoo.memory.observers import KeyDrift, SameLabel
from ssl_zoo.methods.contrastive import Contrastive
from ssl_zoo.system import distributed
from ssl_zoo.testing.ranks import on_ranks

N, SAMPLES = 8, 64
MEMORIES = {
    "queue": Part(MoCoQueue, size=20, momentum=0.9),
    "bank": Part(MemoryBank, num_negatives=24),
    "end-to-end": Part(EndToEnd),
    "same-view": Part(EndToEnd, same_view_negatives=True),
    "mochi": Part(MoCHi, size=20, momentum=0.9, hardest=6, mix_negatives=4, mix_query=3),
}


def make(
    memory: Part, temperature: float = 0.2, symmetric: bool = False, **backbone
) -> Contrastive:
    torch.manual_seed(0)
    return Contrastive(
        TinyNet(**backbone),
        SAMPLES,
        head=Part(Linear, out_features=6),
        memory=memory,
        loss=Part(InfoNCE, temperature=temperature),
        symmetric=symmetric,
    )


def test_moco_queue_follows_algorithm_1_for_12_steps():
    """Algorithm 1 of arXiv:1911.05722, in its order and with its names, beside ours."""
    method = make(Part(MoCoQueue, size=20, momentum=0.9))
    m, t, lr, K = 0.9, 0.2, 0.5, 20
    f_q = copy.deepcopy(method.encoder)
    f_k = copy.deepcopy(method.encoder)  # f_k.params = f_q.params
    queue = method.memory.stored.clone().T  # C x K
    pointer = 0
    ours = torch.optim.SGD(method.param_groups(0.0), lr=lr)
    theirs = torch.optim.SGD(f_q.parameters(), lr=lr)
    for step in range(12):
        whole = batch(N, step)
        out = method(whole)
        ours.zero_grad()
        out["loss"].backward()
        ours.step()
        method.after_step(whole, {name: value.detach() for name, value in out.items()})

        x_q, x_k = whole.views
        q = F.normalize(f_q(x_q), dim=1)
        k = F.normalize(f_k(x_k), dim=1).detach()
        l_pos = torch.einsum("nc,nc->n", q, k)[:, None]
        l_neg = torch.einsum("nc,ck->nk", q, queue)
        logits = torch.cat([l_pos, l_neg], dim=1)
        loss = F.cross_entropy(logits / t, torch.zeros(N, dtype=torch.long))
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        with torch.no_grad():
            for p_k, p_q in zip(f_k.parameters(), f_q.parameters(), strict=True):
                p_k.copy_(m * p_k + (1 - m) * p_q)
        for row in k:  # enqueue, dequeue
            queue[:, pointer] = row
            pointer = (pointer + 1) % K

        torch.testing.assert_close(out["loss"], loss)
        torch.testing.assert_close(method.memory.stored.T, queue)
    for a, b in zip(method.encoder.parameters(), f_q.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(method.memory.key_encoder.parameters(), f_k.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_memory_bank_follows_instdisc():
    """Row i <- normalise(m v_i + (1 - m) q_i) (arXiv:1805.01978); the positive is the old row."""
    method = make(MEMORIES["bank"])
    bank = method.memory.stored.clone()
    for step in range(3):
        whole = batch(N, step)
        out = method(whole)
        torch.testing.assert_close(out["k"][:, 0], bank[whole.index])
        method.after_step(whole, out)
        for i, q in zip(whole.index.tolist(), out["q"][:, 0].detach(), strict=True):
            row = 0.5 * bank[i] + 0.5 * q
            bank[i] = row / row.norm()
        torch.testing.assert_close(method.memory.stored, bank)


def test_memory_bank_draws_evenly_from_all_rows_outside_the_batch():
    bank = MemoryBank(make(MEMORIES["bank"]).encoder, 20, num_negatives=40_000)
    index = torch.tensor([3, 0, 19, 7])
    rows = bank._other_rows(index)
    counts = torch.bincount(rows, minlength=20)
    assert counts[index].sum() == 0
    others = counts[counts > 0].float()
    assert len(others) == 16
    assert (others / 2500 - 1).abs().max() < 0.1  # 5 standard deviations
    bank.steps += 1
    assert not torch.equal(rows, bank._other_rows(index))


def test_memory_bank_smaller_than_the_batch_says_so():
    bank = MemoryBank(make(MEMORIES["bank"]).encoder, N)
    with pytest.raises(ValueError, match="8 rows has no negatives for a batch of 8"):
        bank._other_rows(torch.arange(N))


def test_end_to_end_scores_the_batchs_other_keys():
    method = make(MEMORIES["end-to-end"])
    whole = batch(N)
    q, k = (F.normalize(method.encoder(view), dim=1) for view in whole.views)
    expected = F.cross_entropy(q @ k.T / 0.2, torch.arange(N))
    torch.testing.assert_close(method(whole)["loss"], expected)


def test_symmetric_end_to_end_equals_lightlys_ntxent():
    lightly_loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.2)
    method = make(MEMORIES["same-view"], symmetric=True)
    whole = batch(N)
    method(whole)["loss"].backward()
    ours = [p.grad.clone() for p in method.encoder.parameters()]
    loss = method(whole)["loss"]
    method.zero_grad()
    q, k = (method.encoder(view) for view in whole.views)
    expected = lightly_loss(q, k)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(ours, method.encoder.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad)


# Traps that other frameworks fell into.


@pytest.mark.parametrize("name", ["queue", "bank", "mochi"])
def test_trap_6_dictionary_lacks_the_batch_before_the_update_and_holds_it_after(name):
    method = make(MEMORIES[name])
    memory = method.memory
    for step in range(5):
        whole = batch(N, step)
        out = method(whole)
        q, k = out["q"][:, 0], out["k"][:, 0]
        dictionary = memory.lookup(q, k, whole.index).dictionary
        assert ((k @ dictionary.T).max(dim=1).values < 1 - 1e-6).all()
        method.after_step(whole, {n: v.detach() for n, v in out.items()})
        written = memory.stored[whole.index] if name == "bank" else k
        assert ((written @ memory.stored.T).max(dim=1).values > 1 - 1e-6).all()


@pytest.mark.parametrize("size", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("n", [1, 5, 8, 13])
def test_trap_13_any_queue_size_takes_any_batch(size, n):
    method = make(Part(MoCoQueue, size=size))
    memory = method.memory
    newest = list(memory.stored)
    for step in range(4):
        whole = batch(n, step)
        out = {name: value.detach() for name, value in method(whole).items()}
        method.after_step(whole, out)
        newest = [*newest, *out["k"][:, 0]][-size:]
    order = (int(memory.queue.pushed) + torch.arange(size)) % size  # oldest first
    torch.testing.assert_close(memory.stored[order], torch.stack(newest))


@pytest.mark.parametrize("size", [1, 7, 8])
def test_a_ring_keeps_the_newest_rows_of_every_column_and_says_where(size):
    ring, pushed = Ring(a=torch.zeros(size, 2), b=torch.zeros(size).long()), []
    for count in (3, 8, 1, 20):
        rows = torch.arange(len(pushed), len(pushed) + count)
        slots = ring.push(a=rows[:, None] * torch.ones(2), b=rows)
        pushed += rows.tolist()
        assert len(slots) == count
        stayed = slots[-size:]
        assert ring.b[stayed].tolist() == rows[-size:].tolist()
        assert torch.equal(ring.a, ring.b[:, None] * torch.ones(2))
    assert len(ring) == size and ring.pushed == len(pushed)
    assert sorted(ring.b.tolist()) == pushed[-size:]


def test_trap_7_key_encoder_starts_equal_head_included_and_follows_all_of_it():
    encoder = Encoder(TinyNet(), MLP(8, out_features=6))
    queue = MoCoQueue(encoder, size=4, momentum=0.75)
    old = [p.clone() for p in queue.key_encoder.parameters()]
    for a, b in zip(old, encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    q = F.normalize(torch.randn(2, 6), dim=1)
    queue.update(encoder, q[:, None], q[:, None], torch.arange(2))
    for a, b in zip(old, queue.key_encoder.parameters(), strict=True):
        torch.testing.assert_close(b, a + 0.25)
        assert not b.requires_grad


# World size 2 equals world size 1.


def gathered_beside_another_input() -> torch.Tensor:
    """Gradient of w in w + gather(x): rank r weights it with r + 1."""
    w = torch.zeros(2, requires_grad=True)
    x = torch.zeros(1, requires_grad=True)
    ((w + distributed.gather(x)) * (distributed.rank() + 1.0)).sum().backward()
    return w.grad


def test_gather_leaves_other_inputs_gradients_alone():
    first, second = on_ranks(2, gathered_beside_another_input)
    assert first.tolist() == [1.0, 1.0] and second.tolist() == [2.0, 2.0]


# ShuffleBN.


def with_batchnorm(groups: int) -> dict:
    """Keys and gradients with ShuffleBN; one process with groups, or as many ranks as groups."""
    method = make(Part(MoCoQueue, size=20), norm=True, bn_groups=groups // distributed.world())
    part = share(batch(N), distributed.rank(), distributed.world())
    out = method(part)
    out["loss"].backward()
    return {
        "k": distributed.gather(out["k"]),
        "gradients": [distributed.mean(p.grad) for p in method.encoder.parameters()],
    }


def test_trap_1_two_batchnorm_groups_equal_two_ranks_and_one_group_does_not():
    (groups,) = on_ranks(1, with_batchnorm, 2)
    for rank in on_ranks(2, with_batchnorm, 2):
        torch.testing.assert_close(rank, groups)
    (single,) = on_ranks(1, with_batchnorm, 1)
    assert (groups["k"] - single["k"]).abs().max() > 1e-3


@pytest.mark.parametrize(("groups", "changes"), [(1, False), (2, True)])
def test_trap_1_shuffling_changes_keys_between_groups_only(groups, changes):
    on, off = (
        make(Part(MoCoQueue, size=20, shuffle_bn=shuffle), norm=True, bn_groups=groups)(batch(N))[
            "k"
        ]
        for shuffle in (True, False)
    )
    assert ((on - off).abs().max() > 1e-3) == changes


def test_shuffled_end_to_end_keys_come_back_in_order_with_their_gradient():
    """Without BatchNorm the order of encoding cannot matter."""
    gradients = []
    for shuffle in (True, False):
        method = make(Part(EndToEnd, shuffle_bn=shuffle))
        method(batch(N))["loss"].backward()
        gradients.append([p.grad for p in method.encoder.parameters()])
    torch.testing.assert_close(*gradients)


# Observers.


class Probe:
    """Key age and drift as the memories themselves once told them, in plain words."""

    def __init__(self, size: int, bank: bool):
        self.size, self.bank, self.age, self.probe = size, bank, 0, None
        self.next, self.written = 0, [0] * size

    def after_step(self, method, whole):
        memory, views = method.memory, 1 + method.symmetric
        if self.bank:
            slots = whole.index.tolist()
        else:
            count = views * len(whole.index)
            slots = [(self.next + i) % self.size for i in range(count)]
            self.next += count
        for slot in slots:
            self.written[slot] = int(memory.steps)
        self.age += 1
        if len(slots) <= self.size and (self.probe is None or self.age >= self.size // len(slots)):
            images = whole.views[0 if self.bank else 1][:16]
            self.probe, self.age = (images, slots[: len(images)]), 0

    def told(self, method) -> dict[str, float]:
        memory = method.memory
        told = {"key_age": sum(int(memory.steps) - w for w in self.written) / self.size}
        if self.probe is not None:
            images, slots = self.probe
            encoder = method.encoder if self.bank else memory.key_encoder
            cosines = [
                F.cosine_similarity(memory.stored[slot], encoder(image[None])[0], dim=0)
                for slot, image in zip(slots, images, strict=True)
            ]
            told["key_cosine"] = (sum(cosines) / len(cosines)).item()
        return told


@pytest.mark.parametrize(
    ("memory", "symmetric", "n"),
    [
        (Part(MoCoQueue, size=50, momentum=0.5), False, 18),
        (Part(MoCoQueue, size=50, momentum=0.5), True, 8),
        (Part(MoCoQueue, size=7, momentum=0.5), False, 8),  # overwritten at once
        (Part(MemoryBank, num_negatives=24), False, 18),
    ],
    ids=["queue", "symmetric", "small queue", "bank"],
)
def test_key_drift_follows_a_few_keys_until_they_are_overwritten(memory, symmetric, n):
    method, drift = make(memory, symmetric=symmetric), KeyDrift()
    probe = Probe(len(method.memory.stored), isinstance(method.memory, MemoryBank))
    optimizer = torch.optim.SGD(method.param_groups(0.0), lr=5.0)
    for step in range(9):
        whole = batch(n, step)
        out = method(whole)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        out = {name: value.detach() for name, value in out.items()}
        method.after_step(whole, out)
        drift.after_step(method, whole, out)
        probe.after_step(method, whole)
        random = torch.get_rng_state()
        scalars = drift.scalars(method, None)
        scalars.pop("own_older_keys")  # has a test of its own
        assert scalars == pytest.approx(probe.told(method), abs=1e-5)
        assert torch.equal(random, torch.get_rng_state())
        assert all(module.training for module in method.modules())
    if drift.followed is not None:
        images, rows = drift.followed
        assert len(images) == len(rows) == min(n, 16)
        assert images.untyped_storage().nbytes() == images.numel() * 4


def test_keys_that_are_not_stored_have_no_age_and_a_method_without_memory_nothing_to_say():
    drift, whole = KeyDrift(), batch(N)
    method = make(MEMORIES["end-to-end"])
    drift.after_step(method, whole, {})
    nothing = {"key_age": 0.0, "key_cosine": 1.0, "own_older_keys": 0.0}
    assert drift.scalars(method, None) == nothing
    plain = Method()
    drift.after_step(plain, whole, {})
    assert drift.scalars(plain, None) == SameLabel().scalars(plain, torch.zeros(9)) == {}


def test_a_bank_of_half_the_embedding_has_an_age_alone():
    method, drift, whole = make(Part(MemoryBank)), KeyDrift(), batch(N)
    method.memory = MemoryBank(Linear(8, out_features=3), SAMPLES)
    method.memory.update(method.encoder, torch.ones(N, 1, 3), torch.ones(N, 1, 3), whole.index)
    drift.after_step(method, whole, {})
    assert drift.scalars(method, None) == {"key_age": 1 - N / SAMPLES}


@pytest.mark.parametrize(
    ("name", "symmetric"),
    [("queue", False), ("queue", True), ("mochi", False), ("bank", False), ("end-to-end", False)],
)
def test_keys_that_are_an_images_own_older_ones_are_counted(name, symmetric):
    """By hand: a list of the queue's 20 images. Others hold no older key of a query's own image."""
    method, drift = make(MEMORIES[name], symmetric=symmetric), KeyDrift()
    queue, counts = collections.deque(maxlen=20), []
    for step in range(6):
        whole = batch(N, step, num_samples=12)
        images = whole.index.tolist()
        out = {key: value.detach() for key, value in method(whole).items()}
        counts.append(sum(images.count(image) for image in queue) / N)
        method.after_step(whole, out)
        drift.after_step(method, whole, out)
        expected = counts[-1] if name in ("queue", "mochi") else 0.0
        assert drift.scalars(method, None)["own_older_keys"] == expected
        queue.extend(images * (1 + symmetric))
    assert counts[0] == 0 < min(counts[1:])  # so that a count of this step's own keys is seen


def test_share_of_same_label_negatives():
    method, observer = make(MEMORIES["end-to-end"]), SameLabel()
    whole = batch(N)
    assert observer.scalars(method, torch.zeros(SAMPLES).long()) == {}  # nothing compared yet
    method(whole)
    labels = torch.zeros(SAMPLES, dtype=torch.int64)
    assert observer.scalars(method, labels)["same_label_negatives"] == 100.0
    labels[whole.index[:4]] = 1
    assert observer.scalars(method, labels)["same_label_negatives"] == 50.0
    assert observer.scalars(method, torch.full_like(labels, -1)) == {}
    assert observer.scalars(method, None) == {}


@pytest.mark.parametrize("name", MEMORIES)
def test_pretext_accuracy_counts_the_positives_rank(name):
    method = make(MEMORIES[name])
    whole = batch(N)
    out = method(whole)
    lookup = method.memory.lookup(out["q"][:, 0], out["k"][:, 0], whole.index)
    logits = torch.cat([lookup.positives, lookup.negatives], dim=1)
    rank = (logits[:, 1:] >= logits[:, :1]).sum(1)
    assert out["top1"] == pytest.approx(100 * (rank == 0).float().mean().item())
    assert out["top5"] == pytest.approx(100 * (rank < 5).float().mean().item())
