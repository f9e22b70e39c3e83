"""docs/reproduction.md is what its tool writes; verdicts and deviations are computed."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path

import kept_study
import pytest

from ssl_zoo import config, experiment
from ssl_zoo.cli.command_line import parsed
from ssl_zoo.config import ConfigError
from ssl_zoo.study.grid import expand

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

import claims
import reproduction_page

ROOT = Path(__file__).resolve().parents[1]

PAPER = """
title: A paper
arxiv: "1911.05722"
tables:
  Figure 3:
    protocol: ImageNet.
    reason: Smaller.
    claims:
      it holds:
        says: It does.
        source: P
"""
ORDER = """
        theirs: {MoCo 4096: 59.0, MoCo 32: 54.0}
        ours: {result: fig3, compare: "MoCo, 4096 > MoCo, 32"}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "results").mkdir()
    kept_study.write(tmp_path / "results", kept_study.fig3())
    return tmp_path


def read(folder, claim, paper=PAPER):
    """The claim of a ledger that has one."""
    (folder / "ledger").mkdir(exist_ok=True)
    (folder / "ledger" / "paper.yaml").write_text(paper + claim)
    (entry,) = claims.read(folder / "ledger", folder / "results")
    return entry.held["Figure 3"]["it holds"]


def ours(compare, theirs="", **more):
    block = {"result": "fig3", "compare": compare, **more}
    inside = ", ".join(f"{key}: {value!r}" for key, value in block.items())
    return f"\n        theirs: {{{theirs}}}\n        ours: {{{inside}}}\n"


def error_of(folder, claim, paper=PAPER):
    with pytest.raises(ConfigError) as caught:
        read(folder, claim, paper)
    return str(caught.value)


def test_the_page_is_what_would_be_written():
    page = reproduction_page.render(claims.read())
    written = reproduction_page.PAGE.read_text(encoding="utf-8")
    assert written == page, "run: python tools/reproduction_page.py"


def test_check_says_that_a_page_is_old(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduction_page, "PAGE", tmp_path / "reproduction.md")
    assert reproduction_page.main(["--check"]) == 1
    assert "python tools/reproduction_page.py" in capsys.readouterr().out
    assert not reproduction_page.PAGE.exists()


def commands():
    found = {}
    for entry in claims.read():
        for name, table in entry.paper.tables.items():
            of_claims = (held.claim.command for held in entry.held[name].values())
            found |= dict.fromkeys(filter(None, [table.command, *of_claims]))
    return list(found)


@pytest.mark.parametrize("command", commands(), ids=lambda text: text[8:70])
def test_every_command_of_the_ledger_is_accepted(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = parsed(shlex.split(command)[1:])
    if " ablate " in command:
        assert expand(arguments.grid, None, arguments.overrides, arguments.base).runs
    else:
        experiment.parse(config.load(arguments.config, arguments.overrides))


# ---------------------------------------------------------------- verdicts


def test_an_order_that_seeds_agree_on_is_shown_and_its_reverse_contradicted(folder):
    held = read(folder, ORDER)
    assert held.verdict == "shown" and held.comparison.contrasts == 3
    assert held.comparison.p == pytest.approx(3 * 2 / 2**8)
    reverse = read(folder, ours("MoCo, 32 > MoCo, 4096"))
    assert reverse.verdict == "contradicted" and reverse.comparison.contrasts == 0
    assert reverse.comparison.p == pytest.approx(2 / 2**8)


def test_an_arm_may_be_held_against_its_baseline(folder):
    held = read(folder, ours("MoCo, 32 > raw pixels"))
    assert held.verdict == "shown" and held.scores[1] == dict.fromkeys(range(8), 20.0)
    assert held.comparison.mean == pytest.approx(47.0)  # 60 to 74, less 20
    cell = reproduction_page.ours(held)
    assert "against raw pixels 20.0" in cell and "+47.0 points" in cell


def test_a_difference_too_small_to_matter_is_not_shown(folder):
    small = ours("MoCo, 4096 > end-to-end, 31")
    assert read(folder, small).verdict == "not shown"
    tight = ours("MoCo, 4096 > end-to-end, 31", margin=0.01)
    assert read(folder, tight).verdict == "cannot tell at this size"


def test_a_level_is_shown_within_the_margin_and_contradicted_beyond(folder):
    assert read(folder, ours("MoCo, 4096 = end-to-end, 31")).verdict == "shown"
    assert read(folder, ours("MoCo, 32 = end-to-end, 31")).verdict == "contradicted"
    tight = ours("MoCo, 4096 = end-to-end, 31", margin=0.01)
    assert read(folder, tight).verdict == "cannot tell at this size"


def test_five_seeds_show_nothing_and_one_neither(folder):
    for seeds in (1, 5):
        kept_study.write(folder / "results", kept_study.fig3(seeds))
        assert read(folder, ORDER).verdict == "cannot tell at this size"
    assert read(folder, ours("MoCo, 4096 = end-to-end, 31")).deviation is None
    kept_study.write(folder / "results", kept_study.fig3(1))
    number = read(folder, ours("MoCo, 32", "top1: 60.0"))
    assert number.verdict == "cannot tell at this size" and number.deviation == (0.0, None)


def test_deviations_are_computed_in_points_and_in_standard_errors(folder):
    points, errors = read(folder, ORDER).deviation
    assert points == pytest.approx(3 - 5)
    # Differences are 3.1 and 2.9 in turn: their standard deviation is sqrt(8 / 7) / 10.
    assert errors == pytest.approx(-2 / (0.1 * math.sqrt(8 / 7) / math.sqrt(8)))
    (line,) = rows(folder)
    assert "| -2.0 points, -52.9 SE | shown |" in line
    assert "MoCo, 4096 70.0 ± 4.9 against MoCo, 32 67.0 ± 4.9; +3.0 points (+2.9 to +3.1)" in line


def rows(folder):
    page = reproduction_page.render(claims.read(folder / "ledger", folder / "results"))
    return [line for line in page.splitlines() if line.startswith("| *it holds*")]


def test_a_number_is_compared_at_the_end_or_with_the_highest_of_all_epochs(folder):
    wide = {"margin": 10}
    assert read(folder, ours("MoCo, 32", "top1: 60.0", **wide)).deviation[0] == pytest.approx(7)
    held = read(folder, ours("MoCo, 32", "top1: 60.0", at="highest", **wide))
    assert held.deviation[0] == pytest.approx(7.5)
    assert "| highest 67.5 ± 4.9, at the end 67.0 ± 4.9, 8 seeds | +7.5 points" in rows(folder)[0]


def test_costs_are_compared_as_ratios_and_less_is_better(folder):
    memory = {"on": "peak_memory_gb", "of": "ratio"}
    numbers = "MoCo: 5.0, end-to-end: 7.5"
    held = read(folder, ours("MoCo, 4096 > end-to-end, 31", numbers, **memory))
    assert held.verdict == "shown" and held.deviation == (pytest.approx(0), None)
    time = {"on": "seconds", "of": "ratio"}
    held = read(folder, ours("MoCo, 4096 > end-to-end, 31", "MoCo: 53, end-to-end: 65", **time))
    assert held.verdict == "shown"
    (line,) = rows(folder)
    assert "seconds: MoCo, 4096 80.5 ± 0.5 against end-to-end, 31 100.0 ± 0.0" in line
    assert "; 0.80 times (0.80 to 0.81), p 0.0078, 8 seeds, exploratory | 0.99 times theirs" in line


def test_nothing_is_held_against_a_remembered_number(folder):
    paper = PAPER.replace("source: P", "source: M")
    held = read(folder, ORDER, paper)
    assert held.verdict == "shown" and held.deviation is None
    assert "MoCo 4096: 59.0, MoCo 32: 54.0 (M)" in rows(folder)[0]
    assert "a verdict on a number from memory" in error_of(
        folder, ours("MoCo, 32", "top1: 60.0"), paper
    )


def test_what_was_not_run_has_the_command_and_no_number(folder):
    (folder / "results" / "fig3.json").unlink()
    assert read(folder, ORDER).verdict == "not run"
    page = reproduction_page.render(claims.read(folder / "ledger", folder / "results"))
    assert "| not run | – | not run |" in page
    assert "`results/fig3.json`: not run yet. `ssl-zoo ablate configs/ablation/fig3.yaml`" in page


def test_a_point_that_is_planned_and_not_kept_yet_is_not_run_yet(folder):
    data = kept_study.fig3()
    data["runs"] = [run for run in data["runs"] if run["arm"] != "memory bank"]
    data["contrasts"] = [text for text in data["contrasts"] if "bank" not in text]
    kept_study.write(folder / "results", data)
    assert read(folder, ours("MoCo, 4096 > memory bank, 4096")).verdict == "not run"


# ---------------------------------------------------------------- what is wrong is named

NOT_RUN = "        verdict: not run\n"


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        (NOT_RUN + "        sourse: P\n", ["sourse: unknown key of Claim", "nearest:  source"]),
        ("        verdict: shown\n", ["verdict", "not one of the choices"]),
        ("", ["verdict", "neither"]),
        (ORDER + NOT_RUN, ["verdict", "both"]),
        (ours("MoCo, 4096 > MoCo, 33"), ["ours.compare: no arm", "nearest:  MoCo, 32"]),
        (ours("MoCo, 4096 > "), ["compare: no comparison"]),
        (ours("raw pixels > MoCo, 32"), ["ours.compare: no arm", "raw pixels"]),
        (ours("MoCo, 4096 > MoCo, 32", "one: 1.0"), ["theirs", "two numbers or none"]),
        (ours("MoCo, 4096"), ["theirs", "one number", "0 for 'MoCo, 4096'"]),
        (ours("MoCo, 4096 > MoCo, 32", on="kn"), ["ours.on", "nearest:  knn"]),
        (ours("MoCo, 4096 > MoCo, 32", at="highest"), ["at: chosen by the test images"]),
        (ours("MoCo, 4096", "n: 1.0", of="ratio"), ["of: a ratio of one number"]),
        (ORDER.replace("fig3,", "fig4,"), ["ours.result: no kept study, and no grid"]),
        (NOT_RUN + "        theirs: {top1: high}\n", ["theirs.top1", "wrong type"]),
    ],
)
def test_a_mistake_is_an_error_with_file_entry_and_key(folder, claim, expected):
    error = error_of(folder, claim)
    assert "paper.yaml:" in error and "tables.Figure 3.claims.it holds" in error
    for text in expected:
        assert text in error


def test_a_table_or_its_claims_say_why(folder):
    paper = PAPER.replace("    reason: Smaller.\n", "")
    error = error_of(folder, NOT_RUN, paper)
    assert "claims.it holds.reason: neither the claim nor its table says why" in error


def test_a_paper_has_a_number_or_an_address(folder):
    assert "neither" in error_of(folder, NOT_RUN, PAPER.replace("arxiv:", "# "))
    assert "both" in error_of(folder, NOT_RUN, PAPER.replace("tables:", "url: a\ntables:"))
