"""How far a walk back strayed, in one launch; see reference/drift.py."""

import numpy as np
from cupy import ndarray

from .launch import ARRAY, RESULT, Family

_family = Family("drift")
_drift = _family.kernel("drift", found=ARRAY, probe=ARRAY, out=RESULT, n=np.int64)


def drift(found: ndarray, probe: ndarray, out: ndarray) -> None:
    """out[0] = max |found - probe| / (1 + |probe|)."""
    _drift(found.dtype, ((1,), (256,)), found, probe, out, found.size)
