"""Masks: how many, which, and whose."""

from __future__ import annotations

import pytest
import torch

from ssl_zoo.ops.masking import (
    block_order,
    count_of,
    mask_of,
    masked_blocks,
    masked_patches,
    random_order,
    take,
)

KEYS = torch.arange(2000)
MANY = pytest.mark.parametrize(
    "drawn",
    [
        lambda key: random_order(key, 12),
        lambda key: block_order(key, (3, 4)),
        lambda key: masked_blocks(key, (3, 4), 0.4)[1],
        lambda key: torch.cat(masked_patches(key, (3, 4), 0.5, (0.1, 0.5)), dim=1),
    ],
    ids=["random_order", "block_order", "masked_blocks", "masked_patches"],
)


@MANY
def test_what_is_drawn_belongs_to_the_sample_and_not_to_its_place_in_the_batch(drawn):
    key = torch.tensor([7, -3, 2**40, 0, 12])
    whole, order = drawn(key), torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(drawn(key[order]), whole[order])
    assert torch.equal(drawn(key[1:3]), whole[1:3])


@MANY
def test_samples_differ(drawn):
    assert len({tuple(row.tolist()) for row in drawn(KEYS[:50])}) > 40


def test_a_random_order_holds_each_patch_once_and_each_place_is_as_likely():
    order = random_order(KEYS, 10)
    assert torch.equal(order.sort(dim=1).values, torch.arange(10).expand(len(KEYS), -1))
    for place in (0, 4, 9):
        share = torch.bincount(order[:, place], minlength=10) / len(KEYS)
        torch.testing.assert_close(share, torch.full((10,), 0.1), atol=0.03, rtol=0)
    pairs = (order[:, 0] * 10 + order[:, 1]).unique()
    assert len(pairs) == 90  # one place does not determine another


def test_a_mask_is_true_where_chosen_and_nowhere_else():
    chosen = torch.tensor([[3, 0], [1, 2]])
    expected = [[True, False, False, True, False], [False, True, True, False, False]]
    assert mask_of(chosen, 5).tolist() == expected


def test_rows_are_taken_in_the_order_asked_for():
    x, patches = torch.randn(2, 5, 3), torch.tensor([[3, 0], [1, 1]])
    expected = torch.stack([x[0, [3, 0]], x[1, [1, 1]]])
    assert torch.equal(take(x, patches), expected)


@pytest.mark.parametrize("share, count", [(0.0, 1), (0.25, 5), (0.93, 19), (1.0, 20)])
def test_masked_blocks_have_the_exact_count(share, count):
    chosen, mask = masked_blocks(KEYS[:300], (4, 5), share)
    assert mask.shape == (300, 20) and mask.dtype == torch.bool
    assert chosen.shape == (300, count) and count_of(share, (4, 5)) == count
    assert torch.equal(mask, mask_of(chosen, 20)) and (mask.sum(dim=1) == count).all()


def neighbors_alike(mask: torch.Tensor, grid: tuple[int, int]) -> float:
    """Share of masked patches whose right neighbor is masked too."""
    mask = mask.unflatten(1, grid).float()
    return ((mask[:, :, 1:] * mask[:, :, :-1]).sum() / mask[:, :, :-1].sum()).item()


def test_blocks_are_contiguous_where_random_patches_are_not():
    grid, count = (14, 14), 78  # BEiT's 40 %
    _, blocks = masked_blocks(KEYS[:200], grid, 0.4)
    scattered = mask_of(random_order(KEYS[:200], 196)[:, :count], 196)
    assert neighbors_alike(scattered, grid) == pytest.approx(0.4, abs=0.03)
    assert neighbors_alike(blocks, grid) > 0.75


def test_the_first_patches_of_a_block_order_are_one_rectangle():
    order = block_order(KEYS[:100], (8, 8), scale=(0.25, 0.25), ratio=(1.0, 1.0))
    mask = mask_of(order[:, :16], 64).unflatten(1, (8, 8))
    rows, columns = mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)
    assert (rows == 4).all() and (columns == 4).all()
    tops = mask.any(dim=2).byte().argmax(dim=1)
    assert tops.unique().tolist() == [0, 1, 2, 3, 4]


def test_masked_blocks_cover_every_patch_of_the_grid():
    share = masked_blocks(KEYS, (4, 4), 6 / 16)[1].float().mean(dim=0)
    assert share.mean().item() == pytest.approx(6 / 16)
    assert share.min() > 0.2
    # A grid that looks the same from all sides is masked so.
    square = share.view(4, 4)
    torch.testing.assert_close(square, square.rot90(1), atol=0.06, rtol=0)
    torch.testing.assert_close(square, square.T, atol=0.06, rtol=0)


def test_some_images_are_masked_and_by_a_share_within_bounds():
    patches, masked = masked_patches(KEYS, (7, 7), 0.5, (0.1, 0.5))
    assert patches.shape == masked.shape == (len(KEYS), 24)
    assert torch.equal(patches, block_order(KEYS, (7, 7))[:, :24])
    count = masked.sum(dim=1)
    assert (masked == (torch.arange(24) < count[:, None])).all()
    of_masked = count[count > 0]
    assert len(of_masked) / len(KEYS) == pytest.approx(0.5, abs=0.04)
    assert of_masked.min() == 4 and of_masked.max() == 24
    assert of_masked.float().mean().item() == pytest.approx(0.3 * 49, abs=1)
