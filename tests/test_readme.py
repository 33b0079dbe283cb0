"""The README's code runs, and the files that it names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
LINKS = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)[^)]*\)", README)
MENTIONED = re.findall(
    r"(?<![\w/.])((?:npflow|kernels|experiments|docs|tests|benchmarks)/[\w./-]*[\w/])", README
)


def test_the_readme_has_an_example():
    assert CODE


@pytest.mark.parametrize("code", CODE, ids=lambda code: code.strip().splitlines()[0][:40])
def test_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", sorted({*LINKS, *MENTIONED}))
def test_named_files_exist(name):
    assert (ROOT / name).exists()
