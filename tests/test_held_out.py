"""The shipped test sets: whole, of the promised lengths, disjoint, and loud when a file was changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tutorial_lib import held_out as module
from tutorial_lib import passages, synthetic_records
from tutorial_lib.errors import CorpusError
from tutorial_lib.held_out import LENGTHS, NAMES, SIZE, every_passage, held_out, held_out_records


@pytest.mark.parametrize("name", NAMES)
def test_a_set_keeps_its_promises(name: str, embedder: Any) -> None:
    for length in LENGTHS:
        texts = held_out(name, length)
        assert len(set(texts)) == len(texts) == SIZE
        assert embedder.normalise(texts) == texts
        counts = embedder.token_counts(texts)
        assert max(counts) <= length
        assert min(counts) >= 3 * length // 4
        assert held_out(name, length, 7) == texts[:7]
        assert passages(f"test:{name}", "test", length, 7) == texts[:7]


def test_records_carry_their_names_which_no_training_record_has() -> None:
    trained = {part for record in synthetic_records(2000, "train") for part in enumerate(record.name.split())}
    for length in LENGTHS:
        for record in held_out_records(length):
            assert record.name in record.text
            assert record.fields
            assert not trained & set(enumerate(record.name.split()))  # neither the first name nor the surname


def test_speeches_come_from_the_test_split_alone(embedder: Any) -> None:
    from tutorial_lib import documents
    from tutorial_lib.corpora import split_of
    from tutorial_lib.privacy.pii import words

    def joined(test: bool) -> str:
        texts = [doc.text for doc in documents("sotu") if (split_of(doc.name) == "test") == test]
        return f" {' '.join(words(' '.join(texts)))} "

    ours, others = joined(True), joined(False)
    passages = [f" {' '.join(words(text))} " for text in held_out("speeches", 16)]
    found = [text for text in passages if text in ours]
    assert len(found) >= 0.95 * len(passages)  # or the search could not find a leak either
    assert [text for text in passages if text in others] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("poems",), r"Unknown test set 'poems'; there are speeches, general, records, novels"),
        (("general", 12), r"have 6, 8, 16, 24, 32 word pieces, not 12"),
        (("records", 12), r"not 12"),
        (("general", 32, 501), r"501 passages were asked for and the test set general has 500"),
        (("records", 32, 0), r"0 passages were asked for"),
    ],
)
def test_what_does_not_exist_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        held_out(*arguments)
    with pytest.raises(CorpusError, match="only a test split"):
        passages("test:general", "train", 32)


def test_a_changed_or_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    module._read.cache_clear()
    module.write("novels", 8, ["it is a truth universally acknowledged", "that a single man"])
    module.write("records", 8, synthetic_records(3, max_tokens=8))
    assert held_out("novels", 8)[0].startswith("it is a truth")
    assert held_out_records(8) == synthetic_records(3, max_tokens=8)
    (tmp_path / "novels-8.txt").write_text("it is a lie\n", encoding="utf-8")
    module._read.cache_clear()
    with pytest.raises(CorpusError, match="not the published test set"):
        held_out("novels", 8)
    (tmp_path / "novels-8.txt").unlink()
    with pytest.raises(CorpusError, match="is missing"):
        held_out("novels", 8)
    module._read.cache_clear()


def test_every_passage_is_there() -> None:
    texts = every_passage()
    assert len(texts) == SIZE * len(NAMES) * len(LENGTHS)
    assert all(texts)
