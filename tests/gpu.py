"""Where the tests of the cupy backend run."""

import sys

import pytest

from npflow import get_backend
from npflow.errors import BackendError


def problem():
    """What keeps the cupy backend from running here; None if nothing does."""
    try:
        get_backend("cupy")
    except BackendError as error:
        return f"{error}; or run python tests/cuda_on_cpu -- pytest"
    return None


PROBLEM = problem()
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))]


def tool():
    """cuda_on_cpu if it stands in for the device, None on a GPU."""
    found = sys.modules.get("cuda_on_cpu")
    return found if found is not None and found.installed() else None
