"""What every part must do, as checks that run on anybody's: ours are tested by the same.

    import pytest
    from ssl_zoo.testing import method_checks

    @pytest.mark.parametrize("check", method_checks("my_idea.yaml"), ids=str)
    def test_my_idea(check):
        check()

Each is called without arguments and raises AssertionError, saying what is wrong; nothing here
needs pytest. What is checked has to be registered: its module is imported first.
"""

from ssl_zoo.testing.check import Check
from ssl_zoo.testing.datasets import dataset_checks
from ssl_zoo.testing.evaluations import evaluation_checks
from ssl_zoo.testing.memories import memory_checks
from ssl_zoo.testing.methods import method_checks
