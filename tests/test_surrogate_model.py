"""The surrogate's model: what it makes of a text, what it learns from answers, and what words say alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutorial_lib import surrogate_model
from tutorial_lib.errors import TextError
from tutorial_lib.neighbours import PieceValues
from tutorial_lib.surrogate_model import Surrogate, WordsAlone, _key, features
from tutorial_lib.word_lists import WordList

DIMENSION = 24
texts = st.lists(st.integers(10, 15), min_size=1, max_size=8).map(tuple)


def answer(ids: tuple[int, ...]) -> np.ndarray:
    """A made-up embedder: what pieces add, and what neighbours do."""
    row = np.zeros(DIMENSION)
    for piece in ids:
        row += np.random.default_rng(piece).normal(size=DIMENSION) / len(ids)
    for first, second in pairwise(ids):
        row += np.random.default_rng([first, second]).normal(size=DIMENSION) / len(ids)
    return row / np.linalg.norm(row)


def taught(model: PieceValues, target: np.ndarray, count: int = 400) -> PieceValues:
    rng = np.random.default_rng(0)
    for _ in range(count):
        ids = tuple(rng.integers(10, 18, 6).tolist())
        model.add(ids, answer(ids).astype(np.float32), float(answer(ids) @ target))
    model.fit()
    return model


# ---- what it learns ---------------------------------------------------------------------------------------


@given(texts)
def test_features_are_shares_of_pieces_and_of_pairs(ids: tuple[int, ...]) -> None:
    found = features(ids)
    pieces = {feature: share for feature, share in found.items() if isinstance(feature, int)}
    assert set(pieces) == set(ids) and sum(pieces.values()) == pytest.approx(1)
    beside = [share for feature, share in found.items() if not isinstance(feature, int) and feature[2] == 1]
    assert sum(beside) == pytest.approx(0.3**0.5 * (len(ids) + 1) / len(ids))
    assert {f[2] for f in found if not isinstance(f, int)} == {1, *range(2, min(4, len(ids)))}


def test_features_know_the_order_and_both_ends() -> None:
    one, other = features((10, 11, 12)), features((12, 11, 10))
    assert {f for f in one if isinstance(f, int)} == {f for f in other if isinstance(f, int)}
    assert (-1, 10, 1) in one and (12, -2, 1) in one and (10, 12, 2) in one
    assert (-1, 12, 1) in other and (10, -2, 1) in other and (12, 10, 2) in other
    assert features((10, 11, 12))[10, 11, 1] > features((10, 11, 12))[10, 12, 2] > 0
    assert features(()) == {(-1, -2, 1): 0.3**0.5}


def spelled_out(ids: tuple[int, ...]) -> dict[Any, float]:
    """The features of one text, one after the other."""
    found: Counter[Any] = Counter()
    for piece in ids:
        found[piece] += 1 / len(ids)
    for distance in (1, 2, 3):
        row = (-1, *ids, -2) if distance == 1 else ids
        for pair in zip(row, row[distance:], strict=False):
            found[*pair, distance] += 0.3**0.5 / max(1, len(ids)) / distance
    return dict(found)


any_texts = st.lists(st.sampled_from((0, 1, 10, 11, 30_521, 250_001)), max_size=8).map(tuple)


@given(any_texts, any_texts)
def test_texts_are_counted_together_as_one_by_one(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    """A batch pads its texts, which must not be seen in their features; a surrogate knows those that it met."""
    model = Surrogate()
    for text in (one, other):
        model.add(text, np.ones(DIMENSION, dtype=np.float32), 0.5)
    model.fit()
    batch = model._matrix([one, (77, 78), other]).toarray()
    assert len(model._keys) == len({*spelled_out(one), *spelled_out(other)})
    for row, text in zip(batch[[0, 2]], (one, other), strict=True):
        assert features(text) == pytest.approx(spelled_out(text))
        places = {feature: int(np.searchsorted(model._keys, _key(feature))) for feature in spelled_out(text)}
        assert np.flatnonzero(row).tolist() == sorted(places.values())
        assert {feature: row[place] for feature, place in places.items()} == pytest.approx(spelled_out(text))
    assert not batch[1].any()  # nothing of it was met, not even its ends


def test_without_distances_it_knows_pieces_only() -> None:
    class OnlyPieces(Surrogate):
        distances = ()

    target = answer((10, 11, 12))
    model, known = taught(OnlyPieces(), target), answer((10, 11, 12))[None]
    assert np.allclose(model.moved([(12, 11, 10)], [(10, 11, 12)], known), known, atol=1e-6)
    assert model.of([10]).any() and not model.of([(10, 11, 1)]).any()


def test_orders_are_foreseen_from_pairs_and_not_from_pieces() -> None:
    text = (10, 12, 14, 16, 11, 13)
    target, others = answer(text), [p for p in permutations(text) if p != text][::7]
    true, known = np.array([answer(p) @ target for p in others]), np.tile(answer(text), (len(others), 1))
    pairs, pieces = (
        model.moved(others, [text] * len(others), known) @ target
        for model in (taught(Surrogate(), target), taught(PieceValues(), target))
    )
    assert np.corrcoef(pairs, true)[0, 1] > 0.8
    assert np.ptp(pieces) < 1e-6 < np.ptp(pairs)


def test_it_is_weighted_ridge_regression_with_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dual form against the normal equations, written out."""
    monkeypatch.setattr(surrogate_model, "_LEARNT", 30)
    target = answer((10, 11, 12))
    model = taught(Surrogate(), target, count=50)
    kept = np.argsort(-np.array(model._cosines), kind="stable")[:30]
    rows = [model._texts[i] for i in kept]
    names = list(dict.fromkeys(feature for row in rows for feature in features(row)))
    shares = np.array([[features(row).get(name, 0.0) for name in names] for row in rows])
    vectors, cosines = np.stack([model._vectors[i] for i in kept]), np.array([model._cosines[i] for i in kept])
    weights = np.exp(12 * (cosines - cosines.max())) + 0.02
    full = np.column_stack([shares, np.ones(30)])
    penalty = 1e-3 * np.diag([1.0] * len(names) + [0.0])  # none on the constant
    effects = np.linalg.solve(full.T @ (weights[:, None] * full) + penalty, full.T @ (weights[:, None] * vectors))
    assert np.abs(model.of(names) - effects[:-1]).max() < 1e-3 * np.abs(effects).max()


def test_a_text_lies_where_it_is_known_to_and_news_say_nothing() -> None:
    text, target = (10, 12, 14), answer((10, 12, 14))
    model, known = taught(Surrogate(), target), 3 * answer(text)[None]
    assert np.allclose(model.moved([text], [text], known), answer(text)[None], atol=1e-6)
    assert not model.of([99]).any() and not model.of([(99, 98, 1)]).any()
    with_news, without = model.moved([(10, 99)], [text], known), model.moved([(10, 98)], [text], known)
    assert np.array_equal(with_news, without) and np.isfinite(with_news).all()
    assert model.moved([], [], np.zeros((0, DIMENSION))).shape == (0, DIMENSION)


# ---- what words say alone ---------------------------------------------------------------------------------


def words_alone(words: list[str]) -> WordsAlone:
    """Words `wordN` are piece N, others are two pieces; each has a made-up vector."""
    vectors = np.random.default_rng(0).normal(size=(len(words), DIMENSION)).astype(np.float32)
    tokens = SimpleNamespace(token_ids=lambda texts: [[int(t[4:])] if t[4:].isdigit() else [1, 2] for t in texts])
    return WordsAlone(WordList(words, vectors), tokens)  # type: ignore[arg-type]


@pytest.fixture
def alone() -> WordsAlone:
    """Eight words of one piece, 10 to 17, and one of two pieces."""
    return words_alone([f"word{piece}" for piece in range(10, 18)] + ["two pieces"])


def test_words_of_several_pieces_say_nothing_about_one(alone: WordsAlone) -> None:
    assert alone.pieces == list(range(10, 18))
    assert np.allclose(alone.vectors.mean(0), 0, atol=1e-6)
    means = alone.means([(10, 11), (10, 99), (99,), (), (12, 12, 13)])
    assert np.allclose(means[0], (alone.vectors[0] + alone.vectors[1]) / 2, atol=1e-6)
    assert np.allclose(means[1], alone.vectors[0] / 2, atol=1e-6)  # a piece that is no word counts as nothing
    assert not means[2:4].any()
    assert np.allclose(means[4], (2 * alone.vectors[2] + alone.vectors[3]) / 3, atol=1e-6)
    with pytest.raises(TextError, match="one piece"):
        words_alone(["two pieces"])


def test_a_word_that_was_never_sent_is_foreseen(alone: WordsAlone) -> None:
    """In a world where a text is the mean of what its words say alone, times 2, plus a constant."""
    constant, rng = np.ones(DIMENSION), np.random.default_rng(1)
    texts = [tuple(rng.integers(10, 17, 4).tolist()) for _ in range(60)]  # none has the piece 17
    informed, plain = Surrogate(alone), Surrogate()
    for model in (informed, plain):
        for text in texts:
            model.add(text, (constant + 2 * alone.means([text])[0]).astype(np.float32), 0.5)
        model.fit()
    assert not plain.of([17]).any()
    assert np.array_equal(informed.of(np.array([16, 17])), informed.of([16, 17]))  # numpy's whole numbers, too
    assert np.allclose(informed.of([17])[0], 2 * alone.vectors[7], atol=0.01)
    for target in np.eye(DIMENSION)[:3]:
        order = informed.words_towards(target, 5)
        assert order == sorted(alone.pieces, key=lambda piece: -float(informed.of([piece])[0] @ target))[:5]
    parent, text, known = (10, 11, 12, 13), (17, 11, 12, 13), np.eye(DIMENSION)[0]
    expected = known + 2 * (alone.means([text]) - alone.means([parent]))[0]
    assert np.allclose(informed.moved([text], [parent], known[None])[0], expected / np.linalg.norm(expected), atol=0.01)


def test_with_words_it_is_generalised_least_squares(alone: WordsAlone) -> None:
    """The multiple and the rest against textbook formulas, with the constant as a regressor of its own."""
    rng, model = np.random.default_rng(2), Surrogate(alone)
    rows = [tuple(rng.integers(10, 22, rng.integers(1, 6)).tolist()) for _ in range(40)]  # some pieces are no words
    target = answer((10, 11, 12))
    for row in rows:
        model.add(row, answer(row).astype(np.float32), float(answer(row) @ target))
    model.fit()
    names = list(dict.fromkeys(feature for row in rows for feature in features(row)))
    shares = np.array([[features(row).get(name, 0.0) for name in names] for row in rows])
    said, vectors = alone.means(rows).astype(np.float64), np.array([answer(row) for row in rows])
    cosines = vectors @ target
    noise = 1e-3 / (np.exp(12 * (cosines - cosines.max())) + 0.02)
    covariance = shares @ shares.T + said @ said.T + np.diag(noise)
    # One multiple for all dimensions, and a constant for each: stacked, dimension by dimension.
    inverse = np.linalg.inv(covariance)
    ones = inverse.sum(1)
    centre = inverse - np.outer(ones, ones) / ones.sum()  # what is left of the inverse once the constants are fitted
    slope = np.einsum("id,ij,jd", said, centre, vectors) / np.einsum("id,ij,jd", said, centre, said)
    dual = centre @ (vectors - slope * said)
    unseen = [(17, 10, 12), (11, 20, 13)]
    kernel = np.array([[features(text).get(name, 0.0) for name in names] for text in unseen]) @ shares.T
    wanted = (kernel + alone.means(unseen) @ said.T) @ dual + slope * alone.means(unseen)
    found = model._foreseen(unseen)
    assert np.allclose(found[0] - found[1], wanted[0] - wanted[1], atol=2e-3)


def test_texts_without_any_word_teach_nothing_about_words(alone: WordsAlone) -> None:
    model = Surrogate(alone)
    for text in ((50, 51), (51, 52), (52, 50)):
        model.add(text, answer(text).astype(np.float32), 0.5)
    model.fit()
    assert not model.of([10]).any() and np.isfinite(model.of([50])).all() and model.of([50]).any()
