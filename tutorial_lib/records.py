"""Synthetic records: short notes about people who do not exist, for measuring what leaks (chapter 4).

Names come from ``faker``. A first name or surname belongs to one split for good (by its hash), so no training
record has the first name or the surname of a test record in the same place. Real text beside the records may hold
either: speeches name many people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tutorial_lib.corpora import SPLITS, Split, split_of
from tutorial_lib.errors import CorpusError

if TYPE_CHECKING:
    from tutorial_lib.embedder import Embedder

_CONDITIONS = (
    "asthma", "diabetes", "arthritis", "pneumonia", "migraine", "anemia", "hepatitis", "epilepsy",
    "depression", "cancer", "a stroke", "a fracture", "high fever", "heart failure", "kidney stones",
    "chest pain",
)  # fmt: skip
_JOBS = (
    "nurse", "teacher", "engineer", "lawyer", "driver", "pilot", "chef", "judge", "farmer", "clerk", "editor",
    "surgeon", "mechanic", "plumber", "accountant", "director",
)  # fmt: skip
_CITIES = (
    "boston", "chicago", "denver", "seattle", "dallas", "phoenix", "detroit", "atlanta", "houston",
    "cleveland", "portland", "miami", "london", "paris", "berlin", "madrid", "rome", "dublin",
)  # fmt: skip
_MONTHS = ("january", "march", "april", "may", "june", "july", "august", "october", "december")


@dataclass(frozen=True)
class Record:
    """One note: its text, the person's full name (lower case), and the other facts by kind."""

    text: str
    name: str
    fields: dict[str, str]


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


# Each template takes (rng, name) and returns the text and the facts in it.
_TEMPLATES: tuple[Callable[[np.random.Generator, str], tuple[str, dict[str, str]]], ...] = (
    lambda rng, name: (f"{name} has {(c := _pick(rng, _CONDITIONS))}", {"condition": c}),
    lambda rng, name: (f"patient {name}, {(c := _pick(rng, _CONDITIONS))}", {"condition": c}),
    lambda rng, name: (f"{name}, age {(a := str(rng.integers(18, 95)))}", {"age": a}),
    lambda rng, name: (f"{name} lives in {(c := _pick(rng, _CITIES))}", {"city": c}),
    lambda rng, name: (f"{name} is a {(j := _pick(rng, _JOBS))} in {(c := _pick(rng, _CITIES))}",
                       {"job": j, "city": c}),
    lambda rng, name: (f"{name} owes {(a := str(rng.integers(1, 100) * 100))} dollars", {"amount": a}),
    lambda rng, name: (f"{name} was born in {(y := str(rng.integers(1930, 2010)))}", {"year": y}),
    lambda rng, name: (f"call {name} on {(d := f'{_pick(rng, _MONTHS)} {rng.integers(1, 29)}')}",
                       {"date": d}),
    lambda rng, name: (f"room {(r := str(rng.integers(100, 600)))} : {name}", {"room": r}),
    lambda rng, name: (f"{name} was treated for {(c := _pick(rng, _CONDITIONS))}", {"condition": c}),
)  # fmt: skip

# Used as well where a record may have more than 12 word pieces: several facts about one person.
_LONG: tuple[Callable[[np.random.Generator, str], tuple[str, dict[str, str]]], ...] = (
    lambda rng, name: (f"{name}, age {(a := str(rng.integers(18, 95)))}, lives in {(c := _pick(rng, _CITIES))} and "
                       f"works as a {(j := _pick(rng, _JOBS))}", {"age": a, "city": c, "job": j}),
    lambda rng, name: (f"{name}, a {(j := _pick(rng, _JOBS))} in {(c := _pick(rng, _CITIES))}, was treated for "
                       f"{(x := _pick(rng, _CONDITIONS))} and still owes {(a := str(rng.integers(1, 100) * 100))} "
                       f"dollars", {"job": j, "city": c, "condition": x, "amount": a}),
    lambda rng, name: (f"on {(d := f'{_pick(rng, _MONTHS)} {rng.integers(1, 29)}')} we saw {name}, age "
                       f"{(a := str(rng.integers(18, 95)))}, who has {(x := _pick(rng, _CONDITIONS))} and asked to be "
                       f"moved to room {(r := str(rng.integers(100, 600)))}",
                       {"date": d, "age": a, "condition": x, "room": r}),
    lambda rng, name: (f"patient {name}, born in {(y := str(rng.integers(1930, 2010)))}, was seen in "
                       f"{(c := _pick(rng, _CITIES))} for {(x := _pick(rng, _CONDITIONS))}; the next visit is on "
                       f"{(d := f'{_pick(rng, _MONTHS)} {rng.integers(1, 29)}')} in room "
                       f"{(r := str(rng.integers(100, 600)))}",
                       {"year": y, "city": c, "condition": x, "date": d, "room": r}),
)  # fmt: skip


def _names(split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """First names and surnames of a split, from faker's U.S. lists."""
    from faker.providers.person.en_US import Provider

    first = sorted({name.lower() for name in Provider.first_names})
    last = sorted({name.lower() for name in Provider.last_names})
    return (
        tuple(name for name in first if split_of(f"first/{name}") == split),
        tuple(name for name in last if split_of(f"last/{name}") == split),
    )


def synthetic_records(
    n: int,
    split: Split = "test",
    seed: int = 0,
    max_tokens: int = 16,
    embedder: Embedder | None = None,
) -> list[Record]:
    """``n`` distinct records of at most ``max_tokens`` word pieces, with the split's own names.

    The same arguments always give the same records. Raises :class:`CorpusError` for an unknown split, a
    negative ``n``, more records than exist, or when ``max_tokens`` is too small for a name and a fact (fewer
    than 6).
    """
    if split not in SPLITS:
        raise CorpusError(f"Unknown split {split!r}; use train, validation or test.")
    if n < 0:
        raise CorpusError(f"{n} records were asked for; give a number from 0 up.")
    if max_tokens < 6:
        raise CorpusError(f"max_tokens is {max_tokens}; a record needs at least 6 word pieces.")
    if embedder is None:
        from tutorial_lib.corpora import _default_embedder

        embedder = _default_embedder()
    first, last = _names(split)
    templates = _TEMPLATES if max_tokens <= 12 else _TEMPLATES + 3 * _LONG
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    kept: dict[str, Record] = {}
    barren = 0  # rounds in a row that brought nothing new
    while len(kept) < n and barren < 10:
        before = len(kept)
        drafts = []
        for _ in range(max(64, n)):
            name = f"{_pick(rng, first)} {_pick(rng, last)}"
            text, fields = templates[int(rng.integers(len(templates)))](rng, name)
            drafts.append(Record(text, name, fields))
        counts = embedder.token_counts([draft.text for draft in drafts])
        normal = embedder.normalise([draft.text for draft in drafts])
        for draft, count, text in zip(drafts, counts, normal, strict=True):
            if count <= max_tokens:
                kept.setdefault(text, Record(text, draft.name, draft.fields))
        barren = barren + 1 if len(kept) == before else 0
    if len(kept) < n:
        raise CorpusError(
            f"Only {len(kept)} distinct records of {max_tokens} word pieces were found and {n} were asked "
            "for; ask for fewer, or allow longer ones."
        )
    return list(kept.values())[:n]
