"""docs/architecture.md's reading path names files and lines that are there, and stays short."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture
def reading_path(root):
    spec = importlib.util.spec_from_file_location("reading_path", root / "tools/reading_path.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_path_as_it_is_counted_now(reading_path):
    page = reading_path.PAGE.read_text(encoding="utf-8")
    assert f"{reading_path.START}\n{reading_path.render()}\n{reading_path.END}" in page


def test_moco_is_read_in_900_lines_and_all_around_it_in_3500(reading_path):
    algorithm, around = map(reading_path.total, (reading_path.ALGORITHM, reading_path.AROUND))
    assert algorithm <= 900 and algorithm + around <= 3500
