"""A grid file's points, its planned contrasts and which seeds each point runs with."""

from __future__ import annotations

import re

import pytest

from ssl_zoo.config import ConfigError, bind
from ssl_zoo.study.grid import Contrast, Grid, title

ARMS = {
    "MoCo": {"sweep": {"method.memory.size": [32, 4096]}},
    "end-to-end": {"sweep": {"31": {"data.batch_size": 32}}},
    "plain": {},
}
POINTS = [("MoCo", "32"), ("MoCo", "4096"), ("end-to-end", "31"), ("plain", None)]


def grid_of(**keys) -> Grid:
    return bind(Grid, {"base": "base.yaml", "arms": ARMS, **keys})()


def test_points_are_named_by_arm_and_place_on_its_sweep():
    assert grid_of().points == POINTS
    assert [title(point) for point in POINTS] == [
        "MoCo, 32",
        "MoCo, 4096",
        "end-to-end, 31",
        "plain",
    ]


def test_a_contrast_says_which_point_is_expected_to_be_better():
    texts = ["MoCo, 4096 > end-to-end, 31", "plain > MoCo, 32"]
    contrasts = grid_of(compare=texts).contrasts
    better = [contrast.better for contrast in contrasts]
    assert better == [("MoCo", "4096"), ("plain", None)]
    assert [contrast.worse for contrast in contrasts] == [("end-to-end", "31"), ("MoCo", "32")]
    assert [str(contrast) for contrast in contrasts] == texts


@pytest.mark.parametrize(
    "text, message",
    [
        ("plane > MoCo, 32", r"no arm, or no point of one.*'plane'.*nearest:\s+plain"),
        ("MoCo > plain", r"no arm, or no point of one.*'MoCo'"),
        ("MoCo, 32", r"no contrast.*'A > B', where A is expected to be better"),
        ("plain>MoCo, 32", "no contrast"),
        ("plain > MoCo, 32 > MoCo, 4096", "no contrast"),
        ("plain > plain", "an arm against itself"),
    ],
)
def test_a_text_that_is_no_contrast_is_an_error_that_says_why(text, message):
    with pytest.raises(ConfigError, match="compare: ") as error:
        grid_of(compare=[text])
    assert re.search(message, str(error.value), re.DOTALL), str(error.value)


def test_the_worse_side_of_a_contrast_may_be_a_baseline():
    text, known = "plain > random backbone", ["raw pixels", "random backbone"]
    contrast = Contrast.read(text, POINTS, known)
    assert contrast.worse == ("random backbone", None) and str(contrast) == text
    assert grid_of(compare=[text]).contrasts == [contrast]
    same_name = Contrast.read("plain > MoCo, 32", POINTS, ["MoCo, 32"])
    assert same_name.worse == ("MoCo", "32")
    with pytest.raises(ConfigError, match="no arm") as error:
        Contrast.read("plain > random backbne", POINTS, known)
    said = str(error.value).splitlines()  # names have commas, so each has a line
    assert "  expected: one of" in said and f"{'':12}MoCo, 32" in said
    assert said[-1] == "  nearest:  random backbone"


def test_points_that_a_contrast_names_run_with_seeds_and_the_rest_with_other_seeds():
    grid = grid_of(compare=["MoCo, 4096 > end-to-end, 31"], seeds=[0, 1, 2], other_seeds=[0])
    assert [grid.seeds_of(point) for point in POINTS] == [[0], [0, 1, 2], [0, 1, 2], [0]]


def test_without_other_seeds_all_points_run_with_seeds():
    grid = grid_of(compare=["MoCo, 4096 > end-to-end, 31"], seeds=[3, 4])
    assert {tuple(grid.seeds_of(point)) for point in POINTS} == {(3, 4)}


@pytest.mark.parametrize("key", ["seeds", "other_seeds"])
@pytest.mark.parametrize("seeds", [[], [0, 0]])
def test_no_seeds_or_a_repeat_are_an_error(key, seeds):
    with pytest.raises(ConfigError, match=f"{key}: no seeds, or a repeat"):
        grid_of(**{key: seeds})


def test_an_arms_name_with_a_comma_is_told_from_a_point():
    points = [("MoCo, long", None), ("MoCo", "32")]
    assert Contrast.read("MoCo, long > MoCo, 32", points).better == ("MoCo, long", None)
