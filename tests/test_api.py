"""Rules of the code base."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stampy

SOURCE = Path(stampy.__file__).parent
MAY_IMPORT = {  # of the rooms below; the files beside them (`_keys`, `_checks`, ...) import no room
    "_section": set(),
    "_io": {"_section", "pp"},  # pp: `read` sums small bins
    "pp": {"_section"},
    "models": set(),
    "datasets": {"_io"},
    "pl": {"_section"},
    "train": {"_io", "_section", "pp", "models"},
    "tl": {"_io", "_section", "pp", "models"},  # _io: the sections of a cohort lie on disk
    "bench": {"_io", "_section", "pp", "models", "datasets", "tl"},
    "cli": {"_io", "_section", "pp", "models", "datasets", "pl", "train", "tl", "bench"},
}
PUBLIC = [room for room in MAY_IMPORT if not room.startswith("_") and room != "cli"]
MAX_LINES = 400


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


@pytest.mark.parametrize(
    "name",
    ["_keys", "_checks", "_utils", "_files", "_field_names", "_imports", "_locks", "_labels", "_settings", "_workers"],
)
def test_bottom_layer_imports_no_subpackage(name):
    assert not set(imported(SOURCE / f"{name}.py")) & set(MAY_IMPORT)


def house():
    """The script that measures the tree."""
    spec = importlib.util.spec_from_file_location("house", Path(__file__).parents[1] / "benchmarks" / "house.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_circular_imports():
    """Not even through imports inside functions."""
    assert house().circles(SOURCE, deferred=True) == []


def test_circular_imports_are_detected(tmp_path):
    package = tmp_path / "some"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from some.b import g\n")
    (package / "b.py").write_text("from . import a\n")
    (package / "c.py").write_text("from some import a, b\n")
    assert house().circles(package) == []
    assert house().circles(package, deferred=True) == [["some.a", "some.b"]]


def test_no_file_is_too_long():
    lines = {path.relative_to(SOURCE).as_posix(): len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}


def test_no_any_in_public_signatures():
    script, found = house(), []
    for path in SOURCE.rglob("*.py"):
        found += [f"{path.name}: {f.name}" for f in script.functions(path) if script.anys_in_signature(f)]
    assert found == []  # write the exact type, or `object` for any value


# Functions that share a name because they do the same for one tool: the tool, its plot, its task, its command.
SAME = {
    "add_commands",
    "attribute",
    "domains",
    "evaluate",
    "expression",
    "load",
    "main",
    "probe",
    "retrieve",
    "score",
    "slide",
    "tiles",
}


def test_names_are_unique():
    """No two classes share a name, nor two functions that other files may call."""
    where = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and not node.name.startswith("_")):
                where.setdefault(node.name, set()).add(path.relative_to(SOURCE).as_posix())
    assert {name: files for name, files in where.items() if len(files) > 1 and name not in SAME} == {}


@pytest.mark.parametrize(("room", "new"), [("train", "SectionInput"), ("bench", "SectionConfig")])
def test_old_names_of_classes_are_deprecated(room, new):
    module = getattr(stampy, room)
    with pytest.warns(stampy.StampyWarning, match=f"`stampy.{room}.{new}`") as told:
        assert module.Section is getattr(module, new)
    assert told[0].filename == __file__
    with pytest.warns(stampy.StampyWarning, match="deprecated") as told:
        exec(compile(f"from stampy.{room} import Section", "user.py", "exec"), {})
    assert {w.filename for w in told} == {"user.py"}


def test_files_named_in_contributing_exist():
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    section = text.partition("## Where things are")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w/]+\.(?:py|html\.j2))`", section)
    assert len(named) > 50
    assert [name for name in named if not (SOURCE / name).is_file()] == []


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


@pytest.mark.parametrize("package", PUBLIC)
def test_everything_public_is_there_and_documented(package):
    module = getattr(stampy, package)
    for name in module.__all__:
        assert inspect.getdoc(getattr(module, name)), name


def test_no_assert_on_input():
    for path in SOURCE.rglob("*.py"):
        assert not any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(path.read_text()))), path
