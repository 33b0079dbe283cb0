"""What the code asks of CuPy exists there, and the launchers fit the CUDA sources.

No device is needed: the sources are read, and CuPy's signatures are looked up. What needs the
package npflow.kernels.gpu needs cuBLAS too, which it imports: the toolkit's, or tests/cuda_on_cpu.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install 'npflow[cuda13]'")

ROOT = Path(__file__).parents[1]
MODULES = sorted([*(ROOT / "npflow").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])
LAUNCHERS = sorted((ROOT / "kernels" / "gpu").glob("*.py"))
SOURCES = sorted((ROOT / "kernels" / "cuda").glob("*.cu"))

# A method of ours with the name of an array's, by which the finder takes it for one.
OWN_METHODS = {"trace"}  # Flow.trace, Chain.trace
# What is used on host arrays alone.
ON_HOST = {("npflow/selftest/comparison.py", "ndarray.max")}


@dataclass(frozen=True)
class Use:
    """A name of CuPy that the code uses, and the arguments it is called with."""

    line: int
    name: str  # below the package: "linalg.norm", "ndarray.sum"
    positional: int = 0
    keywords: tuple[str, ...] = ()
    complete: bool = False  # these are all arguments of a call


ARRAY_NAMES = {name for name in dir(np.ndarray) if not name.startswith("_")} - OWN_METHODS


class Finder(ast.NodeVisitor):
    """The uses in one file of an array module, and of methods that arrays have.

    The array module is `cupy`, every `<...>.xp`, a parameter `xp`, and a variable that one of these
    or a name below it was assigned to.
    """

    def __init__(self) -> None:
        self.uses: list[Use] = []
        self.aliases: dict[str, tuple[str, ...]] = {}  # variable -> names below the array module
        self.imported: set[str] = set()

    def names(self, node: ast.expr) -> tuple[str, ...] | None:
        """The names below the array module that an expression stands for, or None."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id)
        if isinstance(node, ast.Attribute):
            above = self.names(node.value)
            return () if node.attr == "xp" else None if above is None else (*above, node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            package, *names = str(getattr(node.args[0], "value", "")).split(".")
            return tuple(names) if package == "cupy" else None
        return None

    def name(self, node: ast.expr) -> str | None:
        """The name in CuPy of a function or attribute, or None."""
        if names := self.names(node):
            return ".".join(names)
        if isinstance(node, ast.Attribute) and node.attr in ARRAY_NAMES:
            of_module = isinstance(node.value, ast.Name) and node.value.id in self.imported
            return None if of_module else f"ndarray.{node.attr}"
        return None

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            package, *names = alias.name.split(".")
            if package == "cupy":
                self.aliases[alias.asname or package] = tuple(names) if alias.asname else ()
            else:
                self.imported.add(alias.asname or package)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        package, *names = (node.module or "").split(".")
        for alias in node.names:
            if package == "cupy":
                self.aliases[alias.asname or alias.name] = *names, alias.name
                self.uses.append(Use(node.lineno, ".".join([*names, alias.name])))
            else:
                self.imported.add(alias.asname or alias.name)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outside, self.aliases = self.aliases, dict(self.aliases)
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            self.bind(argument.arg, () if argument.arg == "xp" else None)
        self.generic_visit(node)
        self.aliases = outside

    def bind(self, variable: str, names: tuple[str, ...] | None) -> None:
        self.aliases.pop(variable, None)
        if names is not None:
            self.aliases[variable] = names

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for variable, value in pairs:
                if isinstance(variable, ast.Name):
                    self.bind(variable.id, self.names(value))

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.op, ast.MatMult):
            self.uses.append(Use(node.lineno, "ndarray.__imatmul__"))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if name := self.name(node):
            self.uses.append(Use(node.lineno, name))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if name := self.name(node.func):
            keywords = [keyword.arg for keyword in node.keywords]
            positional = [a for a in node.args if not isinstance(a, ast.Starred)]
            complete = len(positional) == len(node.args) and None not in keywords
            named = tuple(keyword for keyword in keywords if keyword is not None)
            self.uses.append(Use(node.lineno, name, len(positional), named, complete))
        self.generic_visit(node)


def find_uses(source: str) -> list[Use]:
    finder = Finder()
    finder.visit(ast.parse(source))
    return finder.uses


def problem(use: Use) -> str | None:
    """What CuPy refuses in a use, None if nothing."""
    found: Any = cupy
    for name in use.name.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            if not isinstance(found, ModuleType):
                return f"there is no cupy.{use.name}"
            try:
                found = importlib.import_module(f"{found.__name__}.{name}")
            except ModuleNotFoundError:
                return f"there is no cupy.{use.name}"
    signature = signature_of(found) if callable(found) else None
    if signature is None:
        return None
    arguments = [None] * use.positional
    if use.name.startswith("ndarray."):
        arguments.append(None)  # self
    try:
        bind = signature.bind if use.complete else signature.bind_partial
        bind(*arguments, **dict.fromkeys(use.keywords))
    except TypeError as error:
        return f"cupy.{use.name}{signature} refuses the call: {error}"
    return None


def signature_of(function: Callable) -> inspect.Signature | None:
    """The signature of a function of CuPy; None if it is known from its text alone."""
    if isinstance(function, cupy.ufunc):
        either, after = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY
        inputs = [inspect.Parameter(f"in{i}", either) for i in range(function.nin)]
        outputs = [inspect.Parameter(f"out{i}", either, default=None) for i in range(function.nout)]
        options = [inspect.Parameter(n, after, default=None) for n in ("out", "dtype", "casting")]
        return inspect.Signature([*inputs, *outputs, *options])
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        # Cython: the signature is the first line of the docstring.
        line = (function.__doc__ or "").partition("\n")[0]
        found = re.fullmatch(r"[\w.]+\((.*)\)( ->.*)?", line)
        try:
            return inspect.signature(eval(f"lambda {found[1]}: None", {})) if found else None
        except (NameError, SyntaxError):  # C types in it
            return None


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """npflow.kernels.gpu, which no device is needed to import."""
    try:
        return importlib.import_module("npflow.kernels.gpu")
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        pytest.skip(f"needs cuBLAS, or python tests/cuda_on_cpu -- pytest: {reason}")


PLANTED = {
    "xp.no_such_name": "there is no",
    "backend.xp.linalg.no_such_name(x)": "there is no",
    "self.backend.xp.geomspace(1, 2, 3)": "there is no",
    "xp.sum(x, where=x > 0)": "'where'",
    "xp.clip(x, min=0)": "a_min",
    "total(x, initial=0)": "'initial'",
    "finite(x, where=x > 0)": "'where'",
    "xp.add(x, x, x, x)": "too many",
    "xp.maximum(x)": "'in1'",
    "x.sum(axis=1, where=x > 0)": "'where'",
    "x.reshape(2, 3).mean(1, None, None, True, 0)": "too many",
    "x.resize(3)": "there is no",
    "(lambda: xp.tile(x, 2, out=x))()": "'out'",
    "importlib.import_module('cupy').cuda.no_such_name": "there is no",
}


@pytest.mark.parametrize("expression", PLANTED)
def test_the_finder_finds(expression):
    """A use that CuPy refuses, through every way to write it, and that alone."""
    source = f"""
import importlib
class Layer:
    def forward(self, x, backend):
        xp, finite = self.backend.xp, backend.xp.isfinite
        total = xp.sum
        def inside(shift):
            return {expression}
        return xp.log1p(x, out=x).sum(axis=0, keepdims=True) + xp.linalg.norm(x, axis=1)
"""
    problems = [message for use in find_uses(source) if (message := problem(use))]
    assert problems and all(PLANTED[expression] in message for message in problems)


@pytest.mark.parametrize("expression", ["np.geomspace(1, 2)", "xp.geomspace(1, 2)", "json.dumps()"])
def test_the_finder_leaves_other_modules(expression):
    source = f"import json, numpy as np\ndef f(flow):\n    xp = flow.to_numpy\n    {expression}"
    assert not [use for use in find_uses(source) if problem(use)]


def test_the_finder_sees_the_code():
    uses = {use.name for path in MODULES for use in find_uses(path.read_text(encoding="utf-8"))}
    assert {"zeros_like", "isfinite", "linalg.norm", "cuda.runtime", "ndarray.sum"} <= uses


@pytest.mark.parametrize("file", [path.relative_to(ROOT).as_posix() for path in MODULES])
def test_cupy_has_what_the_code_uses(file):
    uses = find_uses((ROOT / file).read_text(encoding="utf-8"))
    uses = [use for use in uses if (file, use.name) not in ON_HOST]
    assert not [(use.line, message) for use in uses if (message := problem(use))]


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_cupy_has_what_the_kernels_use(path, gpu):
    uses = find_uses(path.read_text(encoding="utf-8"))
    assert not [(use.line, message) for use in uses if (message := problem(use))]


def test_the_kernels_have_the_signatures_of_the_reference(gpu):
    reference = importlib.import_module("npflow.kernels.reference")
    kernels = {name: f for name, f in vars(reference).items() if inspect.isfunction(f)}
    assert "affine_forward" in kernels
    for name, function in kernels.items():
        expected = list(inspect.signature(function).parameters.values())
        found = list(inspect.signature(getattr(gpu, name)).parameters.values())
        assert [(p.name, p.kind, p.default) for p in found] == [
            (p.name, p.kind, p.default) for p in expected
        ], name


# --- the launchers and the CUDA sources -------------------------------------------------------

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_GLOBAL = re.compile(
    r"template <typename T>\s*__global__ void (?:__launch_bounds__\(\d+\) )?([a-z]\w*)\(([^)]*)\)"
)
# What a launcher calls a parameter whose name is a word of Python, or a function of C++ there.
RENAMED = {
    "from": "source", "dfrom": "source", "from_ends": "source_ends",
    "to": "target", "dto": "target", "to_ends": "target_ends",
    "in": "x", "tanh_raw": "tanh",
}  # fmt: skip


def cuda_kernels(source: str) -> dict[str, list[tuple[str, str]]]:
    """kernel -> type and name of each parameter, without __grid_constant__."""
    text = _COMMENT.sub("", source)
    kernels = {}
    for name, parameters in _GLOBAL.findall(text):
        kernels[name] = []
        for parameter in parameters.split(","):
            words = re.sub(r"\b(__grid_constant__|__restrict__)\b", "", parameter).strip()
            kind, parameter_name = re.fullmatch(r"(.*?)\s*(\w+)", words, re.DOTALL).groups()
            kernels[name].append((" ".join(kind.split()), parameter_name))
    assert len(kernels) == text.count("__global__"), "a __global__ of another form"
    return kernels


def kinds(launch: ModuleType) -> dict[str, Any]:
    """C++ type -> what a launcher must declare for it."""
    return {
        "T": launch.REAL,
        "const T*": launch.ARRAY,
        "T*": launch.RESULT,
        "const long long*": launch.INDICES,
        "long long*": launch.INDICES,
        "const double*": launch.DOUBLES,
        "double*": launch.DOUBLES,
        "const Arrays<T>": launch.ARRAYS,
        "const Arrays<long long>": launch.INDEX_ARRAYS,
        "int": np.int32,
        "unsigned int": np.uint32,
        "long long": np.int64,
        "float": np.float32,
        "double": np.float64,
    }


def declared(module: ModuleType) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and parameters of each kernel whose launcher a module of kernels/gpu makes."""
    for value in vars(module).values():
        if getattr(value, "__qualname__", "").startswith("Family.kernel."):
            state = inspect.getclosurevars(value).nonlocals
            if state["self"] is vars(module)["_family"]:
                yield state["name"], state["parameters"]


def test_sources_are_read():
    """The C++ types of a kernel, and a kernel that the pattern would miss."""
    text = "template <typename T>\n__global__ void {}f(const T* x, int n,\n long long* at) {{"
    expected = {"f": [("const T*", "x"), ("int", "n"), ("long long*", "at")]}
    assert cuda_kernels(text.format("")) == expected
    assert cuda_kernels(text.format("__launch_bounds__(256) ")) == expected
    with pytest.raises(AssertionError, match="another form"):
        cuda_kernels(text.format("__cluster_dims__(2) "))


def mismatches(source: str, family: str) -> list[str]:
    """The kernels that the source of a family and its launchers do not declare alike."""
    launch = importlib.import_module("npflow.kernels.gpu.launch")
    module = importlib.import_module(f"npflow.kernels.gpu.{family}")
    of_type, launchers = kinds(launch), dict(declared(module))
    assert launchers.keys() == set(module._family._kernels)
    expected = {
        name: [(RENAMED.get(p, p), of_type.get(kind, kind)) for kind, p in parameters]
        for name, parameters in cuda_kernels(source).items()
    }
    return [
        name
        for name in expected.keys() | launchers.keys()
        if name not in launchers or list(launchers[name].items()) != expected.get(name)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_launchers_declare_the_parameters_of_the_source(path, gpu):
    """A scalar of another width arrives with garbage, or not at all; see kernels/gpu/launch.py."""
    assert not mismatches(path.read_text(encoding="utf-8"), path.stem)


@pytest.mark.parametrize(
    ("family", "kernel", "old", "new"),
    [
        ("random", "uniform", "long long blocks, T* out", "int blocks, T* out"),
        ("conv", "take_patches", "int h, int w, int c, int k", "long long h, int w, int c, int k"),
        ("actnorm", "actnorm_backward", "T sign", "double sign"),
        ("inverse_matrix", "update_inverse", "double epsilon", "T epsilon"),
        ("columns", "permute", "const long long* indices", "const int* indices"),
        ("optimizer", "squares", "double* partial", "T* partial"),
        ("optimizer", "ema_update", "T* average, const T* values", "T* values, const T* average"),
        ("logit", "logit_backward", "T slope, ", ""),
        ("logit", "logit_backward", "const T* dy", "T* dy"),
        ("batch_norm", "moments", "void moments", "void momenta"),
    ],
)
def test_planted_mismatches_are_found(family, kernel, old, new, gpu):
    """In one declaration of the source."""
    source = (ROOT / "kernels" / "cuda" / f"{family}.cu").read_text(encoding="utf-8")
    head, declaration = re.split(rf"(?=__global__ void {kernel}\()", source)
    assert old in declaration
    assert mismatches(head + declaration.replace(old, new, 1), family)


def test_renamed_parameters_exist():
    names = {
        name
        for path in SOURCES
        for parameters in cuda_kernels(path.read_text(encoding="utf-8")).values()
        for _, name in parameters
    }
    assert RENAMED.keys() <= names
