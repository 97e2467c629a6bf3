"""Word lists: what a plane can explain, which texts are tried, and names that no network could spell."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutorial_lib.errors import TextError, TutorialError, VectorError
from tutorial_lib.privacy import DefendedEmbedder, Quantise, adapt
from tutorial_lib.search import SOLVED
from tutorial_lib.word_lists import (
    WordList,
    _Filling,
    _spend,
    census_names,
    fill_in,
    left_out,
    plane_cosines,
    proposals,
    whole_words,
)

seeds = st.integers(0, 2**31)
texts = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=7).map(tuple)


def units(rng: np.random.Generator, n: int, d: int = 5) -> np.ndarray:
    rows = rng.standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(seeds)
def test_a_plane_explains_what_the_best_mixture_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target, contexts, words = units(rng, 1)[0], units(rng, 3), units(rng, 4)
    found = plane_cosines(target, contexts, words)
    shares = np.concatenate([np.linspace(0, 4, 4001), np.geomspace(4, 1e6, 4001)])
    mixed = contexts[:, None, None] + shares[:, None] * words[:, None]  # [m, n, shares, d]
    tried = (mixed @ target) / np.linalg.norm(mixed, axis=-1)
    np.testing.assert_allclose(found, tried.max(-1), atol=2e-3)
    assert (found >= (contexts @ target)[:, None] - 1e-6).all()  # a word may stay away


def test_a_text_made_of_two_words_is_in_their_plane() -> None:
    rng = np.random.default_rng(0)
    words = units(rng, 50, d=30)
    target = words[7] + 0.6 * words[21]
    target /= np.linalg.norm(target)
    assert plane_cosines(target, words[[7]], words)[0].argmax() == 21
    assert plane_cosines(target, words[[7]], words)[0].max() == pytest.approx(1, abs=1e-6)


def test_a_word_that_is_the_context_gains_nothing() -> None:
    words = units(np.random.default_rng(1), 6)
    near = words @ words[0]
    np.testing.assert_allclose(np.diag(plane_cosines(words[0], words, words)), near, atol=1e-3)


@given(texts)
def test_runs_of_up_to_three_words_are_left_out(text: tuple[str, ...]) -> None:
    found = left_out(text)
    assert all(0 <= k <= 3 and len(rest) == len(text) - k and rest for (_, k), rest in found.items())
    assert all(rest == text[:i] + text[i + k :] for (i, k), rest in found.items())
    assert {i for i, k in found if not k} == set(range(len(text) + 1))  # every gap, both ends


def a_filling(text: tuple[str, ...], guess: tuple[str, ...], words: WordList, seed: int) -> _Filling:
    rng = np.random.default_rng(seed)
    target = units(rng, 1)[0]
    filling = _Filling(target, guess, [], words.vectors @ target)
    for rest in {text, *left_out(text).values()}:
        filling.vectors[rest] = units(rng, 1)[0]
        filling.cosines[rest] = float(filling.vectors[rest] @ target)
    return filling


@given(texts, texts, seeds, st.integers(1, 9), st.integers(1, 6))
def test_proposals_come_from_the_list_and_the_guess(
    text: tuple[str, ...], guess: tuple[str, ...], seed: int, size: int, tries: int
) -> None:
    words = WordList([f"w{number}" for number in range(size)], units(np.random.default_rng(seed), size))
    filling = a_filling(text, guess, words, seed)
    found = proposals(filling, text, left_out(text), words, tries)
    listed = {word for entry in words.words for word in entry}
    assert len(found) == len(set(found))
    assert {word for new in found for word in new} <= {*text, *guess, *listed}
    assert all(len(text) - 2 <= len(new) <= len(text) + 1 for new in found)
    assert len(found) + len(left_out(text)) <= _spend(text, guess, words, tries)


def test_what_the_guess_had_is_offered_again() -> None:
    words = WordList(["zoe"], units(np.random.default_rng(0), 1))
    filling = a_filling(("ann", "age", "9"), ("bob", ",", "age", "9"), words, 0)
    found = proposals(filling, ("ann", "age", "9"), left_out(("ann", "age", "9")), words, 8)
    assert ("ann", ",", "age", "9") in found
    assert ("age", "ann", "9") in found  # neighbours exchanged
    assert ("zoe", "age", "9") in found and ("zoe", "ann", "age", "9") in found


@pytest.fixture(scope="module")
def listed(embedder: Any) -> WordList:
    given = ["Tara", "tara", "  ", *"rubio kirsten powers jake mahoney o'brien boston 29 30 ,".split()]
    return WordList.embed(given, embedder)


def test_a_list_is_embedded_once_a_word(embedder: Any, listed: WordList) -> None:
    assert len(listed) == listed.queries == len(set(listed.words)) == 11
    assert ("o", "'", "brien") in listed.words
    np.testing.assert_allclose(np.linalg.norm(listed.vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(listed.vectors[1], embedder.encode(["rubio"])[0], atol=1e-5)


def test_names_are_put_in_where_others_stood(embedder: Any, listed: WordList) -> None:
    secret = ["tara rubio, age 29", "jake mahoney lives in boston"]
    before = embedder.queries
    found = fill_in(embedder.encode(secret), ["kirsten rub, age 30", "jake powers lives in dallas"], embedder, listed)
    assert found.texts == secret
    assert (found.cosines >= SOLVED).all()
    assert found.queries.sum() == embedder.queries - before - 2
    for rows in found.trace:
        assert all(a.cosine <= b.cosine and a.queries < b.queries for a, b in pairwise(rows))


def test_a_name_is_read_without_any_guess(embedder: Any, listed: WordList) -> None:
    found = fill_in(embedder.encode(["tara rubio"]), ["  "], embedder, listed)
    assert set(found.texts[0].split()) >= {"tara", "rubio"}


def test_a_search_does_not_depend_on_its_neighbours(
    embedder: Any, listed: WordList, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = embedder.encode(["tara rubio, age 29", "a just law", "jake mahoney, age 30"])
    guesses = ["kirsten rubio, age 29", "a law", "jake powers age 30"]
    together = fill_in(vectors, guesses, embedder, listed, steps=3)
    monkeypatch.setattr("tutorial_lib.word_lists._TOGETHER", 1)
    monkeypatch.setattr("tutorial_lib.word_lists._ROWS", 2)
    alone = fill_in(vectors, guesses, embedder, listed, steps=3)
    assert together.texts == alone.texts
    assert together.queries.tolist() == alone.queries.tolist()


def test_a_budget_is_kept(embedder: Any, listed: WordList) -> None:
    vectors, guesses = embedder.encode(["tara rubio, age 29"]), ["a just law for all"]
    found = [fill_in(vectors, guesses, embedder, listed, max_queries=budget) for budget in (1, 40, 90, 150)]
    assert all(one.queries[0] <= budget for one, budget in zip(found, (1, 40, 90, 150), strict=True))
    assert found[0].queries[0] == 1 and found[0].texts == guesses
    assert found[2].queries[0] > 50 and found[2].cosines[0] > found[0].cosines[0]  # enough for a round
    assert fill_in(vectors, guesses, embedder, listed, steps=0).texts == guesses


def test_a_text_already_found_costs_one_query(embedder: Any, listed: WordList) -> None:
    found = fill_in(embedder.encode(["a just law"]), ["a just law"], embedder, listed)
    assert found.texts == ["a just law"] and found.queries.tolist() == [1] and found.steps.tolist() == [0]


def test_a_search_goes_on_where_another_ended(embedder: Any, listed: WordList) -> None:
    secret = ["tara rubio, age 29", "a just law", "jake mahoney, age 30"]
    vectors = embedder.encode(secret)
    first = fill_in(vectors, ["kirsten rub, age 30", "a just law", "."], embedder, listed, steps=1)
    assert first.cosines[1] >= SOLVED and (first.cosines[[0, 2]] < SOLVED).all()
    after = fill_in(vectors, first, embedder, listed)
    assert after.texts[:2] == secret[:2]
    assert after.trace[1] == first.trace[1]  # nothing is spent on what was found
    for rows, more in zip(first.trace, after.trace, strict=True):
        assert more[: len(rows)] == rows
        assert all(a.queries <= b.queries and a.step <= b.step for a, b in pairwise(more))
    assert len(first.trace[0]) == 2  # the first result is left as it was
    budget = int(first.queries.max())
    assert fill_in(vectors, first, embedder, listed, max_queries=budget).queries.max() <= budget


def test_a_guess_that_its_words_do_not_spell_is_not_lost(
    embedder: Any, listed: WordList, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedder that tells "o'brien" from "o ' brien" must not end further away than where it began."""
    real = embedder.encode

    class Spaced:
        closed, max_tokens, name = False, embedder.max_tokens, "spaced"

        def token_ids(self, texts: Any) -> Any:
            return [[ord(letter) for letter in text] for text in texts]

        def decode(self, ids: Any) -> Any:
            return ["".join(map(chr, row)) for row in ids]

        def normalise(self, texts: Any) -> Any:
            return list(texts)

        def encode(self, texts: Any, **options: Any) -> Any:
            return real([text if "o'brien" in text else "a law" for text in texts], **options)

    found = fill_in(real(["o'brien has a law"]), ["o'brien has a law"], Spaced(), listed, steps=2)  # type: ignore[arg-type]
    assert found.texts == ["o'brien has a law"] and found.cosines[0] >= SOLVED


def test_names_are_read_behind_a_defence(embedder: Any) -> None:
    others = embedder.encode(["bob ray, age 9", "the law", "peace now", "a b c d", "x y z", "ann lee has asthma"])
    defence = Quantise(1).fit(others)
    seen = DefendedEmbedder(embedder, defence, adapt(defence, others))
    listed = WordList.embed(["ann", "lee", "bob", "ray"], seen)
    secret = ["ann lee has asthma", "ann lee, age 9"]
    for begin in (["bob has asthma", "ray lee, age 9"], secret):
        assert fill_in(seen.encode(secret), begin, seen, listed).texts == secret  # type: ignore[arg-type]


def test_progress_is_more_than_a_little(embedder: Any, listed: WordList) -> None:
    """Without the right words a text would grow by one a round for ever: any word explains a little."""
    found = fill_in(embedder.encode(["the harbour lay under snow"]), ["."], embedder, listed, steps=100)
    assert found.steps[0] < 30


def test_nothing_to_fill_in(embedder: Any, listed: WordList) -> None:
    found = fill_in(np.zeros((0, embedder.dimension), np.float32), [], embedder, listed)
    assert found.texts == [] and found.queries.shape == (0,)


def test_a_guess_longer_than_the_embedder_reads_is_cut(embedder: Any, listed: WordList) -> None:
    long = "law " * 10_000
    found = fill_in(embedder.encode(["tara rubio"]), [long], embedder, listed, steps=0)
    assert len(found.texts[0].split()) == embedder.max_tokens


@pytest.mark.parametrize(
    ("vectors", "guesses", "options", "error", "says"),
    [
        (np.ones((1, 768)), ["a"], {}, VectorError, r"\(1, 768\).*\[n, 384\]"),
        (np.ones(384), ["a"], {}, VectorError, r"\(384,\)"),
        (np.full((1, 384), np.nan), ["a"], {}, VectorError, "Vector 0 holds NaN"),
        ([[1.0, 2.0], [1.0]], ["a"], {}, VectorError, "one array"),
        (np.array([["x"] * 384]), ["a"], {}, VectorError, "real numbers"),
        (np.zeros((1, 384)), ["a"], {}, VectorError, "all zeros"),
        (np.ones((1, 384)) * 1j, ["a"], {}, VectorError, "real numbers"),
        (np.ones((2, 384)), ["a"], {}, TextError, "2 vectors and 1 guesses"),
        (np.ones((1, 384)), ["a"], {"steps": -1}, TutorialError, "steps=-1"),
        (np.ones((1, 384)), ["a"], {"tries": 0}, TutorialError, "tries=0"),
        (np.ones((1, 384)), ["a"], {"max_queries": 0}, TutorialError, "max_queries=0"),
    ],
)
def test_wrong_input_gets_a_sentence(
    embedder: Any,
    listed: WordList,
    vectors: np.ndarray,
    guesses: list[str],
    options: dict[str, int],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        fill_in(vectors, guesses, embedder, listed, **options)


def test_a_list_without_words_is_an_error(embedder: Any) -> None:
    with pytest.raises(TextError, match="no word"):
        WordList.embed(["", " "], embedder)
    with pytest.raises(TextError, match="2 words and 1 vectors"):
        WordList(["a", "b"], np.ones((1, 4)))


def test_census_names_are_the_commonest(monkeypatch: pytest.MonkeyPatch) -> None:
    names = census_names(surnames=3)  # smith, johnson and williams, two of which are first names as well
    assert names[:2] == ["mary", "patricia"] and names[-1] == "smith"
    assert len(names) == len(set(names)) and all(name == name.lower() and name.isalpha() for name in names)
    assert len(census_names(0)) < len(census_names(2000))
    assert census_names(1, 2) == ["mary", "patricia", "james", "john", "smith"]
    with pytest.raises(TutorialError, match="-1 first names"):
        census_names(0, -1)
    with pytest.raises(TutorialError, match="88799"):
        census_names(100_000)
    monkeypatch.setitem(sys.modules, "names", None)
    with pytest.raises(TutorialError, match="pip install names"):
        census_names()


def test_whole_words_are_one_piece_each(embedder: Any) -> None:
    words = whole_words(embedder)
    assert {"congress", "president", ",", "1848"} <= set(words)
    assert all(count == 1 for count in embedder.token_counts(words))
    assert not any(word.startswith(("[", "##")) for word in words if len(word) > 1)
