"""Docstrings are plain text, not reStructuredText: keep their paragraphs and their hand-aligned columns.

autodoc would read `*args` as emphasis and an indented table as a quotation, and the strict build would refuse
the page. Here paragraphs are escaped (single backticks become code), and indented blocks stay as they are.
"""

from __future__ import annotations

import re
from typing import Any


def _paragraph(line: str) -> str:
    line = re.sub(r":(?:class|func|meth|mod|attr):(?=`)", "", line)  # Sphinx roles read as plain names
    pieces = re.split(r"`+([^`]+)`+", line)
    escaped = [re.sub(r"([*_|\\<>:`])", r"\\\1", piece) for piece in pieces[::2]]
    code = [f"``{piece.strip()}``" for piece in pieces[1::2]]
    out = escaped[0]
    for literal, text in zip(code, escaped[1:], strict=True):
        # reStructuredText wants white space or punctuation around code; "\ " is an invisible one
        out += ("" if not out or out[-1].isspace() or out[-1] in "([-" else r"\ ") + literal
        out += ("" if not text or text[0].isspace() or text[0] in ".,;)]?!-" else r"\ ") + text
    return out


def plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """autodoc-process-docstring: rewrite `lines` in place."""
    source, result = list(lines), []
    block: list[str] = []
    for index, line in enumerate([*source, ""]):
        last = index == len(source)
        if line.startswith("  ") or (block and not line.strip() and not last):
            block.append(line)
            continue
        if block:
            while block and not block[-1].strip():
                block.pop()
            result += ["", ".. code-block:: text", "", *["   " + kept for kept in block], ""]
            block = []
        # "name: explanation" lines begin a paragraph of their own
        if re.match(r"[a-z_, ]+: ", line) and result and result[-1].strip():
            result.append("")
        result.append(_paragraph(line))
    lines[:] = result


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
