"""The documentation: its code runs, its links lead somewhere, and nothing is left out of it."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from npflow.kernels import reference
from npflow.params import Component

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, ROOT / "kernels" / "README.md"]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

# The page that derives what each module computes.
DERIVATIONS = {
    "npflow/bijections/actnorm.py": "actnorm.md",
    "npflow/bijections/autoregressive.py": "autoregressive.md",
    "npflow/bijections/batchnorm.py": "batch_norm.md",
    "npflow/bijections/bijection.py": "how_to_write_a_layer.md",
    "npflow/bijections/chain.py": "chain_and_memory.md",
    "npflow/bijections/conv1x1.py": "conv1x1.md",
    "npflow/bijections/coupling.py": "affine_coupling.md",
    "npflow/bijections/diagonal.py": "diagonal.md",
    "npflow/bijections/factor_out.py": "multi_scale.md",
    "npflow/bijections/image_coupling.py": "image_coupling.md",
    "npflow/bijections/inverse.py": "inverse.md",
    "npflow/bijections/masks.py": "affine_coupling.md",
    "npflow/bijections/permutation.py": "permutation.md",
    "npflow/bijections/planar.py": "planar.md",
    "npflow/bijections/preprocess.py": "logit.md",
    "npflow/bijections/radial.py": "radial.md",
    "npflow/bijections/reshape.py": "multi_scale.md",
    "npflow/bijections/scale.py": "scale.md",
    "npflow/bijections/squeeze.py": "multi_scale.md",
    "npflow/dequantization.py": "dequantization.md",
    "npflow/distributions.py": "distributions.md",
    "npflow/elementwise/additive.py": "additive_coupling.md",
    "npflow/elementwise/affine.py": "affine_coupling.md",
    "npflow/elementwise/elementwise.py": "how_to_write_a_layer.md",
    "npflow/elementwise/rational_quadratic.py": "rational_quadratic.md",
    "npflow/networks/conv.py": "convolution.md",
    "npflow/networks/convnet.py": "convolution.md",
    "npflow/networks/made.py": "made.md",
    "npflow/networks/mlp.py": "mlp.md",
    "npflow/networks/resnet.py": "convolution.md",
    "npflow/optim.py": "optimizer.md",
    "npflow/random.py": "random_numbers.md",
}


def modules_with_mathematics() -> list[str]:
    folders = [ROOT / "npflow" / name for name in ("bijections", "elementwise", "networks")]
    files = [path for folder in folders for path in folder.glob("*.py")]
    names = ("dequantization.py", "distributions.py", "optim.py", "random.py")
    files += [ROOT / "npflow" / name for name in names]
    return sorted(str(path.relative_to(ROOT)) for path in files if path.name != "__init__.py")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if PYTHON.search(page.read_text())], ids=lambda page: page.name
)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Component, "registry", dict(Component.registry))
    module = ModuleType(f"docs_{page.stem}")  # one a page: its blocks build on each other
    monkeypatch.setitem(sys.modules, module.__name__, module)
    text = page.read_text()
    for block in PYTHON.finditer(text):
        lines_above = "\n" * text[: block.start(1)].count("\n")  # a traceback has the page's lines
        exec(compile(lines_above + block[1], str(page), "exec"), vars(module))


@pytest.mark.parametrize("module", modules_with_mathematics())
def test_every_module_has_its_page(module):
    assert module in DERIVATIONS, "derive it on a page of docs/ and name the page above"
    page = ROOT / "docs" / DERIVATIONS[module]
    assert f"`{module}`" in page.read_text()


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_page_is_in_the_contents(page):
    assert page.name == "README.md" or f"({page.name})" in (ROOT / "docs" / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = FENCED.sub("", page.read_text())
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    for link in links:
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`([\w/]+/[\w/]+\.(?:py|cu|md))`", text):
        assert (ROOT / name).exists() or (page.parent / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mathematics_survives_markdown(page):
    # Outside of ```math blocks, GitHub takes a backslash before punctuation for an escape.
    for line in FENCED.sub("", page.read_text()).splitlines():
        line = re.sub(r"`[^`]*`", "", line)
        assert line.count("$") % 2 == 0, line
        for formula in re.findall(r"\$([^$]*)\$", line):
            assert not re.search(r"\\[,;:!{}|_\\]", formula), formula


def test_every_kernel_is_in_the_table():
    kernels = {name for name, value in vars(reference).items() if callable(value)}
    table = (ROOT / "kernels" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| `(npflow/[\w/]+\.py)` \|$", table, re.MULTILINE)
    assert {name for name, _ in rows} == kernels
    assert len(rows) == len(kernels)
    for name, caller in rows:
        source = (ROOT / caller).read_text()
        assert re.search(rf"kernels\.{name}\b|\"{name}\"", source), (name, caller)
