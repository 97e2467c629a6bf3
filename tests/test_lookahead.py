"""benchmarks/lookahead.py: what a surrogate foresees with what words say alone, and several changes ahead."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tutorial_lib import Corrector, Inverter, surrogate
from tutorial_lib.surrogate import Guided, Surrogate
from tutorial_lib.word_lists import WordList

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
DIMENSION = 16


@pytest.fixture(scope="module")
def lookahead() -> Any:
    if not BENCHMARKS.exists():
        pytest.skip("benchmarks are not part of this distribution")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("lookahead")


@pytest.fixture
def alone(lookahead: Any) -> Any:
    """Eight words of one piece, 10 to 17, one of two pieces, and a made-up vector for each."""
    words = [f"word{piece}" for piece in range(10, 18)] + ["two pieces"]
    vectors = np.random.default_rng(0).normal(size=(9, DIMENSION)).astype(np.float32)
    tokens = SimpleNamespace(token_ids=lambda texts: [[int(t[4:])] if t[4:].isdigit() else [1, 2] for t in texts])
    return lookahead.Alone(WordList(words, vectors), tokens)


def test_words_of_several_pieces_say_nothing_about_one(alone: Any) -> None:
    assert alone.pieces == list(range(10, 18))
    assert np.allclose(alone.vectors.mean(0), 0, atol=1e-6)
    means = alone.means([(10, 11), (10, 99), (99,), (), (12, 12, 13)])
    assert np.allclose(means[0], (alone.vectors[0] + alone.vectors[1]) / 2, atol=1e-6)
    assert np.allclose(means[1], alone.vectors[0] / 2, atol=1e-6)  # a piece that is no word counts as nothing
    assert not means[2:4].any()
    assert np.allclose(means[4], (2 * alone.vectors[2] + alone.vectors[3]) / 3, atol=1e-6)


def test_a_word_that_was_never_sent_is_foreseen(lookahead: Any, alone: Any) -> None:
    """In a world where a text is the mean of what its words say alone, times 2, plus a constant."""
    constant = np.ones(DIMENSION)
    rng = np.random.default_rng(1)
    texts = [tuple(rng.integers(10, 17, 4).tolist()) for _ in range(60)]  # none has the piece 17
    informed, plain = lookahead.Informed(alone), Surrogate()
    for text in texts:
        vector = (constant + 2 * alone.means([text])[0]).astype(np.float32)
        for model in (informed, plain):
            model.add(text, vector, 0.5)
    for model in (informed, plain):
        model.fit()
    assert not plain.of([17]).any()
    assert np.allclose(informed.of([17])[0], 2 * alone.vectors[7], atol=0.01)
    parent, text, known = (10, 11, 12, 13), (17, 11, 12, 13), np.eye(DIMENSION)[0]
    expected = known + 2 * (alone.means([text]) - alone.means([parent]))[0]
    assert np.allclose(informed.moved([text], [parent], known[None])[0], expected / np.linalg.norm(expected), atol=0.01)


def test_with_neither_it_is_the_search_of_chapter_6(
    lookahead: Any, embedder: Any, make_tiny: Any, monkeypatch: pytest.MonkeyPatch, test_texts: list[str]
) -> None:
    models = embedder, make_tiny(Inverter), make_tiny(Corrector, seed=1, aligned=True)
    vectors = embedder.encode(test_texts[:1])
    encode, asked = embedder.encode, []

    def noted(texts: list[str], **options: Any) -> np.ndarray:
        asked.extend(texts)
        return encode(texts, **options)

    monkeypatch.setattr(embedder, "encode", noted)

    def search(guided: Any) -> list[str]:
        """The texts that were embedded, in order."""
        monkeypatch.setattr(surrogate, "Guided", guided)
        asked.clear()
        surrogate.surrogate_search(vectors, *models, steps=4, variants=12)
        return list(asked)

    plain = search(Guided)
    assert len(plain) > 24
    assert search(functools.partial(lookahead.Ahead, depth=1, words=False)) == plain
    ahead = functools.partial(lookahead.Ahead, depth=3, words=False)
    assert search(ahead) == search(ahead) != plain


def test_looking_ahead_prices_texts_farther_away(
    lookahead: Any, embedder: Any, make_tiny: Any, test_texts: list[str]
) -> None:
    inverter, corrector = make_tiny(Inverter), make_tiny(Corrector, seed=1, aligned=True)
    target = torch.from_numpy(embedder.encode(test_texts[:1])[0])

    def priced(guided: Guided) -> tuple[dict[tuple[int, ...], float], list[Any]]:
        population = guided.begin(target)
        guided.embed({0: population}, {0: guided.first(population)})
        guided.embed({0: population}, {0: guided.next(population, 16, 8)})
        parents = [guess for guess in population.best if guess.places is not None]
        return guided.near(population, parents, 8, 0.02), parents

    near, parents = priced(lookahead.Ahead(embedder, inverter, corrector, depth=1, words=False))
    far, same = priced(lookahead.Ahead(embedder, inverter, corrector, depth=2, words=False))
    assert parents and [guess.ids for guess in same] == [guess.ids for guess in parents]
    assert far.keys() > near.keys()  # all of the first step, and more
    assert not {guess.ids for guess in parents} & far.keys()  # nothing that was embedded already
    assert all(0 < len(text) <= 8 for text in far)


def test_words_that_would_come_nearest_are_offered(lookahead: Any, alone: Any) -> None:
    """The target is a guess with its second word replaced by word 17; words do what they say."""
    base = 3 * np.ones(DIMENSION)
    vector, target = (base + alone.means([ids])[0] for ids in ((10, 11, 12), (10, 17, 12)))
    size = np.linalg.norm(vector)
    values = SimpleNamespace(of=lambda pieces: alone.means([(piece,) for piece in pieces]) / size)
    guess = SimpleNamespace(ids=(10, 11, 12), unit=vector / size)
    population = SimpleNamespace(
        values=values, best=[guess], unit=target / np.linalg.norm(target), pieces=dict.fromkeys(range(10, 18), 0)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookahead, "OFFERED", 1)
        lookahead.Ahead.offer(population, alone)
    assert [piece for piece, count in population.pieces.items() if count] == [17]
