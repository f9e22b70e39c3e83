"""Sums over a dictionary, block by block, against the whole matrix: values, gradients, memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ssl_zoo.losses import NCE, InfoNCE, accuracy
from ssl_zoo.memory import Lookup, joined, reductions
from ssl_zoo.memory.reductions import LogSumExp, SoftplusSum

R, M, E, D = 6, 23, 3, 4


@pytest.fixture(params=[1, 5 * R, 2**18], ids=["a key a block", "five keys a block", "one block"])
def blocks(request, monkeypatch):
    monkeypatch.setitem(reductions._BLOCK, "cpu", request.param)


def inputs(masked: bool, dtype=torch.float64, scale: float = 5.0, extra: bool = True):
    generator = torch.Generator().manual_seed(3)
    q, keys = (torch.randn(n, D, generator=generator, dtype=dtype) for n in (R, M))
    columns = torch.tensor([[i, M - 1 - i] for i in range(R)]) if masked else None
    rows = torch.randn(R, E, D, generator=generator, dtype=dtype).requires_grad_()
    q = (scale * F.normalize(q, dim=1)).requires_grad_()
    return q, keys.requires_grad_(), columns, rows if extra else None


def matrix(q, keys, masked, extra):
    s = q @ keys.T
    s = s if masked is None else s.scatter(1, masked, -torch.inf)
    return s if extra is None else torch.cat([s, torch.einsum("rd,red->re", q, extra)], dim=1)


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_logsumexp_and_its_gradients_equal_torchs(masked, extra, blocks):
    q, keys, columns, rows = inputs(masked, extra=extra)
    positive = torch.zeros(R, 1, dtype=q.dtype)
    value, nearer = LogSumExp.apply(q, keys, columns, rows, positive)
    s = matrix(q, keys, columns, rows)
    torch.testing.assert_close(value, s.logsumexp(1))
    assert nearer.tolist() == (s >= 0).sum(1).tolist()
    weights = torch.arange(1.0, R + 1, dtype=q.dtype)
    leaves = (q, keys, rows)[: 2 + extra]
    ours = torch.autograd.grad(value @ weights, leaves)
    theirs = torch.autograd.grad(s.logsumexp(1) @ weights, leaves)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_softplus_sum_and_its_gradients_equal_torchs(masked, extra, blocks):
    q, keys, columns, rows = inputs(masked, extra=extra)
    even, positive = torch.tensor(0.7, dtype=q.dtype), torch.ones(R, 1, dtype=q.dtype)
    value, nearer = SoftplusSum.apply(q, keys, columns, rows, positive, even)
    s = matrix(q, keys, columns, rows)
    torch.testing.assert_close(value, F.softplus(s - even).sum(1))
    assert nearer.tolist() == (s >= 1).sum(1).tolist()
    weights = torch.arange(1.0, R + 1, dtype=q.dtype)
    leaves = (q, keys, rows)[: 2 + extra]
    ours = torch.autograd.grad(value @ weights, leaves)
    theirs = torch.autograd.grad(F.softplus(s - even).sum(1) @ weights, leaves)
    torch.testing.assert_close(ours, theirs)


def test_gradients_equal_finite_differences(blocks):
    q, keys, columns, rows = inputs(True)
    positive = torch.zeros(R, 1, dtype=q.dtype)
    even = torch.tensor(0.3, dtype=q.dtype)
    assert torch.autograd.gradcheck(
        lambda q, keys, rows: LogSumExp.apply(q, keys, columns, rows, positive)[0], (q, keys, rows)
    )
    assert torch.autograd.gradcheck(
        lambda q, keys, rows: SoftplusSum.apply(q, keys, columns, rows, positive, even)[0],
        (q, keys, rows),
    )


def test_large_similarities_do_not_overflow(blocks):
    q, keys, *_ = inputs(False, torch.float32, scale=1000.0)
    value, _ = LogSumExp.apply(q, keys, None, None, torch.zeros(R, 1))
    torch.testing.assert_close(value, (q @ keys.T).logsumexp(1))
    (grad,) = torch.autograd.grad(value.sum(), q)
    assert grad.isfinite().all()


def test_a_query_without_negatives_has_no_gradient(blocks):
    q, keys, *_ = inputs(False, torch.float32)
    everything = torch.arange(M).expand(R, M)
    value, _ = LogSumExp.apply(q, keys, everything, None, torch.zeros(R, 1))
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
        loss, _ = make()(Lookup(q, q.detach(), keys, torch.arange(len(keys))))
    loss.backward()
    assert q.grad.isfinite().all() and max(kept) <= keys.numel()


@pytest.mark.parametrize("make", [InfoNCE, lambda: NCE(5000)], ids=["InfoNCE", "NCE"])
def test_a_loss_is_fp32_under_autocast(make):
    q, k, keys = (F.normalize(torch.randn(n, 32), dim=1) for n in (16, 16, 300))
    plain = make()(Lookup(q, k, keys, torch.arange(300))).loss
    with torch.autocast("cpu", torch.bfloat16):
        mixed = make()(Lookup(q.bfloat16().float(), k, keys, torch.arange(300))).loss
        same = make()(Lookup(q, k, keys, torch.arange(300))).loss
    assert torch.equal(same, plain) and mixed.dtype == torch.float32
    # q rounded to bf16 is off by 2^-9 of its length, and a logit by 2^-9 / 0.07 at most.
    assert abs(mixed - plain) < 2**-9 / 0.07 * 2


@pytest.mark.parametrize("extra", [False, True])
def test_every_reduction_counts_the_negatives_that_are_as_near_as_the_positive(extra):
    torch.manual_seed(0)
    q, k, keys = (F.normalize(torch.randn(n, 8), dim=1) for n in (64, 64, 500))
    k = F.normalize(q + 0.8 * k, dim=1)
    rows = F.normalize(q[:, None] + 0.9 * torch.randn(64, 3, 8), dim=2) if extra else None
    lookup = Lookup(q, k, keys, extra=rows)
    expected = (lookup.negatives >= lookup.positives).sum(dim=1)
    assert lookup.negatives.shape[1] == lookup.num_negatives == 500 + 3 * extra
    for _, nearer in (lookup.logsumexp(0.2), lookup.softplus_sum(0.2, torch.tensor(0.0))):
        assert nearer.tolist() == expected.tolist() and not nearer.requires_grad
    counted = accuracy(expected)
    assert counted["top1"] == 100 * (expected == 0).float().mean()
    assert 0 < counted["top1"] < counted["top5"] < 100


def test_lookups_into_one_dictionary_are_joined_and_others_left_alone():
    torch.manual_seed(0)
    q, k, keys = (F.normalize(torch.randn(n, 8), dim=1) for n in (6, 6, 20))
    parts = [
        Lookup(q[n], k[n], keys, masked=torch.tensor([[0], [1], [2]]), extra=torch.randn(3, 2, 8))
        for n in (slice(3), slice(3, 6))
    ]
    (one,) = joined(parts)
    assert one.dictionary is keys
    torch.testing.assert_close(one.negatives, torch.cat([part.negatives for part in parts]))
    torch.testing.assert_close(one.positives, torch.cat([part.positives for part in parts]))
    apart = [parts[0], Lookup(q, k, keys.clone())]
    assert joined(apart) == apart and joined(parts[:1]) == parts[:1]
