"""Tables of What we tried that come from a benchmark's CSV: the page shows the file, cell by cell."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BEGINS = {"guess": "the inverter's first guess", "note": "a note about somebody else", "dot": "a full stop"}


def rows(name: str) -> list[dict[str, str]]:
    if not (ROOT / "benchmarks").exists():
        pytest.skip("benchmarks are not part of this distribution")
    with (ROOT / "benchmarks" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(section: str) -> list[tuple[str, ...]]:
    """The body of the first table after a heading or paragraph that begins so."""
    page = (ROOT / "book" / "what_we_tried.md").read_text(encoding="utf-8")
    lines = page[page.index(section) :].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| "))
    body = lines[first + 2 :]
    last = next((number for number, line in enumerate(body) if not line.startswith("|")), len(body))
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in body[:last]]


def cell(score: str) -> str:
    """`30.0 (18.1–45.4, n = 40)` without its n, which the page says once."""
    return score.rpartition(", n = ")[0] + ")"


def scores(row: dict[str, str]) -> tuple[str, ...]:
    """Rounds, queries and scores of a row, as every table of searches has them."""
    return row["rounds"], f"{int(row['queries']):,}", cell(row["exact"]), cell(row["bleu"]), cell(row["token_f1"])


@pytest.mark.parametrize(
    ("file", "search", "section", "column", "n"),
    [
        ("variants_rounds.csv", "all", "**And more rounds?**", "split", 40),
        ("surrogate_rounds.csv", "surrogate", "**And more rounds of it?**", "split", 40),
        ("surrogate_rounds.csv", "words, ahead", "**And more rounds of looking ahead?**", "split", 40),
        ("longer_texts.csv", "words, ahead", "**Longer than they were trained to write.**", "tokens", 20),
    ],
)
def test_one_search_after_some_rounds(file: str, search: str, section: str, column: str, n: int) -> None:
    found = [row for row in rows(file) if row["search"] == search]
    assert found
    assert table(section) == [(row[column], *scores(row)) for row in found]
    assert all(row["exact"].endswith(f"n = {n})") for row in found)
    assert column == "tokens" or {row["tokens"] for row in found} == {"16"}
    assert column == "split" or {row["split"] for row in found} == {"test"}


def test_searches_of_shorter_texts() -> None:
    found = rows("surrogate_lengths.csv")
    named = {"all": "breeding", "surrogate": "a surrogate", "words, ahead": "looking ahead"}
    assert table("**Shorter texts.**") == [
        (row["tokens"], named[row["search"]], *scores(row), row["seconds"])
        for row in found
        if row["rounds"] in ("5", "15", "30")
    ]
    assert all(row["exact"].endswith("n = 40)") and row["split"] == "test" for row in found)


def test_word_lists_rare_names_and_longer_notes() -> None:
    found = rows("word_lists.csv")
    assert table("How rare may a name be, and how long a note?") == [
        (
            row["tokens"] + ", rarer surnames" * (row["surnames"] == "rare"),
            BEGINS[row["begin"]],
            row["names"].rpartition("n = ")[2].rstrip(")"),
            cell(row["names_before"]),
            cell(row["names"]),
            cell(row["facts"]),
            cell(row["exact"]),
            row["queries"],
        )
        for row in found
    ]
