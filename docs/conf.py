"""Sphinx settings. ``sphinx-build -W --keep-going docs docs/_build/html`` builds the pages, without a network.

The environment variable ``DOCS_EXECUTE`` says whether code cells run: ``force`` (the default), ``cache`` (only those
whose code changed) or ``off`` (for a quick look at the text). A cell that raises fails the build, so pages assert in
hidden cells what their text claims.
"""

import ast
import contextlib
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import sphinx_autodoc_typehints
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.deprecation import RemovedInSphinx10Warning
from sphinx.ext.napoleon import NumpyDocstring

import stampy

warnings.filterwarnings("ignore", category=RemovedInSphinx10Warning, module="sphinx_autodoc_typehints")

project = "stampy"
author = "The stampy developers"
copyright = "2026, the stampy developers"
version = release = stampy.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "benchmark_tables.md", "**.ipynb_checkpoints", "jupyter_execute"]
templates_path = ["_templates"]
suppress_warnings = ["config.cache"]  # a function among the settings, below

# Sphinx reads below its own folder only, and a link there would break the pages' links among each other.
shutil.copytree(Path(__file__).parents[1] / "tutorials", Path(__file__).parent / "tutorials", dirs_exist_ok=True)

# The drawings of the page Concepts. With the SVG backend, which the notebooks' kernels do not share.
sys.path.insert(0, str(Path(__file__).parent))
import _figures  # noqa: E402

_figures.draw(Path(__file__).parent / "generated" / "figures")

# Pages and notebooks
os.environ.pop("MPLBACKEND", None)  # else the notebooks' kernels would draw nowhere, and their pages have no pictures
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = os.environ.get("DOCS_EXECUTE", "force")
if nb_execution_mode == "off":
    suppress_warnings.append("myst-nb.lexer")  # known only once a cell has run
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars, and what other packages warn of
nb_render_markdown_format = "myst"  # tables that a page makes while it is built
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# The API, from docstrings
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
typehints_document_rtype = False
typehints_use_signature = True
typehints_use_signature_return = True
typehints_defaults = None
always_document_param_types = False
python_maximum_signature_line_length = 88

# `stampy.tl.embed` in single backticks is a link, and must lead somewhere; `X` and `obsm["X_stamp"]` are plain code.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!stampy\.).*"),
    (r"py:class", r"stampy\.pp\.(_\w+\.)*(\w+\.)?(GeneIndex|GeneMatch|Level|PixelSize)"),  # not public by name
    (r"py:class", r"stampy\.train\.(_\w+\.)*(\w+\.)?(StoredSection|CorpusSettings)"),  # the same
    (r"py:class", r"stampy\.models\.(_\w+\.)*(\w+\.)?(Tiles|Packing|StemEncoder|RegionFeatures)"),
    (r"py:class", r"stampy\.tl\.(\w+\.)*(EmbedOptions|SlideOptions)"),
    (r"py:class", r"stampy\.pl\.(\w+\.)*(SpatialLook|SpatialOptions)"),
    (r"py:class", r"stampy\._section\.(\w+\.)*(ImageLevel|PixelSize)"),
]

# Links into other projects need their inventories, hence a network: DOCS_ONLINE=1.
if os.environ.get("DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
        "spatialdata": ("https://spatialdata.scverse.org/en/stable", None),
    }

html_theme = "sphinx_book_theme"
html_title = f"stampy {version}"
html_static_path = ["_static"]
html_css_files = ["stampy.css"]
html_js_files = ["stampy.js"]
html_show_sourcelink = False  # the page's own text; the functions link to their code
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "use_download_button": False,
    "repository_url": "https://github.com/stampy-st/stampy",
    "use_repository_button": True,
    "navigation_depth": 3,
    "show_navbar_depth": 1,
}


def _resolve_types() -> None:
    """Define the names that modules define for type checkers only, so that autodoc can show the types of arguments.

    sphinx_autodoc_typehints does this too, but not for modules that import types from each other.
    """
    for found in pkgutil.walk_packages(stampy.__path__, "stampy."):
        with contextlib.suppress(ImportError):  # of optional packages
            if not found.name.startswith(("stampy.__main__", "stampy.cli")):
                importlib.import_module(found.name)
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("stampy.")]
    for module in modules:
        if hasattr(module, "ImageSource"):  # text in the package, for a fast import
            module.ImageSource = str | Path | np.ndarray | stampy.pp.SlideImage
    for _ in range(3):  # a module may need the names of another
        for module in modules:
            _define_types(module)


def _define_types(module: types.ModuleType) -> None:
    for block in ast.parse(inspect.getsource(module)).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for statement in block.body:
                with contextlib.suppress(ImportError, NameError, AttributeError, TypeError):
                    exec(compile(ast.Module([statement], []), module.__name__, "exec"), vars(module))


_resolve_types()


def typehints_fixup_module_name(module: str) -> str:
    """``stampy.pp._vocabulary`` is documented as ``stampy.pp``."""
    return re.sub(r"^(stampy\.\w+)\._\w+$", r"\1", module)


def _returns_as_prose(self: NumpyDocstring, section: str) -> list[str]:
    # Napoleon takes every line for a type; here "Returns" is a sentence, often with a list of what is written where.
    prose = self._dedent(self._consume_to_next_section())
    if prose and prose[0].strip() == ":":  # put there by sphinx_autodoc_typehints, for an entry without a name
        prose = self._dedent(prose[1:])
    lines = self._format_block(":returns: ", prose)
    return [*lines, ""] if lines and lines[-1] else lines


NumpyDocstring._parse_returns_section = _returns_as_prose


def _name_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Give figures that a cell draws the call that draws them as alternative text, for screen readers."""
    for cell in doctree.findall(lambda node: isinstance(node, nodes.container) and "cell" in node["classes"]):
        calls = [line for code in cell.findall(nodes.literal_block) for line in code.astext().splitlines()]
        calls = [line.split("=", 1)[-1].strip() for line in calls if "pl." in line or "show(" in line]
        for image in cell.findall(nodes.image) if calls else ():
            image["alt"] = f"Figure drawn by {calls[-1]}"


def _readable_signature(*event: object) -> tuple[str, str | None] | None:
    """Signatures that Sphinx can parse: dataclasses have `<factory>`; private modules are not documented."""
    made = sphinx_autodoc_typehints.process_signature(*event)  # the first result counts, so it is called here
    if made is None or not made[0]:
        return made
    return re.sub(r"(stampy\.\w+)\._[\w.]+\.(?=[A-Z])", r"\1.", made[0].replace("<factory>", "...")), made[1]


def _join_parameters(_app: Sphinx, doctree: nodes.document) -> None:
    """List parameters with one description once: `width, depth (int) – ...`."""
    for items in doctree.findall(nodes.bullet_list):
        previous, known = None, None
        for item in list(items):
            line = item[0] if len(item) else nodes.paragraph()
            cut = next((i for i, part in enumerate(line) if isinstance(part, nodes.Text) and part[:3] == " – "), None)
            if cut is None or not isinstance(line[0], addnodes.literal_strong):
                previous = known = None
                continue
            name, types, about = line[:1], line[1:cut], _text(line[cut:]) + _text(item[1:])
            if (_text(types), about) == known:
                end = max(i for i, part in enumerate(previous) if isinstance(part, addnodes.literal_strong)) + 1
                previous[end:end] = [nodes.Text(", "), *name]
                items.remove(item)
            elif known and about == known[1]:
                end = next(i for i, part in enumerate(previous) if isinstance(part, nodes.Text) and part[:3] == " – ")
                previous[end:end] = [nodes.Text(", "), *name, *types]
                items.remove(item)
                known = _text(types), about
            else:
                previous, known = line, (_text(types), about)


def _text(parts: list[nodes.Node]) -> str:
    return "".join(part.astext() for part in parts)


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", _name_figures)
    app.connect("doctree-read", _join_parameters)
    app.connect("autodoc-process-signature", _readable_signature, priority=100)
