"""Sums over a dictionary, block by block, against the whole matrix: values, gradients, memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ssl_zoo.losses import NCE, InfoNCE
from ssl_zoo.memory import Lookup, reductions
from ssl_zoo.memory.reductions import LogSumExp, SoftplusSum

R, M, D = 6, 23, 4


@pytest.fixture(params=[1, 5 * R, 2**18], ids=["a key a block", "five keys a block", "one block"])
def blocks(request, monkeypatch):
    monkeypatch.setitem(reductions._BLOCK, "cpu", request.param)


def inputs(own: bool, dtype=torch.float64, scale: float = 5.0):
    generator = torch.Generator().manual_seed(3)
    q, keys = (torch.randn(n, D, generator=generator, dtype=dtype) for n in (R, M))
    columns = torch.tensor([[i, M - 1 - i] for i in range(R)]) if own else None
    return (scale * F.normalize(q, dim=1)).requires_grad_(), keys.requires_grad_(), columns


def matrix(q, keys, own):
    s = q @ keys.T
    return s if own is None else s.scatter(1, own, -torch.inf)


@pytest.mark.parametrize("own", [False, True])
def test_logsumexp_and_its_gradients_equal_torchs(own, blocks):
    q, keys, columns = inputs(own)
    positive = torch.zeros(R, 1, dtype=q.dtype)
    value, nearer = LogSumExp.apply(q, keys, columns, positive)
    s = matrix(q, keys, columns)
    torch.testing.assert_close(value, s.logsumexp(1))
    assert nearer.tolist() == (s >= 0).sum(1).tolist()
    weights = torch.arange(1.0, R + 1, dtype=q.dtype)
    ours = torch.autograd.grad(value @ weights, (q, keys))
    theirs = torch.autograd.grad(s.logsumexp(1) @ weights, (q, keys))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("own", [False, True])
def test_softplus_sum_and_its_gradients_equal_torchs(own, blocks):
    q, keys, columns = inputs(own)
    even = torch.tensor(0.7, dtype=q.dtype)
    value, nearer = SoftplusSum.apply(q, keys, columns, torch.ones(R, 1, dtype=q.dtype), even)
    s = matrix(q, keys, columns)
    torch.testing.assert_close(value, F.softplus(s - even).sum(1))
    assert nearer.tolist() == (s >= 1).sum(1).tolist()
    weights = torch.arange(1.0, R + 1, dtype=q.dtype)
    ours = torch.autograd.grad(value @ weights, (q, keys))
    theirs = torch.autograd.grad(F.softplus(s - even).sum(1) @ weights, (q, keys))
    torch.testing.assert_close(ours, theirs)


def test_gradients_equal_finite_differences(blocks):
    q, keys, columns = inputs(True)
    positive = torch.zeros(R, 1, dtype=q.dtype)
    even = torch.tensor(0.3, dtype=q.dtype)
    assert torch.autograd.gradcheck(
        lambda q, keys: LogSumExp.apply(q, keys, columns, positive)[0], (q, keys)
    )
    assert torch.autograd.gradcheck(
        lambda q, keys: SoftplusSum.apply(q, keys, columns, positive, even)[0], (q, keys)
    )


def test_large_similarities_do_not_overflow(blocks):
    q, keys, _ = inputs(False, torch.float32, scale=1000.0)
    value, _ = LogSumExp.apply(q, keys, None, torch.zeros(R, 1))
    torch.testing.assert_close(value, (q @ keys.T).logsumexp(1))
    (grad,) = torch.autograd.grad(value.sum(), q)
    assert grad.isfinite().all()


def test_a_query_without_negatives_has_no_gradient(blocks):
    q, keys, _ = inputs(False, torch.float32)
    everything = torch.arange(M).expand(R, M)
    value, _ = LogSumExp.apply(q, keys, everything, torch.zeros(R, 1))
    assert (value == -torch.inf).all()
    for grad in torch.autograd.grad(F.softplus(value).sum(), (q, keys)):
        assert (grad == 0).all()


@pytest.mark.parametrize("make", [InfoNCE, lambda: NCE(5000)], ids=["InfoNCE", "NCE"])
@pytest.mark.parametrize("keys_need_gradient", [False, True])
def test_a_loss_keeps_nothing_of_the_size_of_the_matrix(make, keys_need_gradient):
    q = F.normalize(torch.randn(64, 8), dim=1).requires_grad_()
    keys = F.normalize(torch.randn(4096, 8), dim=1).requires_grad_(keys_need_gradient)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        loss = make()(Lookup(q, q.detach(), keys, torch.arange(len(keys))))
    loss.backward()
    assert q.grad.isfinite().all() and max(kept) <= keys.numel()


@pytest.mark.parametrize("make", [InfoNCE, lambda: NCE(5000)], ids=["InfoNCE", "NCE"])
def test_a_loss_is_fp32_under_autocast(make):
    q, k, keys = (F.normalize(torch.randn(n, 32), dim=1) for n in (16, 16, 300))
    plain = make()(Lookup(q, k, keys, torch.arange(300)))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = make()(Lookup(q.bfloat16().float(), k, keys, torch.arange(300)))
        same = make()(Lookup(q, k, keys, torch.arange(300)))
    assert torch.equal(same, plain) and mixed.dtype == torch.float32
    # q rounded to bf16 is off by 2^-9 of its length, and a logit by 2^-9 / 0.07 at most.
    assert abs(mixed - plain) < 2**-9 / 0.07 * 2


def test_accuracy_counts_the_same_with_and_without_a_reduction():
    torch.manual_seed(0)
    q, k, keys = (F.normalize(torch.randn(n, 8), dim=1) for n in (64, 64, 500))
    k = F.normalize(q + 0.8 * k, dim=1)
    plain, reduced = (Lookup(q, k, keys, torch.arange(500)) for _ in range(2))
    reduced.logsumexp(0.2)
    assert reduced.accuracy() == plain.accuracy()
    assert 0 < plain.accuracy()["top1"] < plain.accuracy()["top5"] < 100


def test_asking_for_the_accuracy_first_leaves_the_gradient_as_it_is():
    grads = []
    for first in (False, True):
        torch.manual_seed(0)
        q, k, keys = (F.normalize(torch.randn(n, 8), dim=1) for n in (16, 16, 50))
        found = Lookup(q.requires_grad_(), k, keys, torch.arange(50))
        assert not first or not found.accuracy()["top1"].requires_grad
        grads.append(torch.autograd.grad(InfoNCE()(found), q)[0])
    torch.testing.assert_close(*grads)
