"""The code of the how-to guides runs, page by page, if its packages are installed."""

import ast
import importlib.util
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import stampy

PAGES = sorted((Path(__file__).parents[1] / "docs" / "howto").glob("*.md"))
BLOCK = re.compile(r"(% no-test\n\n)?```python\n(.*?)```", re.DOTALL)
HEAVY = ("squidpy", "view")  # packages that take long to import


def blocks(page):
    return [code for skipped, code in BLOCK.findall(page.read_text()) if not skipped]


def imported(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def test_there_are_pages():
    assert len(PAGES) > 5
    assert sum(len(blocks(page)) for page in PAGES) > 10


@pytest.mark.filterwarnings("ignore")  # of other packages
@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem in HEAVY)) for p in PAGES if blocks(p)]
)
def test_the_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    with stampy.settings.override(**stampy.settings.as_dict()):  # pages may change them
        for code in blocks(page):
            for name in imported(code):
                if importlib.util.find_spec(name) is None:
                    pytest.skip(f"{page.stem}: {name} is not installed")
            exec(compile(code, f"{page.name}", "exec"), namespace)
    plt.close("all")
