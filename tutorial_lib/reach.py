"""Which modules of the library a chapter's numbers depend on, read from imports; nothing is executed.

    reached    the modules that some code imports, directly or through other modules
    bare       a module's text without what cannot change a number: comments and docstrings

A chapter must be executed again when something it computes with has changed, and only then: an hour of computing is
a high price for a word in a docstring, and chapter 1 does not train. Whatever cannot be read counts as everything.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path


def reached(package: Path, code: Iterable[str], but: Collection[str] = ()) -> set[Path]:
    """Files of ``package`` that ``code`` (cells, say) can import, without ``__init__.py`` and the files ``but``.

    Imports inside functions count, those under ``if TYPE_CHECKING`` do not. A name that the package itself offers leads
    to the module that ``_HOME`` in ``__init__.py`` gives. Modules named in strings count, for ``importlib``, unless
    they are among ``but``, which messages may name; so does every module of a folder that is imported. Code that cannot
    be parsed reaches everything.
    """
    home = _home(package)
    left_out = {package / name for name in ("__init__.py", *but)}
    found: set[Path] = set()
    try:
        todo = {name for cell in code for name in _names(cell, package.name, package.name, home, left_out)}
    except SyntaxError:
        return {*package.rglob("*.py")} - left_out
    while todo:
        for path in _files(package, todo.pop()):
            if path not in found:
                found.add(path)
                inside = ".".join([package.name, *path.relative_to(package).parent.parts])
                todo |= _names(path.read_text(encoding="utf-8"), package.name, inside, home, left_out)
    return found - left_out


def _home(package: Path) -> dict[str, str]:
    """Name -> module, as ``__init__.py`` says; empty where it says nothing."""
    path = package / "__init__.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path.exists() else ():
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_HOME":
            return ast.literal_eval(node.value)
    return {}


def _files(package: Path, module: str) -> list[Path]:
    """The files that importing a dotted name executes: a module or all of a folder, and the folders around it."""
    parts = module.split(".")[1:]
    path = package.joinpath(*parts)
    files = [package.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts))]
    files.append(path.with_suffix(".py"))
    if parts and path.is_dir():
        files += sorted(path.rglob("*.py"))
    return [file for file in files if file.exists()]


def _names(source: str, package: str, inside: str, home: dict[str, str], only_said: Collection[Path]) -> set[str]:
    """Dotted names of ``package`` that a source inside the package ``inside`` imports; some are no modules.

    A string that names one of the files ``only_said`` imports nothing.
    """
    said = {path.stem for path in only_said}
    found: set[str] = set()
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == package}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = inside.split(".")[: len(inside.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            if base == package:
                found |= {f"{package}.{home.get(alias.name, alias.name)}" for alias in node.names}
            elif base.split(".")[0] == package:
                found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.findall(rf"\b{package}(?:\.\w+)+", node.value)
            found |= {name for name in named if name.split(".")[1] not in said}
    return found


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but docstrings, and but what only a type checker reads."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        doc = _docstring(node)
        for child in node.orelse if typing else ast.iter_child_nodes(node):  # type: ignore[attr-defined]
            if child is not doc:
                left.append(child)


def _docstring(node: ast.AST) -> ast.Expr | None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
        return None
    first = node.body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return first if text else None  # type: ignore[return-value]


@lru_cache(maxsize=256)
def bare(source: str) -> str:
    """A module's text without comments, docstrings and empty lines. Layout is kept: who reformats, executes again."""
    lines = source.split("\n")
    emptied = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column].rstrip()
        if token.type in (tokenize.COMMENT, tokenize.NL) and not lines[row - 1].strip():
            emptied.add(row)  # not the empty lines inside a string
    for node in ast.walk(ast.parse(source)):
        doc = _docstring(node)
        if doc is None or doc.end_lineno is None or doc.end_col_offset is None:
            continue
        before = lines[doc.lineno - 1].encode()[: doc.col_offset]
        after = lines[doc.end_lineno - 1].encode()[doc.end_col_offset :]
        if not before.strip() and not after.strip():  # nothing else stands on its lines
            emptied |= set(range(doc.lineno, doc.end_lineno + 1))
    return "\n".join(line for row, line in enumerate(lines, 1) if row not in emptied)
