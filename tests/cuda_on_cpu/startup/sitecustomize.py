"""Python imports this at start when its folder is on PYTHONPATH.

Runs the sitecustomize that would have been found without this one, then installs the stand-in
device.
"""

import importlib.util
import os
import sys
from importlib.machinery import PathFinder

_HERE = os.path.dirname(os.path.abspath(__file__))

_spec = PathFinder.find_spec(
    "sitecustomize", [folder for folder in sys.path if os.path.abspath(folder) != _HERE]
)
if _spec is not None and _spec.loader is not None:
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["sitecustomize"] = _module
    _spec.loader.exec_module(_module)

if os.environ.get("CUDA_ON_CPU") == "1":
    sys.path.append(
        os.path.dirname(os.path.dirname(_HERE))
    )  # in case the package's own folder was taken off PYTHONPATH
    import cuda_on_cpu

    cuda_on_cpu.install()
