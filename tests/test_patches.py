"""Patches cut out of a grid of cells."""

from __future__ import annotations

import pytest
import torch

from ssl_zoo.ops.patches import cut


def numbered(n: int, height: int, width: int) -> torch.Tensor:
    """Images [n, 2, H, W] whose pixels hold their own row and column."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([row, column]).float().expand(n, -1, -1, -1)


def corners(patches: torch.Tensor) -> torch.Tensor:
    """Row and column of each patch's first pixel, [N, P, 2]."""
    return patches[:, :, :, 0, 0].long()


def test_patches_that_fill_their_cells_are_the_image_row_by_row():
    images = torch.randn(2, 3, 6, 9)
    patches = cut(images[:, :, :6, :6], grid=3, size=2)
    assert patches.shape == (2, 9, 3, 2, 2)
    for number in range(9):
        row, column = 2 * (number // 3), 2 * (number % 3)
        expected = images[:, :, row : row + 2, column : column + 2]
        assert torch.equal(patches[:, number], expected)


def test_without_a_key_patches_lie_in_the_middle_of_cells_of_any_shape():
    patches = cut(numbered(1, 12, 18), grid=2, size=4)
    assert corners(patches)[0].tolist() == [[1, 2], [1, 11], [7, 2], [7, 11]]


def test_a_patch_is_one_piece_of_one_image():
    key = torch.arange(3)
    patches = cut(numbered(3, 15, 15), grid=3, size=3, key=key)
    first = corners(patches)[:, :, :, None, None]
    inside = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
    assert torch.equal(patches.long(), first + inside)
    values = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 15, 15)
    assert torch.equal(cut(values, 3, 3, key).amin(dim=(1, 2, 3, 4)), torch.arange(3.0))


@pytest.mark.parametrize(("jitter", "reach"), [(None, [0, 1, 2, 3, 4]), (1, [1, 2, 3]), (0, [2])])
def test_places_are_all_those_allowed_and_equally_likely(jitter, reach):
    patches = cut(numbered(500, 21, 21), 3, 3, torch.arange(500), jitter)
    number = torch.arange(9)
    place = corners(patches) - 7 * torch.stack([number // 3, number % 3], dim=1)  # [500, 9, 2]
    for axis in (0, 1):
        found, count = place[:, :, axis].unique(return_counts=True)
        assert found.tolist() == reach
        share = count / count.sum() * len(reach)
        torch.testing.assert_close(share, torch.ones(len(reach)), atol=0.12, rtol=0)


def test_each_patch_of_each_sample_has_a_place_of_its_own():
    place = corners(cut(numbered(40, 30, 30), 3, 4, torch.arange(40))) % 10  # [40, 9, 2]
    columns = place.permute(1, 2, 0).flatten(0, 1)  # [18, 40], the patches and axes
    assert len({tuple(column.tolist()) for column in columns}) == 18
    assert len({tuple(sample.flatten().tolist()) for sample in place}) == 40


def test_a_place_belongs_to_the_sample_and_not_to_its_row():
    images, key = torch.randn(6, 1, 12, 12), torch.tensor([5, 900, 2, 7, 1, 3])
    patches = cut(images, 3, 2, key)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    assert torch.equal(cut(images[order], 3, 2, key[order]), patches[order])
    assert torch.equal(cut(images[2:4], 3, 2, key[2:4]), patches[2:4])


def test_a_gap_lies_between_patches_of_limited_jitter():
    corner = corners(cut(numbered(200, 27, 27), 3, 5, torch.arange(200), jitter=1))
    rows = corner.view(200, 3, 3, 2)[:, :, 0, 0]  # [200, 3]
    gap = rows.diff(dim=1) - 5
    assert gap.min() == 2 and gap.max() == 6  # 9 - 5, give or take 2


def test_what_does_not_fit_is_refused():
    images = torch.randn(1, 1, 28, 28)
    with pytest.raises(ValueError, match="10 pixels do not fit into 3 x 3 cells"):
        cut(images, 3, 10)
    with pytest.raises(ValueError, match="do not fit"):
        cut(torch.randn(1, 1, 40, 28), 3, 10)
    with pytest.raises(ValueError, match="8 pixels and 1 around do not fit"):
        cut(images, 3, 8, torch.arange(1), jitter=1)
