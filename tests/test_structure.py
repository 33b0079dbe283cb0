"""The shape of the code: sections of layer files, direction of imports, equal kernel interfaces."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "npflow").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))

# From the bottom up. A module imports from lower lines only, or from its own package.
ORDER = [
    {"errors"},
    {"kernels"},
    {"backend"},
    {"random"},
    {"params"},
    {"elementwise", "networks"},
    {"distributions", "bijections"},
    {"checkpoint", "datasets", "dequantization", "metrics", "optim"},
    {"flow"},
    {"models", "plotting", "testing"},
    {"training"},
    {"selftest"},
    {"npflow"},  # the package itself re-exports
    {"experiments"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}

FORBIDDEN = {
    "autograd", "cloudpickle", "dill", "jax", "marshal", "pickle", "scipy", "shelve", "tensorflow",
    "torch",
}  # fmt: skip
SECTIONS = ("Map", "Inverse", "Log-det", "Gradient", "Source")


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def group(path: Path) -> str:
    """The name under which a file stands in ORDER."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "npflow":
        return parts[0]
    return "npflow" if parts[1] == "__init__" else parts[1]


def imports(path: Path) -> list[str]:
    """The absolute dotted names a file imports, those in its functions too."""
    package = path.relative_to(ROOT).parts[:-1]
    if package[0] == "kernels":
        package = ("npflow", *package)
    names = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            # `from npflow import random` imports a module, and so may any other name.
            names += [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module", "import_module", "__import__",
        ):  # fmt: skip
            assert isinstance(node.args[0], ast.Constant), f"{identify(path)}: an unknown import"
            names.append(node.args[0].value)
    return names


def imported_group(name: str) -> str | None:
    """The group of an imported name, None if it is not of the project."""
    parts = name.split(".")
    if parts[0] == "experiments":
        return "experiments"
    if parts[0] != "npflow":
        return None
    is_module = len(parts) > 1 and (
        parts[1] == "kernels"
        or (ROOT / "npflow" / parts[1]).is_dir()
        or (ROOT / "npflow" / f"{parts[1]}.py").is_file()
    )
    return parts[1] if is_module else "npflow"


def defines(path: Path, base: str) -> bool:
    """Whether a module has a class that derives directly from base."""
    return any(
        isinstance(node, ast.ClassDef) and base in {ast.unparse(b) for b in node.bases}
        for node in ast.walk(parse(path))
    )


LAYERS = [
    path
    for package, base in (("bijections", "Bijection"), ("elementwise", "ElementwiseMap"))
    for path in sorted((ROOT / "npflow" / package).glob("*.py"))
    if defines(path, base)
]
LAYERS.append(ROOT / "npflow" / "bijections" / "factor_out.py")  # a chain's, not a Bijection


def test_the_layers_are_found():
    assert {"coupling.py", "chain.py", "preprocess.py", "affine.py"} <= {p.name for p in LAYERS}


@pytest.mark.parametrize("path", LAYERS, ids=identify)
def test_layer_files_derive_their_mathematics(path):
    """The module's docstring has the sections, in order, each with something in it."""
    docstring = ast.get_docstring(parse(path)) or ""
    found = re.findall(r"^(Map|Inverse|Log-det|Gradient|Source) +\S", docstring, re.MULTILINE)
    assert tuple(found) == SECTIONS
    source = docstring[docstring.index("\nSource") :]
    assert "arXiv:" in source


@pytest.mark.parametrize("path", MODULES + KERNELS + EXPERIMENTS, ids=identify)
def test_imports_point_downward(path):
    here = group(path)
    assert here in RANK, f"give {here!r} a place in ORDER"
    for name in imports(path):
        there = imported_group(name)
        if there is None or there == here:
            continue
        assert there in RANK, f"give {there!r} a place in ORDER"
        assert RANK[there] < RANK[here], f"{identify(path)} imports {name} from above"


@pytest.mark.parametrize("path", MODULES + KERNELS, ids=identify)
def test_no_other_engine_and_nothing_that_runs_code_from_files(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & FORBIDDEN
    assert "allow_pickle=True" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_only_the_backend_imports_devices_and_kernels(path):
    if path == ROOT / "npflow" / "backend.py":
        return
    for name in imports(path):
        assert name.split(".")[0] not in {"cupy", "numba"}
        assert imported_group(name) != "kernels"


@pytest.mark.parametrize("path", KERNELS, ids=identify)
def test_kernels_import_only_their_array_library(path):
    allowed = {"reference": {"numpy"}, "cpu": {"numpy", "numba", "llvmlite"}}
    allowed["gpu"] = {"numpy", "cupy"}
    version = path.relative_to(ROOT / "kernels").parts[0]
    third_party = {"cupy", "llvmlite", "matplotlib", "numba", "numpy", "scipy"}
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots & third_party <= allowed.get(version, set())
    for name in imports(path):
        if imported_group(name) == "kernels":  # its own version; NumPy may be the fastest too
            assert name.split(".")[2] in {version, "reference"}, name


VERSIONS = ("reference", "cpu", "gpu")


def functions(version: str, family: str) -> dict[str, ast.FunctionDef]:
    """The functions of one file, and those it takes over from the reference."""
    path = ROOT / "kernels" / version / f"{family}.py"
    found = {f.name: f for f in parse(path).body if isinstance(f, ast.FunctionDef)}
    if version == "reference":
        return found
    taken = {name.split(".")[-1] for name in imports(path) if "kernels.reference." in name}
    reference = functions("reference", family) if taken else {}
    return found | {name: f for name, f in reference.items() if name in taken}


def kernel_signatures(version: str) -> dict[str, tuple[str, list[str]]]:
    """name -> family and positional parameters of every kernel that the package exports.

    Read from the source, so that CuPy need not be installed.
    """
    package = ROOT / "kernels" / version
    signatures = {}
    for node in parse(package / "__init__.py").body:
        if not isinstance(node, ast.ImportFrom):
            continue
        assert node.level == 1 and node.module
        defined = functions(version, node.module)
        for alias in node.names:
            assert alias.name in defined, f"{version}/{node.module}.py has no {alias.name}"
            arguments = defined[alias.name].args
            plain = not (
                arguments.defaults
                or arguments.kwonlyargs
                or arguments.vararg
                or arguments.kwarg
                or arguments.posonlyargs
            )
            assert plain, f"{version} {alias.name}: only positional parameters without defaults"
            signatures[alias.name] = node.module, [a.arg for a in arguments.args]
    return signatures


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_all_versions_have_the_same_kernels(version):
    expected, found = kernel_signatures("reference"), kernel_signatures(version)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == expected[name], name


def test_cuda_sources_belong_to_gpu_families():
    families = {family for family, _ in kernel_signatures("gpu").values()}
    sources = {path.stem for path in (ROOT / "kernels" / "cuda").glob("*.cu")}
    assert sources <= families


def used_kernels() -> set[str]:
    """The kernels that npflow calls: `...kernels.<name>`, or through a local `kernels`."""
    return {
        node.attr
        for path in MODULES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("kernels")
    }


def test_npflow_calls_only_kernels_that_exist_and_all_of_them():
    named = {"normal", "uniform"}  # random.py calls these by name
    assert used_kernels() | named == set(kernel_signatures("reference"))
