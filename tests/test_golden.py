"""benchmarks/golden.py finds what differs, what is missing and what is new."""

from __future__ import annotations

import importlib.util
import json

import pytest

CASE = {"train loss": [[1, 0.5], [2, 0.25]], "linear": [50.0, 90.0]}


@pytest.fixture
def compared(root, tmp_path):
    spec = importlib.util.spec_from_file_location("golden", root / "benchmarks/golden.py")
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)

    def compare(after: dict) -> int:
        paths = tmp_path / "before.json", tmp_path / "after.json"
        for path, cases in zip(paths, ({"moco": CASE}, after), strict=True):
            path.write_text(json.dumps({"machine": {}, "cases": cases}))
        return golden.compare(*paths)

    return compare


def test_the_same_numbers_pass(compared):
    assert compared({"moco": CASE}) == 0


@pytest.mark.parametrize(
    "after",
    [
        {"moco": CASE | {"linear": [50.0, 90.1]}},
        {"moco": CASE | {"train loss": CASE["train loss"][:1]}},
        {"moco": CASE | {"train loss": [*CASE["train loss"], [3, 0.1]]}},
        {"moco": {"linear": CASE["linear"]}},
        {"moco": CASE | {"train top1": [[1, 3.0]]}},
        {},
        {"moco": CASE, "byol": CASE},
    ],
    ids=["another", "fewer lines", "more lines", "fewer", "more", "no case", "a new case"],
)
def test_any_difference_fails(compared, after):
    assert compared(after) == 1
