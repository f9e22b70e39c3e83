"""Losses against their equations written out plainly, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ssl_zoo.config import LOSSES
from ssl_zoo.losses import DCL, NCE, InfoNCE, Margin, accuracy, in_batch
from ssl_zoo.memory import Lookup
from ssl_zoo.system import distributed
from ssl_zoo.testing.ranks import on_ranks

R, M, E, D, SAMPLES = 5, 12, 3, 4, 50


def rows(masked: bool, extra: bool = False):
    torch.manual_seed(1)
    q, positive, dictionary = (F.normalize(torch.randn(n, D), dim=1) for n in (R, R, M))
    columns = torch.tensor([[i, i + R] for i in range(R)]) if masked else None
    alone = F.normalize(torch.randn(R, E, D), dim=2).requires_grad_() if extra else None
    q, positive, dictionary = (x.requires_grad_() for x in (q, positive, dictionary))
    return q, positive, dictionary, columns, alone


def negatives(i, q, dictionary, masked, extra):
    """q_i . k of all that the i-th query is compared with, one by one."""
    skip = [] if masked is None else masked[i].tolist()
    of_all = [q[i] @ dictionary[j] for j in range(M) if j not in skip]
    return of_all + ([] if extra is None else [q[i] @ k for k in extra[i]])


def info_nce(pos, neg, t=0.1):
    return -torch.log(
        torch.exp(pos / t) / (torch.exp(pos / t) + sum(torch.exp(n / t) for n in neg))
    )


def dcl(pos, neg, w=1.0, t=0.1):
    return -torch.log(torch.exp(pos / t)) * w + torch.log(sum(torch.exp(n / t) for n in neg))


def instdisc(pos, neg, z, t=0.1):
    m, noise = len(neg), 1 / SAMPLES
    p = torch.exp(pos / t) / z
    loss = -torch.log(p / (p + m * noise))
    for n in neg:
        p = torch.exp(n / t) / z
        loss = loss - torch.log(m * noise / (p + m * noise))
    return loss


def triplet(pos, neg, margin=0.4):
    return sum(torch.clamp(margin - pos + n, min=0) for n in neg) / len(neg)


def reference(equation, q, positive, *others, **kwargs):
    total = 0
    for i in range(R):
        of_query = {
            name: value[i] if isinstance(value, list) else value for name, value in kwargs.items()
        }
        total = total + equation(q[i] @ positive[i], negatives(i, q, *others), **of_query)
    return total / R


def first_batch_constant(q, positive, *others, t=0.1):
    values = []
    for i in range(R):
        values += [q[i] @ positive[i], *negatives(i, q, *others)]
    return SAMPLES * torch.exp(torch.stack(values) / t).mean().detach()


def mises_fisher(q, positive, sigma=0.5):
    density = [torch.exp(q[i] @ positive[i] / sigma) for i in range(R)]
    return [(2 - d / (sum(density) / R)).detach() for d in density]


CASES = {
    "DCL": (lambda: DCL(temperature=0.1), dcl),
    "DCLW": (lambda: DCL(temperature=0.1, sigma=0.5), dcl),
    "InfoNCE": (lambda: InfoNCE(temperature=0.1), info_nce),
    "NCE": (lambda: NCE(SAMPLES, temperature=0.1), instdisc),
    "Margin": (lambda: Margin(margin=0.4), triplet),
}


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_loss_equals_its_equation_gradients_included(name, masked, extra):
    make, equation = CASES[name]
    loss = make()
    ours, theirs = rows(masked, extra), rows(masked, extra)
    constants = {}
    if name == "NCE":
        constants = {"z": first_batch_constant(*theirs)}
    if name == "DCLW":
        constants = {"w": mises_fisher(*theirs[:2])}
    value, nearer = loss(Lookup(*ours[:3], torch.arange(M), *ours[3:]))
    expected = reference(equation, *theirs, **constants)
    torch.testing.assert_close(value, expected)
    q, positive, *others = theirs
    ranks = [sum(n >= q[i] @ positive[i] for n in negatives(i, q, *others)) for i in range(R)]
    assert nearer.tolist() == [rank.item() for rank in ranks]
    within = sum(rank.item() < 5 for rank in ranks) / R
    assert accuracy(nearer)["top5"].item() == pytest.approx(100 * within)
    value.backward()
    expected.backward()
    for a, b in zip(ours, theirs, strict=True):
        if a is not None and a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad)


def test_nce_keeps_the_constant_of_its_first_batch():
    loss = NCE(SAMPLES)
    q, positive, dictionary, *_ = rows(False)
    loss(Lookup(q, positive, dictionary, torch.arange(M)))
    first = loss.log_z.clone()
    loss(Lookup(-q, positive, dictionary, torch.arange(M)))
    assert torch.equal(loss.log_z, first)
    other = NCE(SAMPLES)
    other.load_state_dict(loss.state_dict())
    other(Lookup(-q, positive, dictionary, torch.arange(M)))
    assert torch.equal(other.log_z, first)


def test_nce_survives_a_small_temperature():
    q, _, dictionary, *_ = rows(False)
    assert NCE(SAMPLES, temperature=0.005)(Lookup(q, q, dictionary)).loss.isfinite()


def nce_constant_of_my_half() -> torch.Tensor:
    q, positive, dictionary = (x.detach() for x in rows(False)[:3])
    mine = slice(2 * distributed.rank(), 2 * distributed.rank() + 4 // distributed.world())
    loss = NCE(SAMPLES)
    loss(Lookup(q[mine], positive[mine], dictionary, torch.arange(M)))
    return loss.log_z


def test_nce_constant_is_the_same_on_two_ranks_as_on_one():
    (one,) = on_ranks(1, nce_constant_of_my_half)
    for rank in on_ranks(2, nce_constant_of_my_half):
        torch.testing.assert_close(rank, one)


def weighted_loss_of_my_half() -> torch.Tensor:
    q, positive, dictionary = (x.detach() for x in rows(False)[:3])
    mine = slice(2 * distributed.rank(), 2 * distributed.rank() + 4 // distributed.world())
    loss, _ = DCL(sigma=0.5)(Lookup(q[mine], positive[mine], dictionary, torch.arange(M)))
    return distributed.mean(loss)


def test_dclws_weights_are_relative_to_the_batch_of_all_ranks():
    (one,) = on_ranks(1, weighted_loss_of_my_half)
    for rank in on_ranks(2, weighted_loss_of_my_half):
        torch.testing.assert_close(rank, one)


def in_batch_of_my_half() -> tuple[torch.Tensor, torch.Tensor]:
    q, k, *_ = (x.detach()[:4] for x in rows(False)[:3])
    mine = slice(2 * distributed.rank(), 2 * distributed.rank() + 4 // distributed.world())
    loss, top1 = in_batch(q[mine], k[mine], 0.1)
    return distributed.mean(loss), distributed.mean(top1)


def test_in_batch_finds_each_querys_own_key_among_all_ranks():
    (one,) = on_ranks(1, in_batch_of_my_half)
    for rank in on_ranks(2, in_batch_of_my_half):
        torch.testing.assert_close(rank, one)
    q, k, *_ = (x.detach()[:4] for x in rows(False)[:3])
    equation = sum(
        info_nce(q[i] @ k[i], [q[i] @ k[j] for j in range(4) if j != i]) for i in range(4)
    )
    torch.testing.assert_close(one[0], equation / 4)
    assert in_batch(q, q, 0.1)[1] == 100.0


@pytest.mark.parametrize("name", CASES)
def test_identical_keys_give_a_finite_loss_and_gradient(name):
    loss = CASES[name][0]()
    q = F.normalize(torch.ones(R, D), dim=1).requires_grad_()
    value, _ = loss(Lookup(q, q.detach(), q.detach(), torch.arange(R), torch.arange(R)[:, None]))
    value.backward()
    assert value.isfinite() and q.grad.isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: InfoNCE(temperature=0.0),
        lambda: DCL(temperature=0.0),
        lambda: DCL(sigma=0.0),
        lambda: NCE(9, temperature=-1.0),
        lambda: Margin(margin=0.0),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match="too small"):
        make()


def test_every_registered_loss_is_tested_here():
    assert {type(make()) for make, _ in CASES.values()} == set(LOSSES.module_dict.values())
