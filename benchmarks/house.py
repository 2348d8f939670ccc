"""Figures of the code: files, lines, import cycles, `Any` in public signatures, long files and functions.

Usage: python benchmarks/house.py [--root SRC/stampy] [--list]
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "stampy"
MAX_FILE, MAX_FUNCTION = 400, 40


def module_of(path: Path, root: Path) -> str:
    """Dotted name of a file."""
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, module: str, known: set[str], *, deferred: bool) -> set[str]:
    """Modules of the package that a file imports; imports in functions only if `deferred`, imports for typing never."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")), deferred):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names}
    return (found & known) - {module}


def _statements(tree: ast.AST, deferred: bool) -> Iterator[ast.stmt]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not deferred:
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from _statements(node, deferred)


def circles(root: Path, *, deferred: bool = False) -> list[list[str]]:
    """Groups of files that import each other (strongly connected components with more than one file).

    An `__init__` that only re-exports names counts as the package whose names are imported.
    """
    paths = {module_of(p, root): p for p in root.rglob("*.py")}
    known = set(paths)
    graph = {m: imports_of(p, m, known, deferred=deferred) for m, p in paths.items() if p.name != "__init__.py"}
    return [sorted(c) for c in _components({m: to & set(graph) for m, to in graph.items()}) if len(c) > 1]


def _components(graph: dict[str, set[str]]) -> list[set[str]]:
    """Tarjan's strongly connected components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for to in graph[node]:
            if to not in index:
                visit(to)
                low[node] = min(low[node], low[to])
            elif to in stack:
                low[node] = min(low[node], index[to])
        if low[node] == index[node]:
            found.append(set())
            while node not in found[-1]:
                found[-1].add(stack.pop())

    for node in graph:
        if node not in index:
            visit(node)
    return found


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions of a file, methods included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def anys_in_signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Number of `Any` in the annotations of a public function."""
    if function.name.startswith("_"):
        return 0
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    every += [a for a in (function.args.vararg, function.args.kwarg) if a is not None]
    notes = [a.annotation for a in every if a.annotation is not None] + [function.returns]
    return sum(isinstance(n, ast.Name) and n.id == "Any" for note in notes if note is not None for n in ast.walk(note))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--list", action="store_true", help="name the long files and functions, and those with Any")
    options = parser.parse_args()
    root = options.root
    paths = sorted(root.rglob("*.py"))
    lines = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in paths}
    rooms = {p.parent: sum(q.parent == p.parent for q in paths) for p in paths}
    every = [(p, f) for p in paths for f in functions(p)]
    sizes = sorted(body_lines(f) for _, f in every)
    with_any = [(p, f) for p, f in every if anys_in_signature(f)]
    print(f"files {len(paths)}, lines {sum(lines.values())}, largest room {max(rooms.values())} files")
    print(f"circles at import {circles(root)}")
    print(f"circles with imports inside functions {circles(root, deferred=True)}")
    print(f"files over {MAX_FILE} lines {sum(n > MAX_FILE for n in lines.values())}")
    print(f"functions {len(sizes)}, median {sizes[len(sizes) // 2]} lines, over {MAX_FUNCTION} lines "
          f"{sum(n > MAX_FUNCTION for n in sizes)}")  # fmt: skip
    print(f"Any in signatures of public functions: {sum(anys_in_signature(f) for _, f in with_any)} in {len(with_any)}")
    if options.list:
        for p, n in lines.items():
            if n > MAX_FILE:
                print(f"  {n:5} lines  {p.relative_to(root)}")
        for p, f in every:
            if body_lines(f) > MAX_FUNCTION:
                print(f"  {body_lines(f):5} lines  {p.relative_to(root)}:{f.lineno} {f.name}")
        for p, f in with_any:
            print(f"  Any  {p.relative_to(root)}:{f.lineno} {f.name}")


if __name__ == "__main__":
    main()
