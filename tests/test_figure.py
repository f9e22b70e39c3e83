"""What the figure is given, from kept studies that are written by hand; and that it is drawn."""

import itertools
from dataclasses import replace
from statistics import fmean

import kept_study
import pytest
from PIL import Image

from ssl_zoo.study.costs import Cost
from ssl_zoo.study.report import figure, kept, looks, standing
from ssl_zoo.study.verdict import half_width, of_one_more


def written(folder, name, scores, contrasts=(), costs=(), epochs=4.0):
    """A kept study of `scores`, point -> a number a seed, of runs that took two minutes."""
    runs = []
    for point, values in scores.items():
        for seed, score in enumerate(values):
            curve = [[epochs / 2, score - 5], [epochs, score]]
            more = {"curve": curve, "epochs": epochs, "seconds": 120.0}
            runs.append(kept_study.run(*point, seed, score, **more))
    data = kept_study.study(name, runs, contrasts, costs=list(costs))
    return kept.load(kept_study.write(folder, data))


SWEEP = {
    ("MoCo", "32"): [50.0, 51.0, 52.0],
    ("MoCo", "256"): [53.0, 54.0],
    ("MoCo", "4096"): [55.0, 56.0, 57.0],
    ("end-to-end", "31"): [54.0, 55.0, 56.0],
    ("end-to-end", "127"): [57.0, 58.0],
}
COMPARE = ["MoCo, 4096 > MoCo, 32", "MoCo, 4096 > end-to-end, 31"]
DEMO = {("end-to-end", "31"): [54.0, 55.0, 56.5], ("MoCo", "32"): [50.0, 51.0, 52.5]}


def test_a_picture_says_what_it_was_drawn_from(tmp_path):
    picture = tmp_path / "figure.png"
    table = written(tmp_path, "kept", SWEEP)
    figure.draw(table, picture, "results/kept.json")
    assert Image.open(picture).info["Source"] == "results/kept.json"
    figure.draw(table, picture)
    assert "Source" not in Image.open(picture).info


def probes(points):
    of = {"batch_size": 32, "threads": 1, "of": "x"}
    return [{"arm": a, "x": x, "ms": 50.0, "peak_memory_gb": 1.0, **of} for a, x in points]


# ---------------------------------------------------------------- what is drawn


def test_a_sweep_of_values_below_one_is_drawn_with_its_costs(tmp_path):
    points = [("MoCo", x) for x in ("0.015", "0.03", "0.06")]
    probed = written(tmp_path, "rates", {p: [50.0, 51.0] for p in points}, costs=probes(points))
    figure.draw(probed, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()


def test_a_figure_has_a_panel_more_where_costs_were_probed(tmp_path):
    bare = written(tmp_path, "a", SWEEP, COMPARE)
    probed = written(tmp_path, "b", SWEEP, COMPARE, probes(SWEEP))
    assert [len(figure._swept(table).axes) for table in (bare, probed)] == [3, 4]
    figure.draw(probed, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_legend_of_many_arms_stays_inside(tmp_path):
    arms = [f"an arm that has a long name, {i}" for i in range(6)]
    scores = {(arm, x): [50.0, 51.0] for arm in arms for x in ("1", "2", "3")}
    drawn = figure._swept(written(tmp_path, "many", scores))
    drawn.draw_without_rendering()
    box, whole = drawn.legends[0].get_window_extent(), drawn.bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1


def test_two_points_of_an_arm_are_no_sweep(tmp_path):
    assert figure.is_swept(written(tmp_path, "a", SWEEP))
    demo = written(tmp_path, "b", DEMO)
    assert not figure.is_swept(demo) and len(figure._not_swept(demo, None).axes) == 2


def test_planned_points_are_solid_and_all_are_where_none_is_planned(tmp_path):
    table = written(tmp_path, "a", SWEEP, COMPARE)
    solid = [point for point in SWEEP if table.study.planned(point)]
    assert solid == [("MoCo", "32"), ("MoCo", "4096"), ("end-to-end", "31")]
    table = written(tmp_path, "a", SWEEP)
    assert all(table.study.planned(point) for point in SWEEP)


def test_curves_of_a_sweep_are_what_is_planned_and_what_lies_beyond(tmp_path):
    table = written(tmp_path, "a", SWEEP, COMPARE)
    drawn = [(row.arm, row.x) for row in figure._drawn_rows(table, table.main)]
    assert drawn == [point for point in SWEEP if point != ("MoCo", "256")]
    table = written(tmp_path, "a", SWEEP)
    drawn = [(row.arm, row.x) for row in figure._drawn_rows(table, table.main)]
    assert drawn == [("MoCo", "4096"), ("end-to-end", "127")]


def test_time_is_of_the_probes_if_every_point_has_one(tmp_path):
    table = written(tmp_path, "a", SWEEP, costs=probes(SWEEP))
    minutes, how = figure.training_time(table)
    # 600 steps of 50 ms are half a minute for 4 epochs; the runs themselves took 2 minutes.
    assert minutes(table.rows[0], 4.0) == pytest.approx(0.5) and "probed" in how
    assert minutes(table.rows[0], 2.0) == pytest.approx(0.25)
    minutes, how = figure.training_time(replace(table, costs=table.costs[1:]))
    assert minutes(table.rows[0], 4.0) == pytest.approx(2.0) and "runs took" in how


def test_an_arm_looks_the_same_in_whatever_order_a_grid_has_it(tmp_path):
    one = written(tmp_path, "a", SWEEP).study
    other = written(tmp_path, "b", DEMO).study
    assert list(one.blocks) != list(other.blocks)
    assert all(looks.look_of(one, arm) == looks.look_of(other, arm) for arm in one.blocks)


@pytest.mark.parametrize("values", [[1.0, 1.1, 1.2, 5.0], [3.0, 3.0, 3.0], [9.9, 0.1, 9.8], [2.0]])
def test_names_are_moved_apart_and_keep_their_order(values):
    moved = looks.spaced(values, 1.0, 0.0, 10.0)
    order = sorted(range(len(values)), key=values.__getitem__)
    placed = [moved[i] for i in order]
    assert all(b - a >= 1.0 - 1e-9 for a, b in itertools.pairwise(placed))
    assert all(0.0 <= y <= 10.0 for y in moved)
    if values == [3.0, 3.0, 3.0]:
        assert placed == [2.0, 3.0, 4.0]


def test_curves_that_lack_an_epoch_are_averaged_where_all_have_it(tmp_path):
    table = written(tmp_path, "a", DEMO)
    (first, *_), row = table.rows[0].outcomes, table.rows[0]
    first.lines.pop(0)
    assert figure.curve_of(row, table.main) == {4.0: [54.0, 55.0, 56.5]}


# ---------------------------------------------------------------- intervals


def test_intervals_are_students():
    values = [1.0, 2.0, 3.0, 4.0]  # s 1.29099, t(0.975, 3) 3.18245
    assert half_width(values) == pytest.approx(3.18245 * 1.29099 / 2, rel=1e-4)
    low, high = of_one_more(values)
    assert (low + high) / 2 == 2.5
    assert (high - low) / 2 == pytest.approx(3.18245 * 1.29099 * 1.25**0.5, rel=1e-4)


# ---------------------------------------------------------------- beside a kept study


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Makes a study of one seed that names a kept one of three."""
    monkeypatch.setattr(standing, "recipe", lambda run: {"optimizer.lr": 0.1})
    written(tmp_path, "kept", DEMO, ["MoCo, 32 > end-to-end, 31"])

    def make(scores, **more):
        table = written(tmp_path, "own", scores, **more)
        return replace(table, study=replace(table.study, kept=tmp_path / "kept.json"))

    return make


def test_a_run_is_told_to_lie_inside_or_outside(beside, tmp_path):
    table = beside({("end-to-end", "31"): [55.5], ("MoCo", "32"): [70.0]})
    inside, outside, *shown = standing.section(table).lines
    assert "it has seed 0 too" in standing.section(table).note
    low, high = of_one_more(DEMO["end-to-end", "31"])
    interval = f"the prediction interval of 3 seeds, {low:.2f} to {high:.2f}"
    assert inside == f"end-to-end, 31, seed 0: 55.50, in {interval}"
    assert outside.startswith("MoCo, 32, seed 0: 70.00, outside of the prediction interval")
    assert 1 <= len(shown) <= 2 and "MoCo, 32" in shown[0]
    figure.draw(table, tmp_path / "figure.png")
    assert figure._not_swept(table, standing.comparable(table)).axes[0].patches


def test_of_many_runs_those_inside_are_counted_and_those_outside_told(beside):
    scores = [55.0, 55.5, 56.0, 55.2, 55.1, 55.3, 55.4, 55.6, 99.0]
    count, outside, *_ = standing.section(beside({("end-to-end", "31"): scores})).lines
    assert count == "8 of 9 runs lie in the prediction interval of their point; the others:"
    assert outside.startswith("end-to-end, 31, seed 8: 99.00, outside of the prediction interval")


def test_what_is_of_another_kind_is_not_compared(beside, monkeypatch):
    longer = beside(DEMO, epochs=8.0)
    assert "not compared: MoCo, 32: epochs 4.0 -> 8.0" in standing.section(longer).lines
    monkeypatch.setattr(standing, "recipe", lambda run: {"optimizer.lr": 0.2})
    table = beside({("MoCo", "32"): [51.0], ("MoCo", "64"): [51.0]})
    lines = standing.section(table).lines
    assert "not compared: MoCo, 32: optimizer.lr: 0.1 -> 0.2" in lines
    assert "not compared: MoCo, 64: no such point in the kept study" in lines
    assert standing.comparable(table) is None


def test_another_protocol_is_not_compared(beside):
    table = beside(DEMO)
    for outcome in table.outcomes:
        outcome.evaluations["knn"]["hash"] = "other"
    assert "not compared: MoCo, 32: protocol 1a2b -> other" in standing.section(table).lines


def test_a_kept_study_that_is_not_there_yet_is_said(beside, tmp_path):
    table = beside(DEMO)
    (tmp_path / "kept.json").unlink()
    (line,) = standing.section(table).lines
    assert line == f"there is none yet: {tmp_path / 'kept.json'}"
    assert standing.comparable(table) is None


def test_two_sentences_say_what_the_kept_study_shows(tmp_path):
    scores = {
        ("A", None): [60.0, 61.2, 60.4, 61.1, 60.2, 61.5, 60.3, 60.8],
        ("B", None): [50.3, 50.9, 50.2, 51.0, 50.4, 51.1, 50.0, 50.6],
        ("C", None): [60.9, 60.1, 61.0, 60.3, 61.2, 60.4, 60.9, 60.2],
    }
    table = written(tmp_path, "a", scores, ["A > B", "A > C"])
    shown, rest = standing.what_it_shows(table)
    difference = fmean(scores["A", None]) - fmean(scores["B", None])
    assert shown.startswith(f"The kept study shows: A is better than B by {difference:.1f}")
    assert rest.startswith("It does not show the rest: cannot tell: A against C")


# ---------------------------------------------------------------- what K costs


def test_a_cost_survives_a_kept_study(tmp_path):
    table = written(tmp_path, "a", DEMO, costs=probes(DEMO))
    assert table.costs[0] == Cost("end-to-end", "31", 50.0, 1.0, 32, 1, "x")
