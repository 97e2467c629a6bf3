"""A chapter's figure on pages that are not executed: README.md and the index show what was published."""

from __future__ import annotations

import base64
from pathlib import Path

import nbformat
import pytest

from tutorial_lib.book import Book
from tutorial_lib.verify import bring_up_to_date, check

CHAPTER = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# 3. A chapter

```{code-cell} python3
:tags: [parameters]

profile = "cpu"
```
"""


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """A book whose README and index cite the figure of one chapter, which holds two."""
    folder = tmp_path / "book"
    folder.mkdir()
    (tmp_path / "_config.yml").write_text("repository: {url: https://github.com/someone/fork}\n")
    (folder / "profiles.yml").write_text("published: cpu\n")
    (folder / "claims.yml").write_text("claims: {}\n")
    (folder / "03_chapter.md").write_text(CHAPTER)
    (tmp_path / "README.md").write_text("![a curve](book/_static/fig-queries.png)\n")
    (folder / "index.md").write_text("![a curve](_static/fig-queries.png) ![other](_static/logo.png)\n")
    publish(Book(tmp_path), b"first")
    return Book(tmp_path)


def publish(book: Book, image: bytes) -> None:
    cells = []
    for name, content in (("fig-other", b"other"), ("fig-queries", image)):
        data = {"image/png": base64.b64encode(content).decode(), "text/plain": "a curve"}
        output = nbformat.v4.new_output("display_data", data=data)
        cell = nbformat.v4.new_code_cell(
            "", metadata={"mystnb": {"figure": {"name": name}}}, outputs=[output]
        )
        cells.append(cell)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), book.notebook("03_chapter"))


def complaints(book: Book) -> list[str]:
    return [problem for problem in check(book)[0] if "fig-queries.png" in problem]


def test_figure_is_taken_from_the_published_chapter_and_follows_it(book: Book) -> None:
    file = book.folder / "_static" / "fig-queries.png"
    assert len(complaints(book)) == 1
    assert file in bring_up_to_date(book)
    assert file.read_bytes() == b"first"
    assert complaints(book) == []
    assert [path.name for path in file.parent.iterdir()] == ["fig-queries.png"]  # only what a page shows
    publish(book, b"second")
    assert len(complaints(book)) == 1
    bring_up_to_date(book)
    assert file.read_bytes() == b"second"


def test_a_broken_notebook_is_a_problem_and_not_a_crash(book: Book) -> None:
    bring_up_to_date(book)
    book.notebook("03_chapter").write_text("{")
    assert any("03_chapter.ipynb" in problem for problem in check(book)[0])
    assert (book.folder / "_static" / "fig-queries.png").read_bytes() == b"first"
