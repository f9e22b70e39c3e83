import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import tiny  # noqa: F401  (registers TinyNet)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="module")
def _seeded_module():
    """A module's own fixtures come before those of a test."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _exact(request):
    """On a GPU: float32 means float32, and no test leaves the debug mode on."""
    if request.node.get_closest_marker("gpu") is None or not torch.cuda.is_available():
        yield
        return
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [kind.allow_tf32 for kind in kinds]
    for kind in kinds:
        kind.allow_tf32 = False
    yield
    for kind, allowed in zip(kinds, before, strict=True):
        kind.allow_tf32 = allowed
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def root() -> Path:
    return ROOT
