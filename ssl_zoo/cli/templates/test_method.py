"""What every method must do, checked on NewPart as its config trains it."""

from pathlib import Path

import pytest
from ssl_zoo.testing import method_checks

import new_part  # noqa: F401  (registers it)

CONFIG = Path(__file__).with_name("new_part.yaml")


@pytest.mark.parametrize("check", method_checks(CONFIG), ids=str)
def test_new_part(check):
    check()
