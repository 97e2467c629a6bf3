"""Fixed test sets: short passages that no training text holds, shipped with the package and verified by sha256.

    speeches   U.S. annual messages, whole messages held out
    general    WordNet glosses, the Jargon File, PostgreSQL's and Python's manuals in equal parts, held out
    records    synthetic records whose names occur in no training record
    novels     Jane Austen: a domain that no training text comes from

Each has 500 passages at each of five lengths. ``tutorial-lib evaluate --corpus test:novels`` scores weights on one, and
``passages("test:novels", ...)`` gives its texts to a chapter. ``test_texts/README.md`` says how they were made, and
under which licences they are shipped.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from tutorial_lib.errors import CorpusError
from tutorial_lib.records import Record

Name = Literal["speeches", "general", "records", "novels"]
NAMES: tuple[Name, ...] = get_args(Name)
LENGTHS = (6, 8, 16, 24, 32)  # word pieces of all-MiniLM-L6-v2, at most; at least three quarters of it
SIZE = 500  # passages per set and length
_FOLDER = Path(__file__).parent / "test_texts"


def held_out(name: str, length: int = 32, n: int | None = None) -> list[str]:
    """The passages of a test set: 500 normalised strings of at most ``length`` word pieces, in a fixed random order.

    ``n`` takes the first so many. Lengths and spelling (lower case) are those of all-MiniLM-L6-v2's tokenizer.
    Raises :class:`CorpusError` for an unknown name or length, more passages than there are, or a changed file.
    """
    if name not in NAMES:
        raise CorpusError(f"Unknown test set {name!r}; there are {', '.join(NAMES)}.")
    if name == "records":
        return [record.text for record in held_out_records(length, n)]
    return _first(_read(f"{name}-{_known(length)}.txt").splitlines(), n, name)


def held_out_records(length: int = 32, n: int | None = None) -> list[Record]:
    """The test set of synthetic records with what is in them, as :func:`held_out` gives their texts."""
    lines = _read(f"records-{_known(length)}.jsonl").splitlines()
    return [Record(**json.loads(line)) for line in _first(lines, n, "records")]


def every_passage() -> list[str]:
    """All passages of all sets and lengths, to keep them out of training text."""
    return [text for name in NAMES for length in LENGTHS for text in held_out(name, length)]


def write(name: Name, length: int, passages: list[str] | list[Record]) -> None:
    """Replace one set, and its line in SHA256SUMS: for ``scripts/make_test_sets.py`` only."""
    if name == "records":
        lines = [json.dumps(asdict(record), ensure_ascii=False) for record in passages if isinstance(record, Record)]
    else:
        lines = [text for text in passages if isinstance(text, str)]
    file = _FOLDER / f"{name}-{_known(length)}.{'jsonl' if name == 'records' else 'txt'}"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    digests = _digests() | {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    text = "".join(f"{digest}  {file}\n" for file, digest in sorted(digests.items()))
    (_FOLDER / "SHA256SUMS").write_text(text, encoding="utf-8", newline="\n")
    _read.cache_clear()


def _known(length: int) -> int:
    if length not in LENGTHS:
        raise CorpusError(f"The test sets have {', '.join(map(str, LENGTHS))} word pieces, not {length}.")
    return length


def _first(lines: list[str], n: int | None, name: str) -> list[str]:
    if n is not None and not 1 <= n <= len(lines):
        raise CorpusError(f"{n} passages were asked for and the test set {name} has {len(lines)}.")
    return lines[:n]


def _digests() -> dict[str, str]:
    sums = _FOLDER / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.exists() else []
    return {name: digest for digest, name in (line.split() for line in lines)}


@lru_cache(maxsize=32)
def _read(file: str) -> str:
    path = _FOLDER / file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} is missing; install the package again.") from error
    if hashlib.sha256(data).hexdigest() != _digests().get(file):
        raise CorpusError(f"{path} is not the published test set (its sha256 differs); install the package again.")
    return data.decode()
