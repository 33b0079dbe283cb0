"""Property-based tests draw the same examples each run; HYPOTHESIS_PROFILE=explore: new ones."""

import os
import sys

import pytest
from hypothesis import settings

settings.register_profile("npflow", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "npflow"))

if "cuda_on_cpu.pytest_plugin" not in sys.modules:  # which has the real one

    @pytest.fixture
    def device_counters() -> None:
        """Exact counts of launches and copies: a GPU does not give them."""
        pytest.skip("exact counts need tests/cuda_on_cpu")
