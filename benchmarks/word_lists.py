"""What a list of names reads off vectors of invented notes of every length, networks or none.

    python benchmarks/word_lists.py [--lengths 8 16 24 32] [--n 100] [--surnames 20000] [--rare] [--output FILE.csv]

The notes are the first ``--n`` of the shipped test set of records at each length, whose names occur in no training
record; ``--rare`` gives the people surnames out of the rarer half of the list. The list has the census's first names
and its commonest surnames, and the embedder's own words. A search begins with the inverter's first guess (up to the
length it was trained for), with the nearest of 2,000 notes about other people, or with a full stop. Rows are printed as
they finish.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rows import keep

from tutorial_lib import Embedder, Inverter, evaluate, held_out_records, invert, metrics, privacy, synthetic_records
from tutorial_lib.records import Record
from tutorial_lib.word_lists import WordList, census_names, fill_in, whole_words

OTHERS = 2000  # notes about other people


def rare_surnames(given: argparse.Namespace) -> list[str]:
    """One for each note, out of the rarer half of the census surnames on the list."""
    common = set(census_names(given.surnames // 2))
    rare = [name for name in census_names(given.surnames) if name not in common]
    return [str(name) for name in np.random.default_rng(0).choice(rare, given.n, replace=False)]


def renamed(record: Record, surname: str) -> Record:
    """The same note about somebody of another surname; it may be a few word pieces longer."""
    name = f"{record.name.split()[0]} {surname}"
    return replace(record, text=record.text.replace(record.name, name), name=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 16, 24, 32])
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--surnames", type=int, default=20_000)
    parser.add_argument("--rare", action="store_true", help="surnames out of the rarer half of the list")
    parser.add_argument("--output", type=Path, help="CSV to append the rows to")
    given = parser.parse_args()
    embedder = Embedder.from_pretrained()
    inverter = Inverter.from_pretrained("all-MiniLM-L6-v2").to(embedder.device).eval()
    words = WordList.embed([*census_names(given.surnames), *whole_words(embedder)], embedder, progress=False)
    for length in given.lengths:
        records = held_out_records(length, given.n)
        if given.rare:
            records = [renamed(record, name) for record, name in zip(records, rare_surnames(given), strict=True)]
        texts, people = [record.text for record in records], [record.name for record in records]
        facts = [list(record.fields.values()) for record in records]
        vectors = embedder.encode(texts)
        others = [r.text for r in synthetic_records(OTHERS, "train", 0, length, embedder)]
        begins = {
            "note": metrics.nearest_passage(vectors, others, embedder.encode(others)),
            "dot": ["."] * len(texts),
        }
        if length <= inverter.config.max_tokens:
            begins = {"guess": invert(vectors, embedder, inverter, steps=0, beam_width=4).texts, **begins}
        for begin, guesses in begins.items():
            started = time.monotonic()
            found = fill_in(vectors, guesses, embedder, words)
            spent = time.monotonic() - started
            row = {
                "tokens": length,
                "surnames": "rare" if given.rare else "common",
                "begin": begin,
                "names_before": f"{privacy.names_recovered(people, guesses).full}",
                "names": f"{privacy.names_recovered(people, found.texts).full}",
                "facts": f"{privacy.facts_recovered(facts, found.texts)}",
                "exact": f"{evaluate(texts, found.texts, embedder).exact}",
                "queries": f"{found.queries.mean():.0f}",
                "seconds": f"{spent / given.n:.1f}",
                "listed": words.queries,
            }
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            if given.output:
                keep(given.output, row)


if __name__ == "__main__":
    main()
