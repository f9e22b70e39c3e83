"""Verdicts: the statistics against plain Python and hand-computed numbers, and what is said."""

import itertools
import math
from statistics import fmean, stdev

import numpy as np
import pytest

from ssl_zoo.study import verdict
from ssl_zoo.study.verdict import Comparison

DIFFERENCES = [0.3, 1.2, -0.1, 0.8, 2.0, 0.4, -0.6, 0.9]


def enumerated_p(differences):
    """All 2^S choices of signs, one by one."""
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in itertools.product([1, -1], repeat=len(differences))
    ]
    return sum(s >= abs(sum(differences)) - 1e-12 for s in sums) / len(sums)


def comparison(differences, unit="%", **more):
    return Comparison("A", "B", dict(enumerate(differences)), unit, **more)


# ---------------------------------------------------------------- the statistics


@pytest.mark.parametrize("seeds", range(1, 9))
def test_p_is_the_share_of_signs_that_are_as_far_from_zero(seeds):
    assert verdict.sign_flip_p(DIFFERENCES[:seeds]) == pytest.approx(
        enumerated_p(DIFFERENCES[:seeds])
    )


def test_p_counts_ties_on_both_sides():
    # Accuracies of a small test set are few: equal differences are common.
    for tied in ([1, 1, -1, 2, 0, 0.5], [0.1, 0.1, 0.1, -0.1, -0.1, 0.3], [0, 0, 0], [1, -1]):
        assert verdict.sign_flip_p(tied) == pytest.approx(enumerated_p(tied))


def test_p_of_many_studies_at_once_is_each_ones():
    many = np.random.default_rng(0).exponential(size=(2, 3, 6)) - 0.5
    p = verdict.sign_flip_p(many)
    assert p.shape == (2, 3)
    assert p[1, 2] == pytest.approx(enumerated_p(list(many[1, 2])))


@pytest.mark.parametrize("seeds", [2, 5, 8, 16])
def test_p_is_exact_to_the_smallest_that_so_many_seeds_can_show(seeds):
    clear = np.linspace(1, 2, seeds)
    assert verdict.sign_flip_p(clear) == verdict.smallest_p(seeds) == 2 / 2**seeds


def test_beyond_16_seeds_flips_are_drawn_always_the_same_and_none_is_impossible():
    drawn = np.random.default_rng(3).standard_normal(20) + 0.4
    assert verdict.sign_flip_p(drawn) == verdict.sign_flip_p(drawn)
    flips = np.random.default_rng(1).choice([-1, 1], size=(200_000, 20))
    expected = fmean(abs(flips @ drawn) >= abs(drawn.sum()))
    assert verdict.sign_flip_p(drawn) == pytest.approx(expected, abs=0.005)
    assert verdict.sign_flip_p(np.linspace(1, 2, 20)) == verdict.smallest_p(20) > 0


def test_the_interval_is_students():
    # t of 7 degrees of freedom at 0.975 is 2.3646, as tables have it.
    half = 2.3646 * stdev(DIFFERENCES) / math.sqrt(8)
    low, high = comparison(DIFFERENCES).interval
    assert (low, high) == pytest.approx(
        (fmean(DIFFERENCES) - half, fmean(DIFFERENCES) + half), abs=1e-3
    )


@pytest.mark.parametrize(
    "p, corrected",
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.9, 0.001, 0.5], [1.0, 0.003, 1.0]),
        ([0.04], [0.04]),
    ],
)
def test_holm_by_hand(p, corrected):
    assert verdict.holm(p) == pytest.approx(corrected)
    assert verdict.holm([p, p[::-1]])[1] == pytest.approx(corrected[::-1])


def test_the_fewest_seeds_are_those_whose_smallest_p_is_below_the_level():
    assert (verdict.fewest_seeds(), verdict.fewest_seeds(3)) == (6, 7)


def test_seeds_needed_are_as_many_as_have_the_power():
    # Two-sided, level 0.05, power 0.8, effect of one standard deviation: 10 pairs, as tables have.
    assert verdict.seeds_needed(1.0, 1.0) == 10
    assert verdict.seeds_needed(2.0, 2.0, 3) == verdict.seeds_needed(1.0, 1.0, 3) == 14
    assert verdict.seeds_needed(0.0, 1.0, 3) == verdict.seeds_needed(0.01, 1.0, 3) == 7
    draws = np.random.default_rng(0).standard_normal((4000, 8))
    for std in (0.5, 0.7):
        seeds = verdict.seeds_needed(std, 1.0)
        found = verdict.sign_flip_p(1 + std * draws[:, :seeds]) < 0.05
        assert seeds < 9 and found.mean() > 0.78


def test_the_error_over_classes_is_that_of_a_mean_of_classes():
    rng = np.random.default_rng(0)
    hits, images = rng.normal(0, 2, size=400), np.full(400, 20)
    classes, error = verdict.error_over_classes(hits, images)
    assert classes == 400
    assert error == pytest.approx(100 * (hits / 20).std() / 400**0.5, rel=0.06)
    assert verdict.error_over_classes(hits[:1], images[:1]) is None
    assert verdict.error_over_classes(hits, images) == (classes, error)


# ---------------------------------------------------------------- what is said


def test_a_clear_difference_names_the_better_one():
    clear = comparison([1.5 + d for d in DIFFERENCES])
    assert clear.verdict == "better"
    assert clear.sentence == "A is better than B by 2.1 points (1.4 to 2.8), p 0.0078"
    assert clear.spreads == "standard error 0.28 over 8 seeds"
    turned = comparison([-1.5 - d for d in DIFFERENCES])
    assert turned.verdict == "worse"
    assert turned.sentence == clear.sentence.replace("A is better than B", "B is better than A")


def test_where_lower_is_better_the_lower_one_is():
    lower = comparison([-1.5 - d for d in DIFFERENCES], "", higher_is_better=False)
    assert lower.sentence == "A is better than B by 2.1 (1.4 to 2.8), p 0.0078"


def test_an_unclear_difference_says_how_many_more_seeds_would_settle_one_point():
    unclear = comparison([3 * d - 1 for d in DIFFERENCES])
    needed = verdict.seeds_needed(3 * stdev(DIFFERENCES), 1.0)
    assert unclear.verdict == "cannot tell" and unclear.more_seeds == needed - 8
    assert unclear.sentence.startswith("cannot tell: A against B: +0.8 points (-1.2 to 2.9), p 0.3")
    assert unclear.sentence.endswith(
        f"; about {needed - 8} more seeds would settle a difference of 1 point"
    )


def test_enough_seeds_without_a_difference_say_so():
    tiny = comparison([0.2, -0.2] * 4)
    assert tiny.sentence.endswith("8 seeds would have shown a difference of 1 point, most likely")


def test_a_point_is_a_matter_of_percentages():
    assert comparison([3 * d - 1 for d in DIFFERENCES], "nats").sentence == (
        "cannot tell: A against B: +0.8 nats (-1.2 to 2.9), p 0.36"
    )


def test_planned_contrasts_are_settled_by_the_corrected_p():
    clear, unclear = comparison([0.5 + d for d in DIFFERENCES[:7]]), comparison(DIFFERENCES[:7])
    assert clear.p == pytest.approx(4 / 128) and clear.verdict == "better"
    first, second, third = verdict.planned([clear, unclear, comparison([])])
    assert first.p == pytest.approx(3 * 4 / 128) and first.verdict == "cannot tell"
    assert second.p == pytest.approx(2 * unclear.p) and third.p == 1 and first.contrasts == 3
    assert "p 0.094" in first.sentence


def test_a_planned_contrast_of_which_the_opposite_shows_is_contradicted():
    (found,) = verdict.planned([comparison([-1.5 - d for d in DIFFERENCES])])
    assert found.verdict == "worse"
    assert found.sentence.startswith("contradicted, A > B: B is better than A by 2.1 points")


def test_one_seed_ranks_nothing():
    one = comparison([0.3])
    assert one.sentence == "one seed ranks nothing: A against B: +0.3 points"
    assert (one.verdict, one.p, one.spreads) == ("cannot tell", 1.0, "")
    assert one.interval == (-math.inf, math.inf)


def test_no_pair_no_verdict():
    none = comparison([], lacking=(0, 1))
    assert none.verdict == "cannot tell"
    assert none.sentence == (
        "nothing to compare yet: A against B (without seeds 0, 1, not finished on both sides)"
    )


def test_differences_that_are_all_zero_are_said_and_rank_nothing():
    same = comparison([0.0] * 8)
    assert (same.verdict, same.p, same.interval) == ("cannot tell", 1.0, (0.0, 0.0))
    assert same.sentence == "no difference: A against B with each of 8 seeds"


def test_differences_that_are_all_equal_are_no_error():
    assert comparison([2.0] * 8).sentence == (
        "A is better than B by 2.0 points (2.0 to 2.0), p 0.0078"
    )
    assert comparison([2.0] * 2).sentence.endswith(
        "about 4 more seeds would settle a difference of 1 point"
    )


def test_seeds_are_paired_and_those_of_one_side_left_out():
    pairs = Comparison.of("A", "B", {0: 3.0, 2: 5.0, 3: 1.0}, {3: 2.0, 0: 1.0, 1: 9.0})
    assert pairs.differences == {0: 2.0, 3: -1.0}


def test_small_numbers_are_shown_with_the_digits_that_tell():
    small = comparison([d / 100 for d in DIFFERENCES], "")
    assert small.sentence == "cannot tell: A against B: +0.006 (-0.001 to 0.013), p 0.07"
