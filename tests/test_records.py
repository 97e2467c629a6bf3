"""Synthetic records: names that never cross splits, facts that are in the text, the same every time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutorial_lib.corpora import SPLITS
from tutorial_lib.errors import CorpusError
from tutorial_lib.records import _names, synthetic_records


def test_names_of_the_splits_share_no_part() -> None:
    for part in (0, 1):
        groups = [set(_names(split)[part]) for split in SPLITS]
        assert all(groups)
        assert not groups[0] & groups[1]
        assert not groups[0] & groups[2]
        assert not groups[1] & groups[2]


@pytest.mark.parametrize("split", SPLITS)
def test_a_record_holds_what_it_says(embedder: Any, split: Any) -> None:
    records = synthetic_records(300, split, seed=1, max_tokens=10, embedder=embedder)
    assert len({record.text for record in records}) == 300
    assert embedder.normalise([record.text for record in records]) == [record.text for record in records]
    assert max(embedder.token_counts([record.text for record in records])) <= 10
    first, last = _names(split)
    for record in records:
        assert record.name in record.text
        given_name, surname = record.name.split(" ", 1)
        assert given_name in first
        assert surname in last
        assert record.fields
        assert all(value in record.text for value in record.fields.values())
    assert len({tuple(record.fields) for record in records}) > 5


@given(st.integers(0, 60), st.integers(0, 3), st.integers(8, 20))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_same_arguments_give_the_same_records(embedder: Any, n: int, seed: int, max_tokens: int) -> None:
    first = synthetic_records(n, "test", seed, max_tokens, embedder)
    assert len(first) == n
    assert synthetic_records(n, "test", seed, max_tokens, embedder) == first


def test_seeds_differ(embedder: Any) -> None:
    assert synthetic_records(20, seed=0, embedder=embedder) != synthetic_records(
        20, seed=1, embedder=embedder
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 1, "split": "dev"}, "Unknown split 'dev'"),
        ({"n": 1, "max_tokens": 5}, "max_tokens is 5; a record needs at least 6"),
        ({"n": -1}, "-1 records were asked for"),
    ],
)
def test_bad_arguments(embedder: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        synthetic_records(**arguments, embedder=embedder)


def test_more_than_there_are(embedder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutorial_lib import records

    monkeypatch.setattr(records, "_names", lambda split: (("ann",), ("lee",)))
    monkeypatch.setattr(records, "_TEMPLATES", records._TEMPLATES[:1])
    with pytest.raises(CorpusError, match=r"Only 16 distinct records .* and 100 were asked for"):
        synthetic_records(100, max_tokens=12, embedder=embedder)
