"""What a chapter depends on: imports followed, words that compute nothing left out."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tutorial_lib import reach
from tutorial_lib.reach import bare, reached

PACKAGE = Path(reach.__file__).parent
FILES = {
    "__init__.py": "_HOME: dict[str, str] = {}\n_HOME = {'Embedder': 'vectors'}\n",
    "vectors.py": "from thing.deep import nothing\nimport os\ndef late():\n    from . import tables\n",
    "deep/__init__.py": "from thing.deep.inner import f\n",
    "deep/inner.py": "from ..numbers import one\n",
    "deep/unasked.py": "",
    "numbers.py": "if TYPE_CHECKING:\n    from thing import checked\nelse:\n    from thing import other\n",
    "tables.py": '"""See thing.talked."""\nimportlib.import_module("thing.named")\n',
    "checked.py": "", "other.py": "", "named.py": "", "talked.py": "", "alone.py": "import thing.alone",
}  # fmt: skip

# Chapter by chapter in one process, the library forgotten in between: what do these lines load?
LOADER = """
import json, sys
loaded = {}
for stem, lines in json.loads(sys.argv[1]).items():
    for name in [name for name in sys.modules if name.split(".")[0] == "tutorial_lib"]:
        del sys.modules[name]
    exec("\\n".join(lines), {})
    loaded[stem] = [m.__file__ for n, m in sorted(sys.modules.items()) if n.split(".")[0] == "tutorial_lib"]
print(json.dumps(loaded))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "thing" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "thing"


def names(package: Path, *code: str, **options: tuple[str, ...]) -> set[str]:
    return {path.relative_to(package).as_posix() for path in reached(package, code, **options)}


def test_imports_are_followed_wherever_they_stand(package: Path) -> None:
    everything = names(package, "from thing import Embedder")
    assert everything == {
        "vectors.py", "deep/__init__.py", "deep/inner.py", "deep/unasked.py", "numbers.py", "tables.py", "other.py",
        "named.py",
    }  # fmt: skip
    assert names(package, "import numpy", "x = 1") == set()
    assert names(package, "import thing.alone as a") == {"alone.py"}
    assert names(package, "from thing.deep.inner import f") == {
        "deep/__init__.py", "deep/inner.py", "numbers.py", "other.py"
    }  # fmt: skip
    # passed through, though not counted; and not even that where a message names it
    assert names(package, "from thing import Embedder", but=("tables.py",)) == everything - {"tables.py"}
    assert names(package, "from thing import Embedder", but=("named.py",)) == everything - {"named.py"}
    assert names(package, "print('see thing.tables')", but=("tables.py",)) == set()


def test_what_cannot_be_read_reaches_everything(package: Path) -> None:
    assert names(package, "import os", "%run this") == FILES.keys() - {"__init__.py"}
    assert names(package, "%run this", but=("alone.py",)) == FILES.keys() - {"__init__.py", "alone.py"}


def test_comments_docstrings_and_empty_lines_do_not_count() -> None:
    talkative = (
        '"""A module,\nwith # a sign."""\n\n# said\nx = "a # b"  # why é\n\n\n'
        'def f(y):\n    """What."""\n    # how\n    return """\n\n# kept\n"""\n'
    )
    terse = 'x = "a # b"\ndef f(y):\n    return """\n\n# kept\n"""\n'
    assert bare(talkative).strip() == terse.strip()
    assert bare(terse.replace("# kept", "# other")) != bare(terse)
    assert bare('def f(): "doc"; return 1\n') != bare('def f(): "doc"; return 2\n')


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_of_every_module_all_but_words_is_kept(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    kept = bare(source)
    described = [node for node in ast.walk(ast.parse(source)) if reach._docstring(node) is not None]
    assert described, "every module says what it is"
    for node in described:
        text = ast.get_source_segment(source, reach._docstring(node).value)
        assert bare(source.replace(text, '"""Other words."""', 1)) == kept
    tokens = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    assert all(token in kept for token in tokens)


def test_chapters_reach_what_their_imports_load() -> None:
    """Against Python itself: every module of the library that is loaded was found by reading."""
    from tutorial_lib import notebooks
    from tutorial_lib.book import _RUNNER, Book

    root = PACKAGE.parent
    if not (root / "book" / "profiles.yml").exists():
        pytest.skip("chapters are not part of this installation")
    pytest.importorskip("jupytext", reason="reading chapters needs the extra 'book'")
    book = Book(root)
    assert len(book.sources) >= 6
    asked: dict[str, list[str]] = {}
    found: dict[str, set[str]] = {}
    for stem in book.sources:
        code = notebooks.code_of(book.source(stem, "smoke"))
        found[stem] = {path.relative_to(root).as_posix() for path in reached(PACKAGE, code, _RUNNER)}
        nodes = [node for cell in code for node in ast.parse(cell).body]
        lines = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        asked[stem] = [line for line in lines if "tutorial_lib" in line]
    done = subprocess.run(
        [sys.executable, "-c", LOADER, json.dumps(asked)], capture_output=True, text=True, check=True, cwd=root
    )
    runner = {f"tutorial_lib/{name}" for name in {"__init__.py", *_RUNNER}}
    for stem, files in json.loads(done.stdout).items():
        loaded = {Path(file).resolve().relative_to(root.resolve()).as_posix() for file in files}
        assert len(loaded) > 3
        assert loaded - runner <= found[stem], stem
