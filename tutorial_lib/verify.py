"""Everything about the book that can be verified, or written, without executing a chapter.

    check               problems and notes: `tutorial-lib check`
    bring_up_to_date    numbers, tables, addresses and figures in chapters, README.md and other plain pages

Neither needs jupyter-book or a kernel; CI runs the first after every change.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from . import notebooks
from .book import Book, published_numbers, republished, write
from .claims import Reported, compare, reported, union
from .errors import ClaimError, TutorialError
from .prose import refresh, typed_by_hand

# A chapter's figure on a page that is not executed, by the name of its cell: ![...](_static/fig-queries.png)
_FIGURE = re.compile(r"\((?:book/)?_static/(fig-[a-z0-9-]+)\.png")
_RAW = re.compile(r"^(?::{3,}|`{3,}\{).*|\{[a-z][a-z:_-]*\}`[^`]*`", re.M)
# api.md lists the modules in the order in which a text flows through them, then the rest by name.
_FLOW = (
    "corpora",
    "records",
    "embedder",
    "inverter",
    "corrector",
    "checkpoints",
    "search",
    "metrics",
    "information",
)


def check(book: Book) -> tuple[list[str], list[str]]:
    """(problems, notes), one sentence each: claims, tampered or outdated notebooks, digits typed by hand,
    text that should have been generated, directives that Colab would show raw. Executes nothing."""
    problems: list[str] = []
    notes: list[str] = []
    manifest = book.manifest()
    numbers: dict[str, dict[str, Reported]] = {}
    for stem in book.sources:
        try:
            notebook = notebooks.read(book.notebook(stem))
            numbers[stem] = reported(notebook)
            entry = manifest.get(stem, {})
            if notebooks.outputs_hash(notebook) != entry.get("outputs"):
                problems.append(
                    f"{stem}.ipynb: its outputs are not those of the run that published it; run make book."
                )
            wanted = book.fingerprint(book.source(stem, book.published), book.published)
            changed = [key for key in ("library", "weights") if entry.get(key) != wanted[key]]
            if changed:
                notes.append(
                    f"{stem}: the {' and '.join(changed)} changed since it was executed; run make book."
                )
        except TutorialError as error:
            problems.append(str(error))
    try:
        problems += compare(numbers, book.claims, book.published)
        known = union(numbers.values())
        for stem in numbers:
            problems += _check_chapter(book, stem, known)
        for path in book.pages:
            problems += _typed(path.name, path.read_text(encoding="utf-8"), known, book)
        texts, unwritten = _refreshed(book, known)
        problems += unwritten
        problems += [
            f"{path.name}: generated text is out of date; run 'tutorial-lib check --fix'."
            for path, text in texts.items()
            if path.read_text(encoding="utf-8") != text
        ]
        problems += [
            f"{path.name}: not the figure of the published chapter; run 'tutorial-lib check --fix'."
            for path, image in _figures(book).items()
            if not path.exists() or path.read_bytes() != image
        ]
    except ClaimError as error:
        problems.append(str(error))
    return problems, notes


def _check_chapter(book: Book, stem: str, numbers: Mapping[str, Reported]) -> list[str]:
    problems = []
    path = book.notebook(stem)
    try:
        if republished(book, stem, numbers) != path.read_text(encoding="utf-8"):
            problems.append(
                f"{path.name} is not what {stem}.md and its outputs give; run make book, edit only the .md."
            )
    except TutorialError as error:
        problems.append(f"{stem}: {error}")
    for cell in notebooks.read(path).cells:
        if cell.cell_type == "markdown":
            raw = [match.group() for match in _RAW.finditer(cell.source)]
            problems += [
                f"{path.name}: Colab would show '{text[:60]}' raw; write plain Markdown." for text in raw
            ]
    for cell in book.source(stem, book.published).cells:
        if cell.cell_type == "markdown":
            problems += _typed(f"{stem}.md", cell.source, numbers, book)
    return problems


def _typed(where: str, text: str, numbers: Mapping[str, Reported], book: Book) -> list[str]:
    return [
        f"{where}: '{typed}' is typed by hand, but {name} is reported; "
        f"write {{report}}`{name}`, or code if it only happens to agree: `{typed}`."
        for typed, name in typed_by_hand(text, numbers, book.claims.claims)
    ]


def bring_up_to_date(book: Book) -> list[Path]:
    """Write everything that follows from sources, outputs and claims without executing; returns what changed.

    Chapters whose code changed and pages that cite what nobody reports are left alone: `check` names them.
    """
    numbers = published_numbers(book)
    texts: dict[Path, str] = {}
    for stem in book.sources:
        if book.notebook(stem).exists():
            with contextlib.suppress(TutorialError):
                texts[book.notebook(stem)] = republished(book, stem, numbers)
    texts |= _refreshed(book, numbers)[0]
    changed = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        write(path, texts[path])
    for path, image in _figures(book).items():
        if not path.exists() or path.read_bytes() != image:
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".part").write_bytes(image)
            os.replace(path.with_suffix(".part"), path)
            changed.append(path)
    return changed


def _figures(book: Book) -> dict[Path, bytes]:
    """The chapters' figures that README.md and plain pages show: file -> PNG, out of published notebooks."""
    wanted = {name for page in book.pages for name in _FIGURE.findall(page.read_text(encoding="utf-8"))}
    found: dict[Path, bytes] = {}
    for stem in book.sources if wanted else ():
        with contextlib.suppress(TutorialError):  # a notebook that is missing or broken is named elsewhere
            for cell in notebooks.read(book.notebook(stem)).cells:
                name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
                for output in cell.get("outputs", []) if name in wanted else ():
                    if "image/png" in output.get("data", {}):
                        file = book.folder / "_static" / f"{name}.png"
                        found[file] = base64.b64decode(output["data"]["image/png"])
    return found


def _refreshed(book: Book, numbers: Mapping[str, Reported]) -> tuple[dict[Path, str], list[str]]:
    """What the pages should say, and a sentence for each page that cannot be written."""
    blocks = {
        "badges": lambda: _badges(book),
        "chapters": lambda: _chapter_table(book, "book/"),  # as README.md links to them
        "book_chapters": lambda: _chapter_table(book, ""),
        "modules": lambda: _modules(book),
    }
    pages: dict[Path, str] = {}
    problems: list[str] = []
    for path in book.pages:
        try:
            pages[path] = refresh(path.read_text(encoding="utf-8"), numbers, book.claims.claims, blocks)
        except ClaimError as error:
            problems.append(f"{path.name}: {error}")
    # the two files whose formats have no place for a reference to _config.yml
    lines = {
        "pyproject.toml": r'(?m)^(Repository = ").*(")$',
        "CITATION.cff": r'(?m)^(repository-code: ").*(")$',
    }
    for name, pattern in lines.items():
        path = book.root / name
        if path.exists():
            pages[path] = re.sub(pattern, rf"\g<1>{book.repository}\g<2>", path.read_text(encoding="utf-8"))
    return pages, problems


def _colab(book: Book, stem: str) -> str:
    path = re.sub(r"^https://github\.com/", "", book.repository)
    return f"https://colab.research.google.com/github/{path}/blob/main/book/{stem}.ipynb"


def _badges(book: Book) -> str:
    workflow = f"{book.repository}/actions/workflows/checks.yml"
    return f"[![checks]({workflow}/badge.svg)]({workflow}) [repository]({book.repository})\n"


def _chapter_table(book: Book, folder: str) -> str:
    rows = ["| chapter | two CPU cores | T4, estimated | |", "|---|---|---|---|"]
    for stem, path in book.sources.items():
        title = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.M)
        minutes = ((book.profiles.get("chapters") or {}).get(stem) or {}).get("minutes") or {}
        times = [f"{minutes[key]} min" if key in minutes else "" for key in ("cpu", "t4")]
        name = f"[{title.group(1) if title else stem}]({folder}{stem}.ipynb)"
        rows.append(f"| {name} | {times[0]} | {times[1]} | [Colab]({_colab(book, stem)}) |")
    return "\n".join(rows) + "\n"


def _modules(book: Book) -> str:
    package = book.root / "tutorial_lib"
    names = {path.stem for path in package.glob("*.py") if not path.stem.startswith(("__", "cli"))}
    names |= {path.parent.name for path in package.glob("*/__init__.py")}
    ordered = [name for name in _FLOW if name in names] + sorted(names - set(_FLOW))
    automodule = "```{{eval-rst}}\n.. automodule:: tutorial_lib.{name}\n   :members:\n```\n\n"
    return "".join(f"## {name}\n\n" + automodule.format(name=name) for name in ordered)
