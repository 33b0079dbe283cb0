"""Property-based tests draw the same examples each run; HYPOTHESIS_PROFILE=explore: new ones."""

import os

from hypothesis import settings

settings.register_profile("npflow", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "npflow"))
