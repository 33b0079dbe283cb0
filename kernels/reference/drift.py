"""How far a walk back by inversion strayed. found, probe (n,)."""

import numpy as np


def drift(found, probe, out):
    """out[0] = max |found - probe| / (1 + |probe|), NaN if there is one; out (1,)."""
    out[0] = np.max(np.abs(found - probe) / (1 + np.abs(probe)))
