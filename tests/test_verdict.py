"""Verdicts: the statistics against plain Python and hand-computed numbers, and what is said."""

import io
import itertools
import json
import math
import re
import shutil
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from rich.console import Console

from ssl_zoo import cli
from ssl_zoo.config import ConfigError
from ssl_zoo.study import grid, report, verdict
from ssl_zoo.study.report import kept, results, verdicts
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


def test_p_counts_ties_of_counts_whatever_rounding_makes_of_them():
    rng, images = np.random.default_rng(0), 1000
    for seeds in rng.integers(6, 9, 50):
        a = rng.integers(600, 640, seeds)
        b = a - rng.integers(-3, 7, seeds)
        scores = [(torch.tensor(x).float() / images * 100).numpy().astype(float) for x in (a, b)]
        for of_a, of_b in (scores, np.round(scores, 5)):
            assert verdict.sign_flip_p(of_a - of_b) == enumerated_p(list(a - b))


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
        "nothing to compare yet: A against B (without seeds 0, 1: "
        "not finished on both sides, or evaluated in two ways)"
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


# ---------------------------------------------------------------- studies and the command


GRID = """
base: base.yaml
seeds: [0, 1, 2, 3, 4, 5, 6, 7]
other_seeds: [0, 1]
compare: ["MoCo, 64 > bank", "bank > other"]
arms:
  MoCo: {sweep: {method.memory.size: [64, 128]}}
  bank: {set: {method.memory: {type: MemoryBank}}}
  other: {set: {optimizer.lr: 0.2}}
"""
BASE = """
data:
  dataset: {type: Digits}
  views: {count: 2, ops: {}}
  clean: {ops: {}}
  batch_size: 32
backbone: {type: TinyNet}
method:
  type: Contrastive
  head: {type: Linear, out_features: 16}
  memory: {type: MoCoQueue, size: 128}
  loss: {type: InfoNCE}
optimizer: {type: SGD, lr: 0.1}
train: {epochs: 1}
evaluations:
  knn: {type: KNN, k: 20, every_epochs: null}
  nearest: {type: KNN, k: 1, every_epochs: null}
"""
IMAGES, CLASSES = 400, 20
# Of 400 test images, how many more than 200 are right, by seed.
RIGHT = {
    "MoCo, 64": [40, 44, 38, 41, 47, 39, 42, 45],
    "MoCo, 128": [40, 43],
    "bank": [30, 36, 33, 29, 35, 33, 30, 37],
    "other": [50, 51, 55, 48, 49, 50, 57, 53],
}


def fake_run(run, right, k="20"):
    """What a finished run leaves, without training."""
    folder = run.files
    labels = [i % CLASSES for i in range(IMAGES)]
    rng = np.random.default_rng(run.seed)
    hit = np.isin(np.arange(IMAGES), rng.permutation(IMAGES)[: 200 + right])
    rows = "index,label,prediction,score\n" + "".join(
        f"{i},{label},{label if h else CLASSES},0.5\n"
        for i, (label, h) in enumerate(zip(labels, hit, strict=True))
    )
    evaluations = {}
    for name in ("knn", "nearest"):
        metrics = {"top1": 100 * hit.mean(), "top5": 99.0}
        of = {"k": int(k), "data": {"test_images": IMAGES}}
        evaluations[name] = {
            "type": "KNN",
            "metrics": metrics,
            "main": "top1",
            "unit": "%",
            "protocol": {"k": int(k)},
            "of": of,
            "hash": f"h{k}",
        }
        folder.write_evaluation(name, evaluations[name], rows)
    folder.write_config(run.config)
    folder.write_result({"evaluations": evaluations})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a study whose runs are finished, and the study."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "base.yaml").write_text(BASE)
    (folder / "grid.yaml").write_text(GRID)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        expanded = grid.expand("grid.yaml", "out")
        for run in expanded.runs:
            fake_run(run, RIGHT[grid.title((run.arm, run.x))][run.seed])
    return folder, expanded


@pytest.fixture
def study(written, tmp_path, monkeypatch):
    """A copy, as the current folder."""
    monkeypatch.setattr(report.figure, "draw", lambda table, path: path.touch())
    shutil.copytree(written[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return written[1]


def differences_of(a, b):
    return [(x - y) / IMAGES * 100 for x, y in zip(RIGHT[a], RIGHT[b], strict=False)]


def test_planned_contrasts_are_corrected_in_the_main_evaluation_alone(study):
    table = results.read(study)
    first, second = verdicts.planned(table)
    assert list(first.differences.values()) == pytest.approx(differences_of("MoCo, 64", "bank"))
    raw = [
        enumerated_p(differences_of(*names)) for names in (("MoCo, 64", "bank"), ("bank", "other"))
    ]
    assert [first.raw_p, second.raw_p] == raw == [2 / 256, 2 / 256]
    assert first.p == second.p == 4 / 256
    assert (first.verdict, second.verdict) == ("better", "worse")
    elsewhere = verdicts.planned(table, table.columns[1])
    assert [c.p for c in elsewhere] == raw and elsewhere[0].contrasts == 0


def test_what_is_not_planned_is_exploratory_at_the_same_point(study):
    # 'bank' and 'other' have no sweep and MoCo has no point without one: nothing to compare.
    assert verdicts.exploratory(results.read(study)) == []


def test_every_form_of_the_report_has_the_verdicts(study):
    report.write_report(study)
    text = (study.out / "table.md").read_text()
    assert "## Planned contrasts, knn top1" in text
    shown = "- MoCo, 64 is better than bank by 2.3 points (1.7 to 2.9), p 0.016 [standard error 0.2"
    assert shown in text and " over 8 seeds, " in text and " over 20 classes]" in text
    assert "- contradicted, bank > other: other is better than bank by 4.7 points" in text
    assert "by Holm over 2; 8 seeds can show p 0.016 at best" in text
    assert "- nearest top1: MoCo, 64 is better than bank by 2.3 points" in text
    page = (study.out / "report.html").read_text()
    assert "MoCo, 64 is better than bank by 2.3 points (1.7 to 2.9), p 0.016" in page
    assert "contradicted, bank &gt; other" in page
    assert "bank &gt; other" in page.partition("What the arms set")[2]
    console = Console(record=True, width=300, markup=False, file=io.StringIO())
    report.print_report(report.read_report(study), console)
    assert "MoCo, 64 is better than bank by 2.3 points" in console.export_text()


def test_a_failed_run_is_left_out_and_said(study):
    run = next(run for run in study.runs if (run.arm, run.seed) == ("bank", 3))
    (run.folder / "result.json").unlink()
    run.files.write_error("out of memory")
    first, _ = verdicts.planned(results.read(study))
    assert first.seeds == 7 and first.lacking == [3]
    assert "(without seed 3: not finished on both sides" in first.sentence


def test_runs_of_two_protocols_are_no_pair(study):
    run = next(run for run in study.runs if (run.arm, run.seed) == ("bank", 3))
    fake_run(run, 29, k="5")
    assert verdicts.planned(results.read(study))[0].lacking == [3]


def test_the_error_over_classes_is_of_the_rows(study):
    table = results.read(study)
    first, _ = verdicts.planned(table)
    expected = np.zeros(CLASSES)
    for run in study.runs:
        sign = {"MoCo, 64": 1, "bank": -1}.get(grid.title((run.arm, run.x)), 0)
        for line in (run.folder / "evaluations/knn/rows.csv").read_text().splitlines()[1:]:
            _, label, prediction, _ = line.split(",")
            expected[int(label)] += sign * (label == prediction)
    of_class = 100 * expected / (8 * IMAGES / CLASSES)  # points
    assert of_class.mean() == pytest.approx(first.mean)
    assert first.over_classes.classes == CLASSES
    assert first.over_classes.standard_error == pytest.approx(
        of_class.std() / CLASSES**0.5, rel=0.1
    )


def test_rows_of_another_moment_are_not_taken_for_the_scores(study):
    run = next(run for run in study.runs if (run.arm, run.seed) == ("bank", 3))
    path = run.files.rows_path("knn")
    path.write_text(path.read_text().replace(f",{CLASSES},0.5", ",0,0.5", 40))
    first, _ = verdicts.planned(results.read(study))
    assert first.over_classes is None and first.seeds == 8
    path.unlink()
    assert verdicts.planned(results.read(study))[0].over_classes is None


def test_a_study_that_has_not_begun_has_no_verdicts(study):
    for run in study.runs:
        (run.folder / "result.json").unlink()
    assert verdicts.in_words(results.read(study)) == []


@pytest.fixture
def untrained(study):
    """The study with a contrast against the untrained network, and how much better than it."""
    text = GRID.replace('["MoCo, 64 > bank"', '["other > random backbone", "MoCo, 64 > bank"')
    Path("grid.yaml").write_text(text)
    found, better = grid.expand("grid.yaml", "out"), {}
    # Of an evaluation that both had: what its hash covers besides is the network.
    result = json.loads((found.runs[0].folder / "result.json").read_text())["evaluations"]["knn"]
    of = result["of"] | {"network": "random backbone"}
    baselines = []
    for run in (run for run in found.runs if run.arm == "other"):
        right = 170 + 3 * (run.seed % 3)
        better[run.seed] = (200 + RIGHT["other"][run.seed] - right) / IMAGES * 100
        score = {"metrics": {"top1": right / IMAGES * 100}, "of": of, "hash": "another"}
        of_run = {"depends_on": run.baselines["knn"]["random backbone"]}
        of_run |= {"evaluation": "knn", "baseline": "random backbone"}
        baselines.append(result | score | of_run)
    Path("out/baselines.json").write_text(json.dumps(baselines))
    return found, better


def test_a_contrast_with_the_untrained_network_is_of_each_seeds_own(untrained):
    study, better = untrained
    table = results.read(study)
    first, *others = verdicts.planned(table)
    assert first.differences == pytest.approx(better) and first.over_classes is None
    assert (first.contrasts, first.raw_p, first.p) == (3, 2 / 256, 6 / 256)
    assert [c.p for c in others] == [6 / 256] * 2 and others[0].over_classes is not None
    assert first.sentence.startswith("other is better than random backbone by 19.8 points (")
    planned, exploratory = verdicts.in_words(table)
    assert "other is better than random backbone" in planned.lines[0]
    # What is known of no seed in the other evaluation is no line of it.
    assert not any("random backbone" in line for line in exploratory.lines)


def test_a_contrast_with_a_baseline_is_in_kept_results_and_in_compare(untrained, capsys):
    study, _ = untrained
    kept.write(study, Path("kept.json"))
    sentence = verdicts.planned(results.read(study))[0].sentence
    assert verdicts.planned(kept.load("kept.json"))[0].sentence == sentence
    for where in ("out", "kept.json"):
        code, said = compare(f"{where}:other", "random backbone", capsys=capsys)
        alone = sentence.replace("p 0.023", "p 0.0078")
        assert code == 0 and said.out.startswith(f"knn top1: {alone}\n")
        assert "configs" not in said.out
    code, said = compare("out:other", "random backbone", "nearest", capsys=capsys)
    assert code == 2 and "B: no baseline of other's nearest" in said.err


def test_baselines_that_are_lacking_or_of_other_images_are_no_pair(untrained):
    study, _ = untrained
    path = study.out / "baselines.json"
    second, *rest = json.loads(path.read_text())[1:]  # without seed 0's
    second["of"]["data"] = {"test_images": IMAGES + 1}
    path.write_text(json.dumps([second, *rest]))
    found = verdicts.planned(results.read(study))[0]
    assert found.seeds == 6 and found.lacking == [0, 1]


@pytest.mark.parametrize("worse", ["random backbne", "color statistics"])
def test_a_worse_side_that_is_neither_arm_nor_baseline_is_an_error(study, worse):
    text = GRID.replace("bank > other", f"bank > {worse}")
    Path("grid.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"grid\.yaml: compare: no arm") as error:
        grid.expand("grid.yaml", "out")
    assert "MoCo, 128\n" in str(error.value) and "random backbone" in str(error.value)


def exploratory_lines(folder, arms, seeds, right):
    arms = ", ".join(f"a{i}: {{set: {{optimizer.lr: 0.{i + 1}}}}}" for i in range(arms))
    text = f"base: base.yaml\nseeds: {seeds}\narms: {{{arms}}}\n"
    (folder / "many.yaml").write_text(text)
    study = grid.expand(folder / "many.yaml", Path("many") / str(len(seeds)))
    for run in study.runs:
        fake_run(run, right(int(run.arm[1:]), run.seed))
    (section,) = verdicts.in_words(results.read(study))
    assert section.heading == "Exploratory"
    return section.lines, section.note


def test_a_grid_without_contrasts_compares_each_arm_with_the_first(study, tmp_path):
    lines, note = exploratory_lines(
        tmp_path, 3, list(range(6)), lambda arm, seed: 8 * arm + seed % 2
    )
    assert len(lines) == 2
    assert lines[1].startswith("knn top1: a2 is better than a0 by 4.0 points (4.0 to 4.0), p 0.031")
    assert "p is of each alone" in note and "6 seeds can show p 0.031 at best" in note


def test_a_grid_of_many_arms_gets_a_line_for_each_outcome(study, tmp_path):
    def right(arm, seed):
        return [0, 8, -8, 8, 0, 1, 8, 8, 4][arm] * (1 if arm != 5 else (-1) ** seed)

    lines, _ = exploratory_lines(tmp_path, 9, list(range(6)), right)
    assert lines == [
        "knn top1: better than a0: a1 +2.0; a3 +2.0; a6 +2.0; a7 +2.0; a8 +1.0",
        "knn top1: worse than a0: a2 -2.0",
        "knn top1: cannot tell from a0: a4 +0.0; a5 +0.0",
    ]
    lines, note = exploratory_lines(tmp_path, 9, [0], right)
    assert lines == ["one seed ranks nothing: 8 differences to a0 are not judged"]
    assert "1 seed can show p 1 at best and settle nothing" in note


def compare(*words, capsys):
    code = cli.main(["compare", *words])
    return code, capsys.readouterr()


def test_compare_takes_points_of_a_study_and_folders_of_arms(study, capsys):
    code, said = compare("out:MoCo, 64", "out:bank", capsys=capsys)
    assert code == 0
    first, spreads, best, *configs = said.out.splitlines()
    assert first == ("knn top1: MoCo, 64 is better than bank by 2.3 points (1.7 to 2.9), p 0.0078")
    assert spreads.startswith("  standard error 0.2") and spreads.endswith("over 20 classes")
    assert best == "  8 seeds can show p 0.0078 at best; p is not corrected"
    assert configs[0] == "  configs differ in:"
    assert "    method.memory.type: 'MoCoQueue' -> 'MemoryBank'" in configs
    assert not any("seed" in line or "optimizer" in line for line in configs)
    code, folders = compare("out/moco/64", "out/bank", "knn.top1", capsys=capsys)
    assert code == 0
    names = {"out/moco/64": "MoCo, 64", "out/bank": "bank"}
    text = folders.out
    for folder, name in names.items():
        text = text.replace(folder, name)
    assert text == said.out


def test_compare_takes_runs_other_metrics_and_whole_studies(study, capsys):
    code, said = compare("out/moco/64/seed0", "out/bank/seed0", capsys=capsys)
    assert code == 0 and "one seed ranks nothing" in said.out and "+2.5 points" in said.out
    code, said = compare("out:other", "out:bank", "nearest.top5", capsys=capsys)
    assert code == 0 and "nearest top5: no difference" in said.out
    assert "over classes: not known" in said.out
    again = grid.expand("grid.yaml", Path("again"))
    for run in again.runs:
        fake_run(run, RIGHT[grid.title((run.arm, run.x))][run.seed] + 8)
    code, said = compare("again", "out", capsys=capsys)
    assert code == 0 and said.out.count("knn top1: ") == 4
    assert "bank of again is better than bank of out by 2.0 points" in said.out
    assert "configs are the same" in said.out


@pytest.mark.parametrize(
    "words, message",
    [
        (["out:MoCo, 63", "out:bank"], r"A: no such point of out.*nearest:\s+moco/64"),
        (["out:bank", "nowhere"], r"B: no such thing.*found:\s+nowhere.*STUDY:POINT"),
        (["out", "out:bank"], r"A: several points.*\n {12}moco/128\n.*'out:POINT'"),
        (["out:bank", "out:other", "kn"], r"METRIC: no evaluation of bank.*nearest:\s+knn"),
        (["out:bank", "out:other", "knn.top2"], r"METRIC: no metric of bank's knn.*one of top1"),
        (["out/bank/seed0", "out/other/seed1"], r"no seed that both have finished.*: 0;.*: 1"),
        (["empty", "out:bank"], r"A: no runs"),
    ],
)
def test_compare_says_what_is_wrong(study, words, message, capsys):
    Path("empty").mkdir()
    code, said = compare(*words, capsys=capsys)
    assert code == 2 and re.search(message, said.err, re.DOTALL), said.err


def test_compare_refuses_other_protocols_and_says_which_argument(study, capsys):
    for run in study.runs:
        if run.arm == "bank":
            fake_run(run, 20, k="5")
    code, said = compare("out:MoCo, 64", "out:bank", capsys=capsys)
    assert code == 2
    assert "knn: MoCo, 64 and bank were evaluated in two ways, which do not compare" in said.err
    assert re.search(r"found:\s+k: 20 -> 5\n", said.err)


def test_compare_takes_a_kept_study(study, capsys):
    kept.write(study, Path("kept.json"))
    code, folders = compare("out:MoCo, 64", "out:bank", capsys=capsys)
    assert code == 0
    code, said = compare("kept.json:MoCo, 64", "kept.json:bank", capsys=capsys)
    assert code == 0 and said.out == folders.out
    code, said = compare("kept.json:bank", "out:other", capsys=capsys)
    assert code == 0 and "other is better than bank by 4.7 points" in said.out
    assert "    optimizer.lr: 0.1 -> 0.2\n" in said.out
    code, said = compare("kept.json:bnk", "out:bank", capsys=capsys)
    assert code == 2 and re.search(
        r"A: no such point of kept.json.*nearest:\s+bank", said.err, re.S
    )
