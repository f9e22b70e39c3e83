"""What every new_kind must do, checked on NewPart."""

import pytest
from ssl_zoo.testing import new_kind_checks

from new_part import NewPart


@pytest.mark.parametrize("check", new_kind_checks(NewPart), ids=str)
def test_new_part(check):
    check()
