"""The wheel and the source distribution: built, inspected, installed into an empty folder and run."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import stampy

ROOT = Path(__file__).parents[1]
WEIGHTS = "stampy/models/weights/stampy-mini"
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="the tests stand without their sources")
CONDA_NAMES = {"torch": "pytorch", "igraph": "python-igraph", "huggingface-hub": "huggingface_hub"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and source distribution."""
    pytest.importorskip("hatchling", reason="builds the package")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(out)], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


@pytest.mark.slow
def test_wheel_contains_only_the_package_and_its_weights(built):
    wheel, _ = built
    assert wheel.stat().st_size < 25e6
    with zipfile.ZipFile(wheel) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
    assert {f"{WEIGHTS}/{name}" for name in ("config.json", "genes.tsv", "model.safetensors", "README.md")} <= set(
        sizes
    )
    large = {name for name, size in sizes.items() if size > 500_000}
    assert large == {f"{WEIGHTS}/model.safetensors", f"{WEIGHTS}/genes.tsv", "stampy/pp/_genes/hgnc.tsv.gz"}
    source = ROOT / "src"
    here = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    information = f"stampy_st-{stampy.__version__}.dist-info"
    assert {name for name in sizes if not name.startswith(information)} == here
    stem = f"licenses/src/{WEIGHTS}/LICENSE-EfficientNet-Lite0.txt"
    assert {f"{information}/{name}" for name in ("METADATA", "entry_points.txt", "licenses/LICENSE", stem)} <= set(
        sizes
    )


@pytest.mark.slow
def test_the_source_distribution_is_complete(built):
    _, source = built
    assert source.stat().st_size < 25e6
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode == 0:
        left_out = {name for name in tracked.stdout.split() if name not in names}
        assert all(name.startswith(".") for name in left_out), left_out
    assert {"pyproject.toml", "LICENSE", "README.md", "CONTRIBUTING.md", "PKG-INFO"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


@pytest.mark.slow
def test_installed_package_runs(built, tmp_path):
    wheel, _ = built
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)

    def python(*argv):
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
        found = subprocess.run([sys.executable, *argv], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return found.stdout.strip()

    assert python("-m", "stampy", "--version") == f"stampy {stampy.__version__}"
    code = "import stampy; print(stampy.__file__, stampy.models.load('stampy-mini', device='cpu').name)"
    place, name = python("-c", code).rsplit(" ", 1)
    assert Path(place) == tmp_path / "site/stampy/__init__.py"
    assert name == "stampy-mini"


def test_groups_and_recipe_match_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    for name in ("test", "lint", "docs"):
        assert groups[name] == extras[name]
    recipe = (ROOT / "conda" / "recipe.yaml").read_text().splitlines()
    for requirement in project["project"]["dependencies"]:
        name, _, version = requirement.partition(">=")
        assert f"    - {CONDA_NAMES.get(name, name)} >={version}" in recipe
    assert f'  version: "{stampy.__version__}"' in recipe


def test_actions_are_pinned_to_a_commit():
    for path in (ROOT / ".github" / "workflows").glob("*.y*ml"):
        for line in path.read_text().splitlines():
            if "uses:" in line:
                assert re.search(r"@[0-9a-f]{40} # v", line), f"{path.name}: {line}"
