"""Random numbers as hashes, against SplitMix64 in Python's integers."""

from __future__ import annotations

import pytest
import torch

from ssl_zoo.system import rng

MASK = (1 << 64) - 1


def splitmix(*keys: int) -> int:
    state = 0
    for key in keys:
        x = ((state ^ (key & MASK)) + 0x9E3779B97F4A7C15) & MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        state = x ^ (x >> 31)
    return state - (1 << 64) if state >> 63 else state


def test_a_hash_is_splitmix_chained_over_its_keys():
    index = torch.tensor([0, 1, 59_999, 2**62, -1])
    expected = [splitmix(7, 3, i, rng.code("crop")) for i in index.tolist()]
    assert rng.hashed(7, 3, index, "crop").tolist() == expected


def test_the_path_for_gpus_gives_the_same_numbers():
    rows, slots = torch.arange(5)[:, None], torch.arange(3)
    for keys in ((1, 2), (rows, slots), (torch.tensor(4), 9, "p", rows), (rows, "x", 0)):
        plain, other = rng.hashed(*keys), rng._hashed_on_gpu(*keys)
        assert torch.equal(plain, other) and plain.shape == other.shape


SEEDS = (0, 7, 2**32, 1_764_316_800_000_000_000, 2**63, 2**64 - 1, 2**64, 2**64 + 7, 10**30)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_number_from_0_on_is_a_seed_and_gives_numbers_of_its_own(seed):
    own = rng.hashed(seed, 3)
    assert torch.equal(own, rng._hashed_on_gpu(seed, 3))
    assert [int(rng.hashed(other, 3)) for other in SEEDS].count(int(own)) == 1
    if seed < 2**64:  # as it always was
        assert int(own) == splitmix(seed, 3)
    for begin in (rng.seed_all, rng.seed_rank):
        begin(seed)
        drawn = torch.rand(3)
        begin(seed)
        assert torch.equal(torch.rand(3), drawn)


def test_a_seed_that_torch_takes_reaches_it_as_it_is():
    rng.seed_all(7)
    assert torch.initial_seed() == 7
    rng.seed_rank(7)
    assert torch.initial_seed() == 7 * 1_000_003
