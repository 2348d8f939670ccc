"""The house rules, checked."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import stampy

SOURCE = Path(stampy.__file__).parent
MAY_IMPORT = {
    "pp": set(),
    "models": set(),
    "datasets": set(),
    "pl": set(),
    "train": {"pp", "models"},
    "tl": {"pp", "models"},
    "bench": {"pp", "models", "datasets", "tl"},
}


def imported(path):
    """Subpackages of stampy that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        yield from (n.split(".")[1] for n in names if n.startswith("stampy."))


@pytest.mark.parametrize("layer", sorted(MAY_IMPORT))
def test_layers(layer):
    for path in (SOURCE / layer).rglob("*.py"):
        others = set(imported(path)) & set(MAY_IMPORT) - {layer}
        assert others <= MAY_IMPORT[layer], path


def test_import_is_light():
    code = (
        "import sys, stampy; heavy = {'torch', 'scanpy', 'anndata', 'numpy', 'pandas'} & set(sys.modules); print(heavy)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


FUNCTIONS = [
    (package, name)
    for package in ("pp", "tl", "pl")
    for name in getattr(stampy, package).__all__
    if inspect.isfunction(getattr(getattr(stampy, package), name))
    and "adata" in inspect.signature(getattr(getattr(stampy, package), name)).parameters
]


@pytest.mark.parametrize(("package", "name"), FUNCTIONS)
def test_grammar(package, name):
    parameters = list(inspect.signature(getattr(getattr(stampy, package), name)).parameters.values())
    assert parameters[0].name == "adata"
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert len(positional) <= 2
    if package != "pl":
        assert {"copy", "key_added"} <= {p.name for p in parameters}


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_everything_public_is_there_and_documented(package):
    module = getattr(stampy, package)
    for name in module.__all__:
        assert inspect.getdoc(getattr(module, name)), name


def test_no_assert_on_input():
    for path in SOURCE.rglob("*.py"):
        assert not any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(path.read_text()))), path
